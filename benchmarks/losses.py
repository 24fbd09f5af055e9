"""Losses: distance from their equations, memory at 8,192 pairs, and InfoNCE against the plain way.

    OMP_NUM_THREADS=1 python benchmarks/losses.py [--short]

max_abs_error   largest |value - equation in loops over floats| of a query, float64, over all settings of the loss
                (mining, distance, power; across two views and within one; by labels, event sets and pairs);
                max_abs_error_float32 the same with our side in float32
peak_mb_8192    peak memory of forward and backward at 8,192 pairs (d = 128, 51 classes, float32) beyond that of
                embeddings and gradients, the largest of its settings
seconds_8192    CPU time of one thread of the same
soft_triplet        the same of the triplet loss with positives by degree: error against the cubic sum over all pairs of
                keys; memory and time of both minings, alignment included, at 4,096 pairs
info_nce_vs_plain   CPU time of cross-entropy over the whole score matrix, by autograd, over ours; interleaved
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from raytrain.losses.alignment import Alignment, confident
from raytrain.losses.classes import arc_face, center_contrastive
from raytrain.losses.contrastive import contrastive
from raytrain.losses.masks import Relation
from raytrain.losses.reduction import PerRow, world_mean
from raytrain.losses.soft_triplet import SoftMining, soft_triplet, soft_weight
from raytrain.losses.softmax import info_nce, n_pair, supervised_contrastive
from raytrain.losses.triplet import triplet
from raytrain.types import Rows
from tests.losses import cases, soft_oracle

NUM_PAIRS, SIZE, NUM_CLASSES = 8192, 128, 51
ANCHORS = {"gradient_above": 1e-6}

SETTINGS: dict[str, list[tuple[str, Callable[..., PerRow], dict[str, object]]]] = {
    "contrastive": [
        (
            "euclidean",
            contrastive,
            {"positive_margin": 0.0, "negative_margin": 1.0, "power": 2, "distance": "euclidean"},
        )
    ],
    "triplet": [
        (mining, triplet, {"margin": 0.2, "mining": mining, "distance": "cosine"})
        for mining in ("all", "semi-hard", "hard")
    ],
    "n_pair": [("all", n_pair, {"scale": 16.0, "negatives": "all", **ANCHORS})],
    "info_nce": [("labels", info_nce, {"temperature": 0.07, **ANCHORS})],
    "arc_face": [("classes", arc_face, {"margin": 0.5, "scale": 32.0, **ANCHORS})],
    "supervised_contrastive": [("labels", supervised_contrastive, {"temperature": 0.07, **ANCHORS})],
    "center_contrastive": [("classes", center_contrastive, {"temperature": 0.07, "margin": 0.1, **ANCHORS})],
}


def largest_errors(dtype: torch.dtype) -> dict[str, float]:
    errors: dict[str, float] = defaultdict(float)
    for case, views, by in cases.SETTINGS:
        given = cases.world(1, ties=False)
        query, keys, classes = (x.to(dtype) for x in (given.query, given.keys, given.classes))
        rows, _, _ = cases.evaluate(
            case, replace(given, query=query, keys=keys, classes=classes), views, by, 0, len(given.rows), 1
        )
        queries, others = cases.clips(given, case, views)
        expected = [case.oracle(clip, others, views, by, **case.oracle_kwargs)[0] for clip in queries]
        error = (rows.value.double() - torch.tensor(expected, dtype=torch.float64)).abs().max().item()
        errors[case.ours.__name__] = max(errors[case.ours.__name__], error)
    return errors


def pairs(num: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Rows]:
    """(query, keys, class vectors, rows), vectors with gradient."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, NUM_CLASSES, (num,), generator=generator)
    classes = torch.randn(NUM_CLASSES, SIZE, generator=generator)
    query, keys = (
        F.normalize(classes[labels] + 2 * torch.randn(num, SIZE, generator=generator), dim=1)
        for _ in range(2)
    )
    leaves = [x.requires_grad_() for x in (query, keys, F.normalize(classes, dim=1))]
    return leaves[0], leaves[1], leaves[2], Rows(torch.arange(num), {}, labels=labels)


def memory_and_time(name: str) -> tuple[float, float]:
    """(peak MB, CPU seconds), the largest over the settings of the loss."""
    peak, seconds = 0.0, 0.0
    for setting, loss, hyper_parameters in SETTINGS[name]:
        query, keys, classes, rows = pairs(NUM_PAIRS)
        by_class = name in ("arc_face", "center_contrastive")
        others = classes if by_class else keys
        for leaf in (query, others):
            leaf.grad = torch.zeros_like(leaf)
        before, start = _from_here()
        if by_class:
            relation = Relation.to_classes(rows, rows, num_classes=NUM_CLASSES, by="labels")
        else:
            relation = Relation.between(rows, rows, views="cross", by="labels")
        world_mean(loss(query, others, relation, **hyper_parameters), relation).backward()
        used, taken = _since(before, start)
        print(f"{name} {setting}: {used:.0f} MB, {taken:.1f} s")
        peak, seconds = max(peak, used), max(seconds, taken)
    return peak, seconds


def _from_here() -> tuple[int, float]:
    """(resident memory, CPU time); the peak of memory starts anew."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS"), time.process_time()


def _since(before: int, start: float) -> tuple[float, float]:
    """(peak MB, CPU seconds)."""
    return (_status("VmHWM") - before) / 1024, time.process_time() - start


def _status(key: str) -> int:
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1])


def soft_triplets(num: int, mining: SoftMining) -> tuple[float, float]:
    """(peak MB, CPU seconds) with the embeddings for a teacher's: alignment, gate, loss, forward and backward."""
    query, keys, _, _ = pairs(num)
    for leaf in (query, keys):
        leaf.grad = torch.zeros_like(leaf)
    before, start = _from_here()
    alignment = Alignment(query.detach(), keys.detach(), "similarity", 0.1)
    extent = alignment.extent()
    counted = confident(extent, num, gate=2.0)
    weight = torch.where(counted, soft_weight(extent, num, mining=mining), 0).sum()
    value = soft_triplet(query, keys, alignment, counted, margin=0.2, mining=mining).value
    (value.sum() / weight).backward()
    used, taken = _since(before, start)
    print(f"soft_triplet {mining}, {num} pairs, {int(counted.sum())} counted: {used:.0f} MB, {taken:.1f} s")
    return used, taken


def soft_triplet_error(dtype: torch.dtype) -> float:
    error = 0.0
    query, keys, _, _ = pairs(37)
    query, keys = query.detach().to(dtype), keys.detach().to(dtype)
    alignment = Alignment(query[:23], keys, "similarity", 0.3)
    everyone = torch.ones(23, dtype=torch.bool)
    for mining in get_args(SoftMining):
        found = soft_triplet(query[:23], keys, alignment, everyone, margin=0.2, mining=mining).value
        of = soft_oracle.soft_triplets if mining == "all" else soft_oracle.hardest_soft_triplet
        for i, row in enumerate(query[:23].tolist()):
            w = soft_oracle.weights(row, keys.tolist(), "similarity", 0.3)
            error = max(error, abs(found[i].item() - of(row, keys.tolist(), w, 0.2)[0]))
    return error


def against_plain(num: int, rounds: int) -> list[float]:
    query, keys, _, rows = pairs(num)
    relation = Relation.between(rows, rows, views="cross", by="pairs")

    def ours() -> torch.Tensor:
        return world_mean(info_nce(query, keys, relation, temperature=0.07, **ANCHORS), relation)

    def plain() -> torch.Tensor:
        return F.cross_entropy(query @ keys.T / 0.07, torch.arange(num))

    assert abs(ours().item() - plain().item()) < 1e-4, "the two do not compute the same"
    ratios = []
    for _ in range(rounds):
        seconds = []
        for way in (ours, plain):
            start = time.process_time()
            way().backward()
            seconds.append(time.process_time() - start)
        ratios.append(seconds[1] / seconds[0])
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="under a minute: the ratio at 2,048 pairs")
    num = 2048 if parser.parse_args().short else NUM_PAIRS
    torch.set_num_threads(1)
    errors, errors_float32 = largest_errors(torch.float64), largest_errors(torch.float32)
    out: dict[str, object] = {}
    for name in SETTINGS:
        peak, seconds = memory_and_time(name)
        out[name] = {
            "max_abs_error": errors[name],
            "max_abs_error_float32": errors_float32[name],
            "peak_mb_8192": round(peak, 1),
            "seconds_8192": round(seconds, 2),
        }
    soft = [soft_triplets(4096, mining) for mining in get_args(SoftMining)]
    out["soft_triplet"] = {
        "max_abs_error": soft_triplet_error(torch.float64),
        "max_abs_error_float32": soft_triplet_error(torch.float32),
        "peak_mb_4096": round(max(used for used, _ in soft), 1),
        "seconds_4096": round(max(taken for _, taken in soft), 2),
    }
    ratios = against_plain(num, rounds=7)
    print(
        f"plain InfoNCE at {num} pairs: {statistics.median(ratios):.2f} x ours ({min(ratios):.2f} .. {max(ratios):.2f})"
    )
    out["info_nce_vs_plain"] = round(statistics.median(ratios), 2)
    out["pairs_of_the_ratio"] = num
    print(json.dumps(out))


if __name__ == "__main__":
    main()

"""The class-dependency graph: speed and BIC against causal-learn, large graphs, warm starts, planted worlds.

    OMP_NUM_THREADS=1 python benchmarks/graph.py [--short]

CPU time of one thread, compilation apart, both sides interleaved in one process.  Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from raytrain.graph.accumulator import MomentAccumulator
from raytrain.graph.baselines import TABLE, authors_recipe, baseline, directed_f1
from raytrain.graph.dependency import class_dependency
from raytrain.graph.original import causal_learn_cpdag, extension
from raytrain.graph.planted import linear_gaussian, soft_labels
from raytrain.graph.score import bic
from raytrain.graph.search import dependency_search

PENALTY = 2.0
"""causal-learn's default in `grasp()`."""


def timed(call: Callable[..., Any], *args: Any, **options: Any) -> tuple[float, Any]:
    start = time.process_time()
    result = call(*args, **options)
    return time.process_time() - start, result


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def skeleton_f1(found: np.ndarray, truth: np.ndarray) -> float:
    a, b = found | found.T, truth | truth.T
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def large(short: bool) -> dict[str, Any]:
    """p = 618 (VGGSound) and 1,054 (AudioSet): cold, warm after 1 % of the moments changed, memory."""
    out: dict[str, Any] = {}
    ratios = []
    for n in (2000,) if short else (2000, 20000):
        for p in (618, 1054):
            samples, truth = linear_gaussian(p, 4, n, seed=1)
            covariance = np.cov(samples.T, ddof=0)
            fresh, _ = linear_gaussian(p, 4, n + 1, seed=1)  # the same DAG, other noise variances
            moved = 0.99 * covariance + 0.01 * np.cov(fresh.T, ddof=0)
            del samples, fresh
            cold, first = timed(dependency_search, covariance, n, penalty=PENALTY, seed=0, restarts=1)
            three, best = timed(dependency_search, covariance, n, penalty=PENALTY, seed=0)
            cold_moved, _ = timed(dependency_search, moved, n, penalty=PENALTY, seed=0, restarts=1)
            warm, again = timed(
                dependency_search,
                moved,
                n,
                penalty=PENALTY,
                seed=1,
                restarts=1,
                init_order=best.order,
                tuck="lean",
            )
            ratios.append(warm / cold_moved)
            row = {
                "s": cold, "three_s": three, "f1": skeleton_f1(best.dag, truth),
                "f1_single": skeleton_f1(first.dag, truth),
                "warm_s": warm, "warm_f1": skeleton_f1(again.dag, truth), "peak_mb": peak_mb(),
            }  # fmt: skip
            print(f"p {p} n {n}: " + "  ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True)
            if n == 2000:
                out |= {f"p{p}_{key}": value for key, value in row.items()}
    return out | {"warm_over_cold": float(np.median(ratios))}


def against_causal_learn(short: bool) -> dict[str, Any]:
    sizes = (20, 30) if short else (20, 30, 56, 100)
    cells = [(p, n, d, s) for p in sizes for n in (2000, 20000) for d in (2, 4) for s in range(3)]
    cells += [(100, 2000, 2, 0), (100, 2000, 2, 1)] if short else []
    single: dict[int, list[float]] = {}
    triple: dict[int, list[float]] = {}
    excess, reached, theirs_reached = [], [], []
    for p, n, degree, seed in cells:
        samples, truth = linear_gaussian(p, degree, n, seed=seed)
        covariance = np.cov(samples.T, ddof=0)
        threes = []
        ones = [
            timed(dependency_search, covariance, n, penalty=PENALTY, seed=seed, restarts=1)[0]
            for _ in range(3)
        ]
        reference, graph = timed(causal_learn_cpdag, samples, penalty=PENALTY, depth=3, seed=seed)
        for _ in range(3):
            took, ours = timed(dependency_search, covariance, n, penalty=PENALTY, seed=seed)
            threes.append(took)
        theirs = bic(covariance, n, extension(graph), penalty=PENALTY)
        true = bic(covariance, n, truth, penalty=PENALTY)
        single.setdefault(p, []).append(reference / float(np.median(ones)))
        triple.setdefault(p, []).append(reference / float(np.median(threes)))
        excess.append(ours.bic - theirs)
        reached.append(ours.bic >= true - 1e-3)
        theirs_reached.append(theirs >= true - 1e-3)
        print(
            f"p {p} n {n} degree {degree} seed {seed}: causal-learn {reference:.2f} s, single start "
            f"{single[p][-1]:.0f} x, best of 3 {triple[p][-1]:.0f} x, BIC {excess[-1]:+.3f} against theirs, "
            f"{ours.bic - true:+.3f} against the true graph",
            flush=True,
        )
    out: dict[str, Any] = {"data_sets": len(cells)}
    for p in sorted(single):
        out[f"vs_causal_learn_{p}"] = float(np.median(single[p]))
        out[f"vs_causal_learn_{p}_min_max"] = [min(single[p]), max(single[p])]
        out[f"three_vs_causal_learn_{p}"] = float(np.median(triple[p]))
        out[f"three_vs_causal_learn_{p}_min_max"] = [min(triple[p]), max(triple[p])]
    return out | {
        "bic_not_worse_share": float(np.mean(np.array(excess) >= -1e-3)),
        "bic_better_share": float(np.mean(np.array(excess) > 1e-3)),
        "bic_median_excess": float(np.median(excess)),
        "bic_worst_excess": float(np.min(excess)),
        "true_bic_reached": float(np.mean(reached)),
        "causal_learn_true_bic_reached": float(np.mean(theirs_reached)),
    }


def bootstraps() -> dict[str, Any]:
    samples, _ = linear_gaussian(30, 4, 2000, seed=0)
    generator = np.random.default_rng(0)
    draws = [np.cov(samples[generator.integers(0, 2000, 2000)].T, ddof=0) for _ in range(100)]
    start = time.process_time()
    for i, covariance in enumerate(draws):
        dependency_search(covariance, 2000, penalty=PENALTY, seed=i, restarts=1)
    took = time.process_time() - start
    world = soft_labels(15, 3000, world="events", nuisance=0.25, seed=0)
    moments = MomentAccumulator(15)
    moments.update(world.audio, world.visual, world.labels, np.arange(3000))
    whole, found = timed(class_dependency, moments, bootstraps=100)
    print(f"class_dependency, c = 15, 100 halves and 100 of permuted labels: {whole:.2f} s, {found.verdict}")
    return {"bootstrap100_p30_s": took, "class_dependency100_c15_s": whole}


def planted(short: bool) -> dict[str, Any]:
    """Directed F1 of the planted cross-modal edges."""
    seeds = range(2 if short else 5)
    rows: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    edges, bounds = [], []
    for classes in (15,) if short else (15, 28):
        for kind in ("linear", "events"):
            for n in (3000, 20000):
                for nuisance in (0.0, 0.25, 0.5):
                    row = rows.setdefault((classes, kind, n, nuisance), {})
                    for seed in seeds:
                        world = soft_labels(classes, n, world=kind, nuisance=nuisance, seed=seed)
                        none = np.zeros_like(world.audio_to_visual)
                        truth = np.block([[none, world.audio_to_visual], [world.visual_to_audio, none]])
                        moments = MomentAccumulator(classes)
                        moments.update(world.audio, world.visual, world.labels, np.arange(n))
                        for name in TABLE:
                            scores = baseline(name, moments.moments(), seed=seed)
                            row.setdefault(name, []).append(directed_f1(scores, truth))
                        logits = np.concatenate([world.audio, world.visual], axis=1)
                        sigmoid = authors_recipe(1 / (1 + np.exp(-logits)), seed=seed, solver="engine")
                        row.setdefault("authors_sigmoid", []).append(directed_f1(sigmoid, truth))
                        soft = [np.exp(x - x.max(axis=1, keepdims=True)) for x in (world.audio, world.visual)]
                        rows_to_one = np.concatenate([x / x.sum(axis=1, keepdims=True) for x in soft], axis=1)
                        softmax = authors_recipe(rows_to_one, seed=seed, solver="engine")
                        row.setdefault("authors_softmax", []).append(directed_f1(softmax, truth))
                        null = baseline("grasp", moments.moments(permuted=True), seed=seed)
                        row.setdefault("permuted", []).append(directed_f1(null, truth))
                        edges.append(int(((null + null.T) > 0).sum()) // 2)
                    if seeds:
                        found = class_dependency(moments, bootstraps=20)
                        bounds.append((found.permuted_edges, found.false_bound, found.verdict))
                    means = "  ".join(f"{name} {np.mean(values):.2f}" for name, values in row.items())
                    print(f"c {classes} {kind} n {n} nuisance {nuisance}: {means}", flush=True)

    def mean(name: str, n: int, nuisance: float) -> float:
        return float(np.mean([v for k, r in rows.items() if k[2:] == (n, nuisance) for v in r[name]]))

    return {
        "planted_f1_20000": mean("grasp", 20000, 0.0),
        "planted_f1_3000": mean("grasp", 3000, 0.0),
        "planted_f1_20000_nuisance_25": mean("grasp", 20000, 0.25),
        "planted_f1_20000_lift": mean("lift", 20000, 0.0),
        "planted_f1_20000_authors_sigmoid": mean("authors_sigmoid", 20000, 0.0),
        "planted_f1_20000_authors_softmax": mean("authors_softmax", 20000, 0.0),
        "planted_f1_20000_nuisance_25_authors_sigmoid": mean("authors_sigmoid", 20000, 0.25),
        "planted_f1_20000_nuisance_25_authors_softmax": mean("authors_softmax", 20000, 0.25),
        "permuted_f1": float(np.mean([v for r in rows.values() for v in r["permuted"]])),
        "permuted_edges_max": max(edges),
        "permuted_stable_edges_within_bound": all(found <= bound for found, bound, _ in bounds),
        "linked_share": float(np.mean([verdict == "linked" for _, _, verdict in bounds])),
    }


def exactness() -> dict[str, Any]:
    samples, _ = linear_gaussian(30, 4, 2000, seed=0)
    covariance = np.cov(samples.T, ddof=0)
    first, second = (dependency_search(covariance, 2000, penalty=PENALTY, seed=0) for _ in range(2))
    centred = samples - samples.mean(axis=0)
    path = dependency_search(centred.T @ centred / 2000, 2000, penalty=PENALTY, seed=0)
    return {
        "repeat_identical": first.bic == second.bic
        and first.strengths.tobytes() == second.strengths.tobytes(),
        "sample_path_same": bool((path.cpdag == first.cpdag).all()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="under a minute")
    short = parser.parse_args().short
    compile_s, _ = timed(dependency_search, np.eye(3), 100, penalty=PENALTY, seed=0)
    out: dict[str, Any] = {"compile_or_load_s": compile_s}
    out |= large(short)
    out |= bootstraps()
    out |= planted(short)
    out |= exactness()
    out |= against_causal_learn(short)
    out["peak_mb"] = peak_mb()
    print(json.dumps(out))


if __name__ == "__main__":
    main()

"""What the dependency graphs of ILI runs did to their embeddings, measured against runs without a graph.

The appendix of ILI (Zeng et al.): how often an edge is found over runs, the mean Frobenius distance of their
adjacencies, whether co-activated pairs lie nearer with LIR than without (the false-negative distance test, with a
95 % interval), and MAP over epochs with and without LIR.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from raytrain.cluster import checkpoint, run_folder
from raytrain.cluster.evaluate import Embedded, embed_split, load, relevance_of
from raytrain.cluster.sources import batch_of
from raytrain.cluster.teacher_store import TrainedTeacher, read_teacher
from raytrain.cluster.training import CHECKPOINTS
from raytrain.config import Config
from raytrain.data.manifest import Dataset
from raytrain.data.shards import read_split
from raytrain.evaluation.latent import (
    adjacency_distance,
    co_activated,
    distance_test,
    edge_frequency,
    unlike_labels,
)
from raytrain.evaluation.moments import members_of, spread_of
from raytrain.evaluation.statistics import Comparison
from raytrain.graph.dependency import ClassDependency, cross_modal
from raytrain.methods import build
from raytrain.methods.ili import Ili

SPLIT = "test"
ADJACENT = 0.5
"""Edge frequency over resamples from which two columns of one run count as adjacent."""


@dataclass(frozen=True)
class Finished:
    """A run as this study needs it."""

    folder: Path
    config: Config
    dataset: Dataset
    split: Embedded
    maps: list[tuple[int, float]]
    """(epoch, validation MAP)."""

    def inter(self) -> float:
        """Mean distance between class means."""
        assert self.split.labels is not None, "ili trains on labels"
        members = members_of(torch.from_numpy(self.split.labels), None, self.dataset.manifest.num_classes)
        views = {name: torch.from_numpy(z) for name, z in self.split.embeddings.items()}
        return spread_of(views, members)["inter"]

    def pair(self) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n d"]]:
        audio, visual = self.split.embeddings.values()
        return audio, visual


def read_run(folder: Path) -> Finished:
    """A run with its last weights: a validation that knows one annotated class alone may select such from before the
    graph.  Raises ValueError where there is no run.
    """
    config, dataset, method = load(folder)
    last = checkpoint.latest(folder / CHECKPOINTS)
    if last is None:
        raise ValueError(f"no checkpoint in {folder / CHECKPOINTS}; train the run to its end")
    weights = last.tensors["model"]
    if config.train.evaluate == "ema":
        averaged = last.tensors["ema"]
        weights = {
            name.removeprefix("module."): x for name, x in averaged.items() if name.startswith("module.")
        }
    method.load_state_dict(weights)
    lines = (folder / run_folder.HISTORY).read_text().splitlines()
    records = [json.loads(line) for line in lines]
    maps = [(record["epoch"], record["map"]) for record in records if "map" in record]
    return Finished(folder, config, dataset, embed_split(method, dataset, SPLIT, config.data.views), maps)


def interactions(
    with_graph: Sequence[Path], without: Sequence[Path], *, resamples: int, seed: int = 0
) -> dict[str, Any]:
    """Runs with a graph, each against the run without one at its place, as plain JSON values.

    Raises ValueError for lists of unlike length, for runs of unlike data, and for a run without a graph of its own.
    """
    if not with_graph or len(with_graph) != len(without):
        raise ValueError(
            f"got {len(with_graph)} runs with a graph and {len(without)} without; name as many --without, in the "
            "same order (of the same seeds)"
        )
    rows, graphs = [], []
    curves: dict[str, list[list[tuple[int, float]]]] = {"with": [], "without": []}
    classes: tuple[str, ...] = ()
    fingerprint = None
    for number, folders in enumerate(zip(with_graph, without, strict=True)):
        ours, plain = (read_run(folder) for folder in folders)
        for run in (ours, plain):
            fingerprint = fingerprint or run.dataset.fingerprint
            if run.dataset.fingerprint != fingerprint:
                raise ValueError(
                    f"{run.folder} was trained on other data than {with_graph[0]}; compare runs of one data set"
                )
        method, trained = _teacher(ours)
        assert trained.graph is not None, "_teacher() has refused it"
        generator = np.random.default_rng([seed, number])
        tests = {
            name: None
            if not partners.any()
            else _numbers(
                distance_test(
                    plain.pair(),
                    ours.pair(),
                    partners,
                    level=0.95,
                    num_resamples=resamples,
                    generator=generator,
                )
            )
            for name, partners in _partners(ours, method).items()
        }
        scores = [
            run.split.retrieve(relevance_of(run.dataset)).summary()["mean"]["map"] for run in (ours, plain)
        ]
        rows.append(
            {
                "run": str(ours.folder),
                "without": str(plain.folder),
                "verdict": trained.graph.verdict,
                "edges": sum(int((w > 0).sum()) for w in (method.audio_to_visual, method.visual_to_audio)),
                "nearer": tests,
                "inter_over_without": ours.inter() / plain.inter(),
                "map": scores[0],
                "map_without": scores[1],
            }
        )  # fmt: skip
        graphs.append(_adjacency(trained.graph))
        curves["with"].append(ours.maps)
        curves["without"].append(plain.maps)
        classes = ours.dataset.manifest.classes
    return {
        "split": SPLIT,
        "dataset": ours.dataset.manifest.name,
        "synthetic": ours.dataset.manifest.synthetic,
        "t_teach": ours.config.method["t_teach"],
        "epochs": ours.config.train.epochs,
        "runs": rows,
        "edges": _edges(graphs, classes),
        "adjacency_distance": adjacency_distance(graphs) if len(graphs) > 1 else None,
        "map_over_epochs": curves,
    }


def _teacher(run: Finished) -> tuple[Ili, TrainedTeacher]:
    """The method with the run's last teacher and graph."""
    method = build(run.config, run.dataset.manifest)
    if not isinstance(method, Ili):
        raise ValueError(
            f"{run.folder} is a run of {run.config.method['name']}; name runs of ili before --without"
        )
    source = run.folder if run.config.train.teacher is None else Path(run.config.train.teacher)
    trained = read_teacher(source, run.config, run.dataset)
    if trained.graph is None:
        raise ValueError(
            f"{run.folder} made no graph (method.graph = {run.config.method['graph']!r}); name it behind "
            "--without, and a run with method.graph = 'found' in its place"
        )
    trained.give(method)
    return method.eval(), trained


def _partners(run: Finished, method: Ili) -> dict[str, Bool[np.ndarray, "n n"]]:
    """[audio visual]: pairs that the graph and the soft labels link, and such as share a true event, label aside."""
    arrays = read_split(run.dataset, SPLIT, views=run.config.data.views)
    soft = method.soft_labels(batch_of(arrays).views)
    audio, visual = (torch.sigmoid(logits).numpy() for logits in soft.values())
    forth, back = (weights.numpy() > 0 for weights in (method.audio_to_visual, method.visual_to_audio))
    threshold = run.config.method["threshold"]
    assert arrays.labels is not None, "ili trains on labels"
    unlike = unlike_labels(arrays.labels, arrays.labels)
    linked = co_activated(audio, visual, forth, threshold=threshold)
    linked |= co_activated(visual, audio, back, threshold=threshold).T
    found = {"linked": linked & unlike}
    if arrays.events is not None:
        events = arrays.events.astype(np.float32)
        found["event in common"] = (events @ events.T > 0) & unlike
    return found


def _numbers(found: Comparison) -> dict[str, float]:
    return {"mean": found.difference, "low": found.interval.low, "high": found.interval.high}


def _adjacency(graph: ClassDependency) -> Bool[np.ndarray, "v v"]:
    """Cross-modal, cross-class edges."""
    across = cross_modal(len(graph.audio_to_visual))
    return across & (graph.edge_frequency >= ADJACENT)


def _edges(graphs: list[Bool[np.ndarray, "v v"]], classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Adjacent columns and the share of the runs that hold them, most frequent first."""
    share = edge_frequency(graphs)
    names = [f"{name} ({view})" for view in ("audio", "visual") for name in classes]
    found = [
        {"between": [names[x], names[y]], "runs": float(share[x, y])}
        for x, y in np.argwhere(np.triu(share) > 0).tolist()
    ]
    return sorted(found, key=lambda edge: -float(edge["runs"]))

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

from raytrain.cluster import run_folder
from raytrain.cluster.evaluate import Embedded, embed_split, load_last, opened, relevance_of
from raytrain.cluster.teacher_store import read_teacher
from raytrain.config import Config
from raytrain.data.manifest import Dataset
from raytrain.evaluation.latent import (
    adjacency_distance,
    co_activated,
    distance_test,
    edge_frequency,
    unlike_labels,
)
from raytrain.evaluation.moments import members_of, spread_of
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

    def map(self) -> float:
        """On the test split."""
        return self.split.retrieve(relevance_of(self.dataset)).summary()["mean"]["map"]


def read_run(folder: Path) -> Finished:
    """A run with its last weights: a validation that knows one annotated class alone may select such from before the
    graph.  Raises ValueError where there is no run.
    """
    config, dataset = opened(folder)
    method = load_last(folder, config, dataset)
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
    first = opened(with_graph[0])[1]
    for number, folders in enumerate(zip(with_graph, without, strict=True)):
        ours, plain = (read_run(folder) for folder in folders)
        for run in (ours, plain):
            if run.dataset.fingerprint != first.fingerprint:
                raise ValueError(
                    f"{run.folder} was trained on other data than {with_graph[0]}; compare runs of one data set"
                )
        method, graph = _teacher(ours)
        generator = np.random.default_rng([seed, number])
        rows.append(
            {
                "run": str(ours.folder),
                "without": str(plain.folder),
                "verdict": graph.verdict,
                "edges": sum(int((w > 0).sum()) for w in (method.audio_to_visual, method.visual_to_audio)),
                "nearer": {
                    name: _nearer(ours, plain, partners, resamples=resamples, generator=generator)
                    for name, partners in _partners(ours, method).items()
                },
                "inter_over_without": ours.inter() / plain.inter(),
                "map": ours.map(),
                "map_without": plain.map(),
            }
        )
        graphs.append(cross_modal(len(graph.audio_to_visual)) & (graph.edge_frequency >= ADJACENT))
        curves["with"].append(ours.maps)
        curves["without"].append(plain.maps)
    return {
        "split": SPLIT,
        "dataset": first.manifest.name,
        "synthetic": first.manifest.synthetic,
        "t_teach": ours.config.method["t_teach"],
        "epochs": ours.config.train.epochs,
        "runs": rows,
        "edges": _edges(graphs, first.manifest.classes),
        "adjacency_distance": adjacency_distance(graphs) if len(graphs) > 1 else None,
        "map_over_epochs": curves,
    }


def _teacher(run: Finished) -> tuple[Ili, ClassDependency]:
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
    return method.eval(), trained.graph


def _partners(run: Finished, method: Ili) -> dict[str, Bool[np.ndarray, "n n"]]:
    """[audio visual]: pairs that the graph and the soft labels link, and such as share a true event, label aside."""
    split = run.split
    assert split.labels is not None, "ili trains on labels"
    soft = method.soft_labels({name: torch.from_numpy(x) for name, x in split.features.items()})
    audio, visual = (torch.sigmoid(logits).numpy() for logits in soft.values())
    forth, back = (weights.numpy() > 0 for weights in (method.audio_to_visual, method.visual_to_audio))
    threshold = run.config.method["threshold"]
    unlike = unlike_labels(split.labels, split.labels)
    linked = co_activated(audio, visual, forth, threshold=threshold)
    linked |= co_activated(visual, audio, back, threshold=threshold).T
    found = {"linked": linked & unlike}
    if split.events is not None:
        events = split.events.astype(np.float32)
        found["event in common"] = (events @ events.T > 0) & unlike
    return found


def _nearer(
    ours: Finished,
    plain: Finished,
    partners: Bool[np.ndarray, "n n"],
    *,
    resamples: int,
    generator: np.random.Generator,
) -> dict[str, float] | None:
    """By how much partners lie nearer with the graph; None where there are none."""
    if not partners.any():
        return None
    found = distance_test(
        plain.pair(), ours.pair(), partners, level=0.95, num_resamples=resamples, generator=generator
    )
    return {"mean": found.difference, "low": found.interval.low, "high": found.interval.high}


def _edges(graphs: list[Bool[np.ndarray, "v v"]], classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Adjacent columns and the share of the runs that hold them, most frequent first."""
    share = edge_frequency(graphs)
    names = [f"{name} ({view})" for view in ("audio", "visual") for name in classes]
    found = [
        {"between": [names[x], names[y]], "runs": float(share[x, y])}
        for x, y in np.argwhere(np.triu(share) > 0).tolist()
    ]
    return sorted(found, key=lambda edge: -float(edge["runs"]))

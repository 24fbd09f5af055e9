"""The teacher of a run on disk, and how another run takes it.

    <run>/teacher/step-00000400/   weights.safetensors, state.json, manifest.json: the newest published weights
    <run>/graphs/step-00000400/    graph.safetensors, state.json, manifest.json: one per graph, by its request

Each is written as a checkpoint is: whole or absent, under sha256 sums.  `state.json` of the weights says whose they
are; that of a graph holds its verdict and the digest of its request.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from raytrain.cluster import checkpoint
from raytrain.cluster.checkpoint import DamagedCheckpoint
from raytrain.config import Config
from raytrain.data.manifest import Dataset
from raytrain.graph.dependency import ClassDependency
from raytrain.methods.base import Method
from raytrain.teacher import Kept, fingerprint, graph_facts, graph_of, graph_tensors

log = logging.getLogger(__name__)

TEACHER = "teacher"
GRAPHS = "graphs"
VERSIONS_KEPT = 2


def about(config: Config, dataset: Dataset) -> dict[str, Any]:
    """Whose teacher it is, and what a run that takes it must agree with."""
    return {
        "method": config.method["name"],
        "views": list(config.data.views),
        "classes": list(dataset.manifest.classes),
        "dataset": dataset.manifest.name,
        "fingerprint": dataset.fingerprint,
    }


@dataclass(frozen=True)
class FolderStore:
    """The store of a teacher in the folder of its run."""

    run: Path
    about: Mapping[str, Any]
    """See `about`."""

    def load(self) -> Kept:
        kept = Kept()
        found = checkpoint.latest(self.run / TEACHER)
        if found is not None:
            kept.published = found.state["step"], found.tensors["weights"]
        for path in checkpoint.list_steps(self.run / GRAPHS):
            try:
                found = checkpoint.read(path)
            except DamagedCheckpoint as error:
                log.warning("%s; the graph is made again when it is asked for", error)
                continue
            kept.graphs[found.state["step"]] = found.state["digest"], read_graph(found)
        return kept

    def keep_weights(self, version: int, weights: Mapping[str, Tensor]) -> None:
        folder = self.run / TEACHER
        facts = {"step": version, **self.about}
        checkpoint.save(checkpoint.path_of_step(folder, version), {"weights": weights}, facts)
        checkpoint.prune(folder, VERSIONS_KEPT)

    def keep_graph(self, step: int, digest: str, graph: ClassDependency) -> None:
        facts = {"step": step, "digest": digest, "facts": graph_facts(graph)}
        path = checkpoint.path_of_step(self.run / GRAPHS, step)
        checkpoint.save(path, {"graph": graph_tensors(graph)}, facts)


def settle(run: Path) -> None:
    """Ends what a killed teacher of this run left half written; only while none writes."""
    for part in (TEACHER, GRAPHS):
        checkpoint.settle(run / part)


def read_graph(found: checkpoint.Checkpoint) -> ClassDependency:
    """The graph of a checkpoint that `FolderStore` wrote."""
    return graph_of(found.tensors["graph"], found.state["facts"])


@dataclass(frozen=True)
class TrainedTeacher:
    """The teacher that a run has trained, as another run takes it."""

    weights: Mapping[str, Tensor]
    graph: ClassDependency | None
    fingerprint: str

    def give(self, method: Method) -> None:
        """Into a method that was just built.  Raises ValueError where it has no teacher, or one of other shapes."""
        method.load_teacher(self.weights)
        if self.graph is not None:
            method.adopt(self.graph)


def read_teacher(run: Path, config: Config, dataset: Dataset) -> TrainedTeacher:
    """The last teacher of the run in folder `run`, for a run of this configuration on this data set.

    Raises ValueError where there is none, or one of other data, views or classes.
    """
    found = checkpoint.latest(run / TEACHER) if (run / TEACHER).is_dir() else None
    if found is None:
        raise ValueError(
            f"train.teacher: {run} holds no teacher ({run / TEACHER} is missing); give a finished run of a method "
            "with a teacher, ili or psd"
        )
    theirs, ours = found.state, about(config, dataset)
    if theirs["views"] != ours["views"]:
        raise ValueError(
            f"train.teacher: the teacher of {run} was trained on the views {theirs['views']}, this run trains on "
            f"{ours['views']}; set data.views alike, in the same order"
        )
    if len(theirs["classes"]) != len(ours["classes"]):
        raise ValueError(
            f"train.teacher: the teacher of {run} knows {len(theirs['classes'])} classes, {dataset.path} has "
            f"{len(ours['classes'])}; take a teacher of the same classes"
        )
    if theirs["fingerprint"] != ours["fingerprint"]:
        raise ValueError(
            f"train.teacher: the teacher of {run} was trained on {theirs['dataset']} (fingerprint "
            f"{theirs['fingerprint'][:12]}), this run trains on {ours['dataset']} ({ours['fingerprint'][:12]}); "
            "its train split may hold clips of this test split, so train a teacher on this data set"
        )
    graphs = checkpoint.list_steps(run / GRAPHS)
    graph = read_graph(checkpoint.read(graphs[-1])) if graphs else None
    weights = found.tensors["weights"]
    return TrainedTeacher(weights, graph, fingerprint(weights, graph))

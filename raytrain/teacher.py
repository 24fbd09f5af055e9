"""The shared teacher: slow weights with a version, its soft labels, and the class graphs made of their moments.

A plain object that knows neither Ray nor the methods, so that all that its actor can do is tested without one.
Every call names the step that it belongs to, and a repeated call changes nothing: what is older than what is
held is dropped, and a graph is a pure function of its request, made once and remembered.

What must outlive the process goes into a `Store`; a new `Teacher` on the same store holds the same.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from raytrain.graph.accumulator import MomentAccumulator
from raytrain.graph.dependency import ClassDependency, class_dependency

log = logging.getLogger(__name__)

ARRAYS = (
    "audio_to_visual",
    "visual_to_audio",
    "edge_frequency",
    "direction_frequency",
    "effects",
    "stable",
    "order",
)
"""The arrays of a ClassDependency; the other fields are its facts."""


@dataclass(frozen=True)
class GraphRequest:
    """All that a graph is a function of."""

    step: int
    """Steps done when it was asked for."""
    seed: int
    moments: Mapping[str, np.ndarray]
    """`MomentAccumulator.to_arrays()` of the world."""
    search: Mapping[str, Any]
    """Keywords of `class_dependency`; a seed among them goes before that of the request."""
    init_order: np.ndarray | None = None
    """Order of the graph before it, for a warm start."""

    def digest(self) -> str:
        """sha256 of everything in it: equal digests, equal graphs."""
        found = hashlib.sha256(repr((self.step, self.seed, sorted(self.search.items()))).encode())
        arrays = {**self.moments, "init_order": np.array(-1) if self.init_order is None else self.init_order}
        for name, array in sorted(arrays.items()):
            found.update(f"{name} {array.dtype} {array.shape}".encode())
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()


def make_graph(request: GraphRequest) -> ClassDependency:
    """The graph of a request, in this thread.  Raises ValueError where the moments allow none."""
    moments = MomentAccumulator.from_arrays(dict(request.moments))
    order = None if request.init_order is None else np.array(request.init_order)
    keywords: dict[str, Any] = {"seed": request.seed, **request.search}
    return class_dependency(moments, init_order=order, **keywords)


def graph_tensors(graph: ClassDependency) -> dict[str, Tensor]:
    """The arrays of a graph, for a checkpoint."""
    return {name: torch.from_numpy(np.ascontiguousarray(getattr(graph, name))) for name in ARRAYS}


def graph_facts(graph: ClassDependency) -> dict[str, Any]:
    """The fields of a graph that are no arrays, as JSON takes them."""
    return {
        "verdict": graph.verdict,
        "complete": bool(graph.complete),
        "permuted_edges": int(graph.permuted_edges),
        "false_bound": float(graph.false_bound),
        "frobenius": float(graph.frobenius),
        "num_samples": float(graph.num_samples),
    }


def graph_of(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> ClassDependency:
    """The inverse of `graph_tensors` and `graph_facts`, bit for bit."""
    fields: dict[str, Any] = {name: tensors[name].numpy().copy() for name in ARRAYS}
    return ClassDependency(**fields, **facts)


def fingerprint(weights: Mapping[str, Tensor], graph: ClassDependency | None) -> str:
    """sha256 of the weights and the graph: teachers with the same one give the same soft labels and graph."""
    found = hashlib.sha256()
    parts = {f"weights.{name}": value for name, value in weights.items()}
    if graph is not None:
        found.update(repr(sorted(graph_facts(graph).items())).encode())
        parts |= {f"graph.{name}": value for name, value in graph_tensors(graph).items()}
    for name, value in sorted(parts.items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@runtime_checkable
class Labeller(Protocol):
    """What makes soft labels of slow weights: a method, of which nothing else is asked."""

    def load_teacher(self, state: Mapping[str, Tensor]) -> None: ...
    def soft_labels(self, views: Mapping[str, Float[Tensor, "b _"]]) -> dict[str, Float[Tensor, "b c"]]: ...


@dataclass
class Kept:
    """What a store holds of a teacher."""

    published: tuple[int, Mapping[str, Tensor]] | None = None
    """Version and weights."""
    graphs: dict[int, tuple[str, ClassDependency]] = field(default_factory=dict)
    """By the step of its request: the digest of the request, and the graph."""


@runtime_checkable
class Store(Protocol):
    """Where a teacher outlives its process; what it returns from is durable."""

    def load(self) -> Kept: ...
    def keep_weights(self, version: int, weights: Mapping[str, Tensor]) -> None: ...
    def keep_graph(self, step: int, digest: str, graph: ClassDependency) -> None: ...


class Teacher:
    """The slow weights of the newest step that was published, and the graphs by step.

    store       None: nothing outlives this object
    labeller    makes the method that turns weights into soft labels; it is called when they are first asked for

    Calls may come from several threads: a search for a graph holds nobody up.
    """

    def __init__(self, store: Store | None = None, labeller: Callable[[], Labeller] | None = None):
        self._store, self._make_labeller = store, labeller
        self._kept = Kept() if store is None else store.load()
        self._labeller: Labeller | None = None
        self._labeller_version: int | None = None
        self._publishing, self._making, self._labelling = (threading.Lock() for _ in range(3))
        self._counts = {"publishes": 0, "graphs_made": 0, "soft_label_rows": 0}

    @property
    def version(self) -> int | None:
        """The step of the published weights."""
        return None if self._kept.published is None else self._kept.published[0]

    def publish(self, step: int, weights: Mapping[str, Tensor]) -> dict[str, int | None]:
        """Takes the weights after `step` steps, unless it holds those of this step or a later one; its `state`."""
        with self._publishing:
            if self.version is None or step > self.version:
                if self._store is not None:
                    self._store.keep_weights(step, weights)
                self._kept.published = step, dict(weights)
                self._counts["publishes"] += 1
        return self.state()

    def refresh(self, request: GraphRequest) -> ClassDependency:
        """The graph of a request: made once, remembered, the same however often it is asked for.

        A request of the same step with other moments takes the place of the first: a run that went on from an
        older checkpoint with another number of ranks.  Raises ValueError where the moments allow no graph.
        """
        digest = request.digest()
        with self._making:
            known = self._kept.graphs.get(request.step)
            if known is not None and known[0] == digest:
                return known[1]
            graph = make_graph(request)
            if self._store is not None:
                try:
                    self._store.keep_graph(request.step, digest, graph)
                except OSError as error:  # a graph is there all the same, and can be made again
                    log.warning("the graph of step %d could not be stored (%s)", request.step, error)
            self._kept.graphs[request.step] = digest, graph
            self._counts["graphs_made"] += 1
            return graph

    def soft_labels(self, views: Mapping[str, Float[Tensor, "b _"]]) -> dict[str, Float[Tensor, "b c"]]:
        """Class logits of the published weights by view, float32 arithmetic.

        Raises ValueError where nothing was published yet, or where there is nothing that could make labels.
        """
        if self._make_labeller is None:
            raise ValueError(
                "this teacher holds weights and graphs alone; give it a labeller for soft labels"
            )
        with self._labelling:
            if self._kept.published is None:
                raise ValueError(
                    "nothing was published to this teacher yet; publish weights, or wait for the run"
                )
            version, weights = self._kept.published
            if self._labeller is None:
                self._labeller = self._make_labeller()
            if self._labeller_version != version:
                self._labeller.load_teacher(weights)
                self._labeller_version = version
            with torch.no_grad():
                labels = self._labeller.soft_labels(views)
            self._counts["soft_label_rows"] += len(next(iter(labels.values())))
            return labels

    def newest(self) -> tuple[Mapping[str, Tensor], ClassDependency | None]:
        """The published weights and the newest graph, for a run that starts from them."""
        published = self._kept.published
        return {} if published is None else published[1], self.graph()

    def graph(self, step: int | None = None) -> ClassDependency | None:
        """The graph asked for at a step; of the newest step by default; None where there is none."""
        graphs = self._kept.graphs
        step = max(graphs, default=None) if step is None else step
        return None if step is None or step not in graphs else graphs[step][1]

    def history(self) -> list[int]:
        """The steps of its graphs, oldest first."""
        return sorted(self._kept.graphs)

    def state(self) -> dict[str, int | None]:
        """For the log: version, number of graphs, and what this process has done."""
        return {"version": self.version, "graphs": len(self._kept.graphs), **self._counts}


class GraphFailed(Exception):
    """No graph could be made of a request; the message says why."""


@runtime_checkable
class GraphMaker(Protocol):
    """Who makes graphs for rank 0 of a run, and holds its teacher."""

    def submit(self, request: GraphRequest) -> None:
        """Takes a request and returns at once; the same request again changes nothing."""
        ...

    def result(self, step: int) -> ClassDependency:
        """The graph of the request of a step: waits for it.  Raises GraphFailed."""
        ...

    def publish(self, step: int, weights: Callable[[], Mapping[str, Tensor]], *, last: bool) -> None:
        """Offers the weights after `step` steps; only the last ones of a run must be taken, and are waited for."""
        ...

    def state(self) -> dict[str, float]:
        """What it is doing, for the log; asks nobody."""
        ...


class LocalMaker:
    """A teacher in this process: graphs are made when they are asked for, and only the last weights are kept."""

    def __init__(self, teacher: Teacher | None = None):
        self._teacher = Teacher() if teacher is None else teacher
        self._requests: dict[int, GraphRequest] = {}

    def submit(self, request: GraphRequest) -> None:
        self._requests[request.step] = request

    def result(self, step: int) -> ClassDependency:
        try:
            return self._teacher.refresh(self._requests.pop(step))
        except (ValueError, ArithmeticError) as error:
            raise GraphFailed(str(error)) from error

    def publish(self, step: int, weights: Callable[[], Mapping[str, Tensor]], *, last: bool) -> None:
        if last:
            self._teacher.publish(step, weights())

    def state(self) -> dict[str, float]:
        return {"queue": float(len(self._requests))}

"""A run's actors: the driver's mailbox, and the teacher in a process of its own (`raytrain.teacher.Teacher`).

Calls are at-least-once: Ray repeats a call that the actor's death cut off, which is why every call of the teacher
is idempotent.  A restarted actor holds what its store holds.

Who waits for whom: rank 0 offers weights, and skips them while the last ones are not taken; it asks for one graph at
a time, and waits for it only at the step at which all ranks adopt it.  The other ranks never speak with the actor
in a step.  The actor takes no CPU of Ray's budget, and its search one thread.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import torch
from jaxtyping import Float
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import Tensor

from raytrain.cluster import run_folder
from raytrain.cluster.progress import Mailbox
from raytrain.cluster.teacher_store import FolderStore, TrainedTeacher, about, read_teacher, settle
from raytrain.config import Config
from raytrain.data.manifest import Dataset
from raytrain.graph.dependency import ClassDependency
from raytrain.methods import METHODS, build
from raytrain.methods.base import Method
from raytrain.teacher import ARRAYS, GraphFailed, GraphRequest, Kept, LocalMaker, Teacher, fingerprint

log = logging.getLogger(__name__)

NAMESPACE = "raytrain"
TASK_RETRIES = 10
"""Of one call, each after a death of the actor."""
PENDING_CALLS = 16
"""Of one handle: whoever sends more gets PendingCallsLimitExceeded."""
GRAPH_TIMEOUT_S = 480.0
"""The other ranks wait in a collective, which gives up after train.stuck_seconds."""
LABEL_ROWS = 8192
NICENESS = 5
"""Of the actor's process beside the workers: it has a lag to work in, they do not."""


@dataclass(frozen=True)
class SharedStore:
    """The store of a teacher that several runs share: nothing can be put into it."""

    folder: FolderStore

    def load(self) -> Kept:
        return self.folder.load()

    def keep_weights(self, version: int, weights: Mapping[str, Tensor]) -> None:
        raise ValueError("a shared teacher does not change; publish to the actor of the run itself")

    def keep_graph(self, step: int, digest: str, graph: ClassDependency) -> None:
        raise ValueError("a shared teacher does not change; ask the actor of the run itself for a graph")


class TeacherShell(Teacher):
    """The constructor runs again after every death of the actor."""

    def __init__(self, config: Config, dataset: Dataset, folder: Path, *, shared: bool):
        torch.set_num_threads(1)
        os.nice(NICENESS)
        if not shared:
            settle(folder)
        store = FolderStore(folder, about(config, dataset))
        super().__init__(
            SharedStore(store) if shared else store, lambda: build(config, dataset.manifest).eval()
        )

    def pid(self) -> int:
        """Of the actor's process."""
        return os.getpid()


def _actor_class(**options: Any) -> Any:
    return ray.remote(
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=TASK_RETRIES,
        max_pending_calls=PENDING_CALLS,
        concurrency_groups={"graphs": 1, "labels": 1},
        **options,
    )(TeacherShell)


def teacher_actor(config: Config, dataset: Dataset, folder: Path) -> ActorHandle:
    """The actor of a run's own teacher, on the driver's node if it can; it lives as long as a handle to it does."""
    return _actor_class(scheduling_strategy=_this_node(soft=True)).remote(
        config, dataset, folder, shared=False
    )


def mailbox() -> ActorHandle:
    """The actor of the driver's mailbox, on the driver's own node: the loss of another one is not its end.

    After a death of its process the driver's next call says again what there is to say.
    """
    options: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    return ray.remote(scheduling_strategy=_this_node(soft=False), **options)(Mailbox).remote()


def _this_node(*, soft: bool) -> NodeAffinitySchedulingStrategy:
    """Where the caller runs; Ray would draw any node for an actor without CPUs."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=soft)


def shared_teacher(run: Path, config: Config, dataset: Dataset) -> tuple[ActorHandle, str]:
    """The actor of the teacher that the run in folder `run` has trained, and the teacher's fingerprint.

    Every caller on one cluster gets the same actor, for its name carries the fingerprint.  Raises ValueError where
    a run of `config` on `dataset` cannot take that teacher.
    """
    trained = read_teacher(run, config, dataset)
    handle = _actor_class(
        name=f"teacher-{trained.fingerprint}", namespace=NAMESPACE, get_if_exists=True
    ).remote(run_folder.read_config(run), dataset, run.resolve(), shared=True)
    return handle, trained.fingerprint


def taken_from(handle: ActorHandle, expected: str) -> TrainedTeacher:
    """The shared teacher, as a worker takes it.  Raises ValueError where it is not the one with that fingerprint."""
    weights, graph = ray.get(handle.newest.remote())
    graph = None if graph is None else _writable(graph)
    weights = {name: value.clone() for name, value in weights.items()}
    found = fingerprint(weights, graph)
    if found != expected:
        raise ValueError(
            f"the shared teacher has fingerprint {found[:12]}, the run was started with {expected[:12]}: its folder "
            "has changed since; start a new run"
        )
    return TrainedTeacher(weights, graph, found)


def soft_labels_from(
    handle: ActorHandle, views: Mapping[str, Float[Tensor, "n _"]]
) -> dict[str, Float[Tensor, "n c"]]:
    """Soft labels of any number of rows from an actor, for evaluation and inference; one part at a time."""
    num_rows = len(next(iter(views.values())))
    parts = []
    for start in range(0, num_rows, LABEL_ROWS):
        rows = {name: x[start : start + LABEL_ROWS] for name, x in views.items()}
        parts.append(ray.get(handle.soft_labels.options(concurrency_group="labels").remote(rows)))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def has_teacher(config: Config) -> bool:
    """Whether the configuration's method has slow weights that an actor could hold."""
    return METHODS[config.method["name"]].teacher_state is not Method.teacher_state


class ActorMaker:
    """Rank 0's side of a teacher's actor, of which `actor` is the handle.

    `local` makes the maker that steps in where the actor is gone for good: a graph is a pure function of its
    request, so that the run goes on with the same bits, only slower.
    """

    def __init__(self, actor: Any, local: Callable[[], LocalMaker]):
        self._actor, self._make_local = actor, local
        self._asked: dict[int, tuple[GraphRequest, Any]] = {}
        self._publishing: Any = None
        self._skipped = 0
        self._told: dict[str, int | None] = {}

    def submit(self, request: GraphRequest) -> None:
        call = self._actor.refresh.options(concurrency_group="graphs").remote(request)
        self._asked[request.step] = request, call

    def result(self, step: int) -> ClassDependency:
        request, call = self._asked.pop(step)
        try:
            return _writable(ray.get(call, timeout=GRAPH_TIMEOUT_S))
        except RayTaskError as error:
            raise GraphFailed(str(error.cause)) from error
        except GetTimeoutError as error:
            raise GraphFailed(f"it was not there {GRAPH_TIMEOUT_S:g} s after it was needed") from error
        except RayError as error:
            log.warning("the teacher's actor is gone (%s); rank 0 makes the graph of step %d", error, step)
            local = self._make_local()
            local.submit(request)
            return local.result(step)

    def publish(self, step: int, weights: Callable[[], Mapping[str, Tensor]], *, last: bool) -> None:
        """Skipped while the weights before these are not taken: the next ones will be newer anyway."""
        if not last and self._publishing is not None and not self._taken():
            self._skipped += 1
            return
        self._settle()
        own = weights()
        self._publishing = self._actor.publish.remote(step, own)
        if last and not self._settle():
            self._make_local().publish(step, lambda: own, last=True)

    def _taken(self) -> bool:
        return bool(ray.wait([self._publishing], timeout=0)[0])

    def _settle(self) -> bool:
        """Waits until the weights are durable; False where the actor could not take them."""
        if self._publishing is None:
            return True
        try:
            self._told = ray.get(self._publishing)
        except RayError as error:
            log.warning("the teacher's actor did not take weights (%s)", error)
            return False
        finally:
            self._publishing = None
        return True

    def state(self) -> dict[str, float]:
        """Calls that are not done, the version that the actor holds, and weights that were skipped."""
        if self._publishing is not None and self._taken():
            self._settle()
        told = {name: float(value) for name, value in self._told.items() if value is not None}
        queue = len(self._asked) + (self._publishing is not None)
        return {**told, "queue": float(queue), "skipped": float(self._skipped)}


def _writable(graph: ClassDependency) -> ClassDependency:
    """What comes out of the object store cannot be written to."""
    arrays: dict[str, Any] = {name: getattr(graph, name).copy() for name in ARRAYS}
    return replace(graph, **arrays)

"""Who trains trials: processes that live as long as the search (Ray actors), or this one."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray.exceptions import RayActorError, RayTaskError

from raytrain.cluster.local_ray import local_ray
from tune.trials import Job, Reached, Worker

OBJECT_STORE_BYTES = 2**27
"""What travels are configurations and scores."""


@dataclass(frozen=True)
class Failed:
    """A trial that raised, or whose process ended."""

    number: int
    error: str


class Pool(Protocol):
    """Trains as many jobs at a time as it has slots."""

    slots: int

    def submit(self, job: Job, until: int) -> None:
        """Advances a job; it must not be under way already."""

    def wait(self) -> Reached | Failed:
        """What becomes known next."""

    def drop(self, job: Job) -> None:
        """Ends a job that is not under way: its slot is free."""


class Here:
    """One job at a time, in this process."""

    slots = 1

    def __init__(self, data: str, *, threads: int, device: str):
        self._worker = Worker(data, threads, device)
        self._due: deque[tuple[Job, int]] = deque()

    def submit(self, job: Job, until: int) -> None:
        self._due.append((job, until))

    def wait(self) -> Reached | Failed:
        job, until = self._due.popleft()
        try:
            return self._worker.advance(job, until)
        except (ValueError, RuntimeError) as error:
            self._worker.drop(job)
            return Failed(job.number, one_line(error))

    def drop(self, job: Job) -> None:
        self._worker.drop(job)


@dataclass(frozen=True)
class Resources:
    """Of one trial."""

    threads: int
    gpus: float


class Actors:
    """One long-lived Ray actor per slot; an actor that ends is replaced, and what it did counts as failed."""

    def __init__(self, data: str, slots: int, resources: Resources):
        self.slots = slots
        self._data, self._resources = data, resources
        self._idle = [self._actor() for _ in range(slots)]
        self._of: dict[int, Any] = {}  # actor by trial, as long as the trial holds it
        self._under_way: dict[Any, Job] = {}

    def _actor(self) -> Any:
        kind = ray.remote(num_cpus=self._resources.threads, num_gpus=self._resources.gpus)(Worker)
        device = "cuda" if self._resources.gpus else "cpu"
        return kind.remote(self._data, self._resources.threads, device)

    def submit(self, job: Job, until: int) -> None:
        actor = self._of.get(job.number) or self._idle.pop()
        self._of[job.number] = actor
        self._under_way[actor.advance.remote(job, until)] = job

    def wait(self) -> Reached | Failed:
        (done,), _ = ray.wait(list(self._under_way), num_returns=1)
        job = self._under_way.pop(done)
        try:
            found: Reached = ray.get(done)
        except RayTaskError as error:
            self.drop(job)
            return Failed(job.number, one_line(error.cause))
        except RayActorError as error:
            del self._of[job.number]
            self._idle.append(self._actor())
            return Failed(job.number, f"its process ended: {one_line(error)}")
        if found.ended:
            self._idle.append(self._of.pop(job.number))
        return found

    def drop(self, job: Job) -> None:
        actor = self._of.pop(job.number)
        actor.drop.remote(job)
        self._idle.append(actor)


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:500]


@contextmanager
def actors(data: str, slots: int, resources: Resources) -> Iterator[Actors]:
    """A pool on the Ray that runs already, the cluster of RAY_ADDRESS, or a local one for as long as the block lasts.

    Raises ValueError where the cluster can never hold so many trials.
    """
    with local_ray(slots * resources.threads, OBJECT_STORE_BYTES):
        has = ray.cluster_resources()
        for name, each in (("CPU", resources.threads), ("GPU", resources.gpus)):
            fit = int(has.get(name, 0) / each) if each else slots
            if fit < 1:
                raise ValueError(
                    f"a trial needs {each:g} {name}, Ray has {has.get(name, 0):g}; lower what a trial takes"
                )
            slots = min(slots, fit)
        yield Actors(data, slots, resources)

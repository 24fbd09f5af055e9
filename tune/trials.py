"""A trial in this process: a run that is stepped from rung to rung, on rows that stay in memory between trials."""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from raytrain.cluster.allocator import keep_freed_memory
from raytrain.cluster.alone import Held
from raytrain.cluster.sources import Resident
from raytrain.cluster.training import Training
from raytrain.config import Config
from raytrain.data.manifest import Dataset, open_dataset


@dataclass(frozen=True)
class Job:
    """A trial as it travels to a worker."""

    number: int
    config: Config
    """Resolved."""
    folder: Path
    keeps: Literal["nothing", "best weights"] = "nothing"
    """What stays in the folder when it has ended."""


@dataclass(frozen=True)
class Reached:
    """Where a trial is."""

    number: int
    epoch: int
    score: float
    """The best of all its validations."""
    curve: list[float]
    """The score of every validation."""
    ended: bool
    """By its own number of epochs, or because it no longer improved."""
    busy_s: float
    """Seconds of training and validation, of all calls."""
    diverged: str | None = None
    """Why it cannot go on: a gradient or a score that is no number."""


class TrialTraining(Training):
    """Checkpoints while it runs, to be resumed from; nothing is kept of a trial that has ended."""

    def save(self) -> None:
        if not self.finished:
            super().save()


@dataclass
class _Running:
    job: Job
    training: Training
    source: Resident
    busy_s: float = 0.0


class Worker:
    """Trains one trial at a time.  Lives as long as the search."""

    def __init__(self, data: str, threads: int, device: str):
        torch.set_num_threads(threads)
        keep_freed_memory()
        self._dataset: Dataset = open_dataset(data)
        self._device = torch.device(device)
        self._held: dict[tuple[Any, ...], Held] = {}
        self._running: _Running | None = None

    def advance(self, job: Job, until: int) -> Reached:
        """Trains the trial until it has done so many epochs, from where it is."""
        if self._running is None or self._running.job.number != job.number:
            self._running = None
            kind = TrialTraining if job.keeps == "nothing" else Training
            training, source = self._held_for(job.config).prepare(job.config, job.folder, kind)
            self._running = _Running(job, training, source)
        running = self._running
        validation, start = self._held_for(job.config).validation, time.perf_counter()
        diverged = None
        try:
            running.training.run(running.source, validation, None, until=until)
        except FloatingPointError as error:
            diverged = str(error)
        running.busy_s += time.perf_counter() - start
        state, name = running.training.state, validation.selects_by(running.training.evaluated)
        curve = [record[name] for record in state.history]
        if not all(map(math.isfinite, curve)):
            diverged = f"a validation score of epoch {len(curve)} is no number"
        ended = running.training.finished or diverged is not None
        if ended:
            self._running = None
            if job.keeps == "nothing":
                shutil.rmtree(job.folder, ignore_errors=True)
        return Reached(
            job.number,
            epoch=state.history[-1]["epoch"] if state.history else 0,
            score=state.best_score if diverged is None else -math.inf,
            curve=curve,
            ended=ended,
            busy_s=running.busy_s,
            diverged=diverged,
        )

    def drop(self, job: Job) -> None:
        """Ends a trial: its checkpoints go."""
        self._running = None
        shutil.rmtree(job.folder, ignore_errors=True)

    def _held_for(self, config: Config) -> Held:
        key = (config.data.views, config.data.annotation)
        if key not in self._held:
            self._held[key] = Held.of(config, self._dataset, self._device)
        return self._held[key]

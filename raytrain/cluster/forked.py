"""A run on forked ranks that can be killed: what a Ray Train worker runs, less Ray, on gloo over a file.

Forking takes milliseconds where Ray Train takes ten seconds, so hundreds of kills are affordable: for
benchmarks/resume.py, benchmarks/faults.py and tests.  What is killed here was started here, and is killed by its pid.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from raytrain.cluster.alone import local_teacher
from raytrain.cluster.preemption import heard_sigterm, on_sigterm
from raytrain.cluster.schedule import step_seed
from raytrain.cluster.sources import Resident, batch_of
from raytrain.cluster.training import Training
from raytrain.cluster.validation import Validation
from raytrain.config import Config
from raytrain.data.manifest import Dataset, open_dataset
from raytrain.data.reading import Reading
from raytrain.methods import build, resolve
from raytrain.types import Batch

STEP, EXECUTED, FIRST_AT, FIRST_CPU, CPU = range(5)
"""Slots of what rank 0 shows: the step it is at, steps begun in all, when the first of this process began, the CPU
seconds of the process until then, and until the last one began."""
DONE = 0
FAILED = 70
"""Exit code of a rank that refused with a named error, which lies in a file."""


class Watched:
    """Batches of a source; shows each of them to the parent."""

    def __init__(self, source: Resident, seen: np.ndarray):
        self._source, self._seen = source, seen

    def batches(self, first_step: int) -> Iterator[Batch]:
        for step, batch in enumerate(self._source.batches(first_step), first_step):
            self._seen[CPU] = time.process_time()
            if self._seen[FIRST_AT] == 0:
                self._seen[FIRST_AT], self._seen[FIRST_CPU] = time.monotonic(), time.process_time()
            self._seen[STEP] = step
            self._seen[EXECUTED] += 1
            yield batch


def prepared(
    config: Config, dataset: Dataset, folder: Path, rank: int, ranks: int
) -> tuple[Training, Resident, Validation]:
    """One rank of a run of a resolved configuration, where `folder` has it."""
    device = torch.device("cpu")
    torch.use_deterministic_algorithms(config.train.deterministic)
    torch.manual_seed(step_seed(config.train.seed, -1, 0))
    reading = Reading.of(dataset, "train", config)
    method = build(config, dataset.manifest)
    order = reading.order(config)
    maker, given = local_teacher(config, dataset, folder, method) if rank == 0 else (None, None)
    training = Training(config, method, order, folder, device, maker=maker, given=given)
    rows = batch_of(reading.whole())
    validation = Validation(Reading.of(dataset, "validation", config), device)
    return training, Resident(rows, order, rank, ranks, device), validation


@dataclass
class World:
    """Ranks that train into a folder; the parent's view of them."""

    config: Config
    dataset: str
    folder: Path
    ranks: int = 1
    collective_timeout_s: float = 60.0
    in_child: Callable[[int], None] | None = None
    """Called in each rank before it trains: a fault to be injected."""
    processes: list[BaseProcess] = field(default_factory=list)
    seen: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        shared = multiprocessing.get_context("fork").RawArray("d", 5)
        self.seen = np.frombuffer(shared, dtype=np.float64)
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def step(self) -> int:
        return int(self.seen[STEP])

    def start(self) -> None:
        self.seen[STEP], self.seen[FIRST_AT] = -1, 0
        store = tempfile.mktemp(prefix="store-", dir=self.folder.parent)
        fork = multiprocessing.get_context("fork")
        self.processes = [
            fork.Process(target=self._rank, args=(rank, store), daemon=True) for rank in range(self.ranks)
        ]
        for process in self.processes:
            process.start()

    def _rank(self, rank: int, store: str) -> None:
        code = FAILED
        try:
            on_sigterm()
            torch.set_num_threads(1)
            if self.ranks > 1:
                dist.init_process_group(
                    "gloo",
                    init_method=f"file://{store}",
                    rank=rank,
                    world_size=self.ranks,
                    timeout=timedelta(seconds=self.collective_timeout_s),
                )
            if self.in_child is not None:
                self.in_child(rank)
            dataset = open_dataset(self.dataset)
            config = resolve(self.config, dataset.manifest)
            if config.data.verify == "sha256":
                dataset.verify("train")
                dataset.verify("validation")
            training, source, validation = prepared(config, dataset, self.folder, rank, self.ranks)
            watched = Watched(source, self.seen) if rank == 0 else source
            training.run(watched, validation, None, listen=heard_sigterm)
            code = DONE
        except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
            self.said(rank).write_text(f"{type(error).__name__}: {error}")
        finally:
            os._exit(code)

    def said(self, rank: int = 0) -> Path:
        """Where a rank that failed left its words."""
        return self.folder.parent / f"{self.folder.name}-said-{rank}"

    def wait(self, seconds: float = 120.0) -> int:
        """The worst exit code of the ranks; all of them have ended."""
        give_up = time.monotonic() + seconds
        while any(process.is_alive() for process in self.processes) and time.monotonic() < give_up:
            if any(process.exitcode not in (None, DONE) for process in self.processes):
                self._end(grace=5.0)  # as Ray does: the group falls with one of its ranks
            time.sleep(0.005)
        self._end(grace=0.0)
        return max(abs(process.exitcode or 0) for process in self.processes)

    def _end(self, grace: float) -> None:
        give_up = time.monotonic() + grace
        while any(process.is_alive() for process in self.processes) and time.monotonic() < give_up:
            time.sleep(0.005)
        for process in self.processes:
            if process.is_alive():
                os.kill(process.pid or 0, signal.SIGKILL)
            process.join()

    def kill_at(self, step: int, rank: int = 0, number: int = signal.SIGKILL, after_s: float = 0.0) -> bool:
        """Sends a signal to a rank once rank 0 has begun that step; False where the run ended before."""
        process = self.processes[rank]
        while self.step < step and process.is_alive():
            time.sleep(0.0005)
        time.sleep(after_s)
        if not process.is_alive():
            return False
        os.kill(process.pid or 0, number)
        return True


def finish(world: World, tries: int = 3) -> None:
    """Trains to the end.  Raises RuntimeError with what the ranks said where it does not get there."""
    for _ in range(tries):
        world.start()
        if world.wait() == DONE:
            return
    said = [world.said(rank).read_text() for rank in range(world.ranks) if world.said(rank).exists()]
    raise RuntimeError("; ".join(said) or "the ranks died")

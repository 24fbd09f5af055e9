"""Small searches for tests: trials that a formula trains, or real ones on a small data set."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optuna.study import Study

from raytrain.data.manifest import Dataset
from tune.driver import Base, Search
from tune.rungs import Rungs
from tune.sampling import Memoryless, SamplerName
from tune.space import SPACES, Space
from tune.storage import Journal, open_study
from tune.trials import Job, Reached
from tune.workers import Failed

VALUES = {
    "data": {"batch_size": 40},
    "method": {"name": "metric"},
    "train": {"epochs": 9, "precision": "float32"},
}


class Killed(BaseException):
    """Stands for SIGKILL of the driver."""


class Formula:
    """A pool whose trials have the score of a formula: deterministic, at once."""

    def __init__(self, slots: int = 1, fails: Callable[[Job], str | None] = lambda job: None):
        self.slots, self._fails = slots, fails
        self._due: deque[tuple[Job, int]] = deque()
        self.submitted: list[tuple[int, int]] = []
        self.dropped: list[int] = []

    def submit(self, job: Job, until: int) -> None:
        assert len(self._due) < self.slots
        assert job.number not in {other.number for other, _ in self._due}
        self.submitted.append((job.number, until))
        self._due.append((job, until))

    def wait(self) -> Reached | Failed:
        job, until = self._due.popleft()
        error = self._fails(job)
        if error is not None:
            return Failed(job.number, error)
        lr, dropout = job.config.optim.lr, job.config.model.dropout
        score = 1 / (1 + abs(lr - 3e-3) * 500) - 0.2 * dropout
        curve = [score * (1 - 0.5**epoch) for epoch in range(1, until + 1)]
        return Reached(job.number, until, curve[-1], curve, until == job.config.train.epochs, 0.1 * until)

    def drop(self, job: Job) -> None:
        self.dropped.append(job.number)


def small_search(
    folder: Path,
    dataset: Dataset,
    *,
    num_trials: int,
    sampler: SamplerName = "tpe",
    rungs: Rungs | None = None,
    space: Space = SPACES["metric"],
    slots: int = 1,
    objectives: tuple[Any, ...] = ("map",),
    values: dict[str, Any] = VALUES,
) -> Search:
    """A search as `whole.run_search` makes it."""
    folder.mkdir(parents=True, exist_ok=True)
    memoryless = Memoryless(sampler, seed=7, startup=4, parallel=slots > 1, common=space.keys())
    directions = ["maximize" if name == "map" else "minimize" for name in objectives]
    study: Study = open_study(folder, memoryless, directions)  # type: ignore[arg-type]
    values = {**values, "data": {**values.get("data", {}), "path": dataset.path}}
    return Search(
        folder=folder,
        journal=Journal(folder / "journal.jsonl"),
        study=study,
        space=space,
        fixed={},
        base=Base(values, dataset.manifest),
        objectives=objectives,
        rungs=rungs,
        epochs=9,
        num_trials=num_trials,
        counts_stopped=sampler == "gp",
    )

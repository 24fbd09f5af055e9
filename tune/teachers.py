"""Teachers that trials share: those that differ only in what the student is trained with take one teacher and graph.

A few teachers are drawn from the ranges of the keys that a teacher depends on, the first is the default, and each is
trained once, by a run of its own that ends when its graph is made.  A trial then chooses one of them
(`train.teacher`) and draws the rest.  A teacher lies in a folder that is called by the fingerprint of its parameters.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tune.driver import Base
from tune.space import TEACHER_KEYS, Choice, Space, suggest
from tune.storage import Journal
from tune.trials import Job
from tune.workers import Failed, Pool

TEACHERS = "teachers"
KEY = "train.teacher"
SHAPES = (
    "model.hidden",
    "model.embedding",
    "model.input_dropout",
    "method.teacher_hidden",
    "method.teacher_input_dropout",
)
"""Keys that shape the towers of a teacher: a run that takes it has the same."""
FIRST_JOB = -1_000_000


@dataclass(frozen=True)
class SharedTeacher:
    """What a teacher is trained with, and where it lies."""

    values: Mapping[str, Any]
    """By key, those that were drawn; none for the default."""
    epochs: int
    """That it is taught for."""
    folder: Path

    def run_values(self) -> dict[str, Any]:
        """Of the run that trains it: one epoch more than it is taught for, in which the graph is made."""
        own = {key: value for key, value in self.values.items() if key != "method.t_teach"}
        whole = self.epochs + 1
        return {**own, "train.epochs": whole, "method.t_teach": self.epochs / whole, "train.patience": None}

    def student_values(self) -> dict[str, Any]:
        """Of a run that takes it: towers of its shape, and no graph of its own before the last epoch."""
        shapes = {key: value for key, value in self.values.items() if key in SHAPES}
        return {**shapes, "method.t_teach": 0.99}


class _AtRandom:
    """Draws each value by itself."""

    def __init__(self, generator: np.random.Generator):
        self._generator = generator

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        if log:
            return float(np.exp(self._generator.uniform(np.log(low), np.log(high))))
        return float(self._generator.uniform(low, high))

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        return round(self.suggest_float(name, low - 0.49, high + 0.49, log=log))

    def suggest_categorical(self, name: str, choices: tuple[str, ...]) -> Any:
        return str(self._generator.choice(choices))


def draw_teachers(
    base: Base, space: Space, fixed: Mapping[str, Any], *, count: int, seed: int, epochs: int, folder: Path
) -> list[SharedTeacher]:
    """The default and `count - 1` others, the same for the same seed; fewer where nothing of a teacher is open."""
    keys = TEACHER_KEYS[base.values["method"]["name"]]
    of_teacher = {key: range_ for key, range_ in space.items() if key in keys or key == "optim.lr"}
    found: dict[str, SharedTeacher] = {}
    for k in range(count):
        values = suggest(_AtRandom(np.random.default_rng((seed, k))), of_teacher, fixed) if k else {}
        config = base.config(values)
        taught = min(max(1, round(config.method["t_teach"] * epochs)), epochs - 1)
        text = json.dumps(
            [{name: config.model_dump()[name] for name in ("data", "model", "optim", "method")}, taught]
        )
        name = hashlib.sha256(text.encode()).hexdigest()[:12]
        found.setdefault(name, SharedTeacher(values, taught, (folder / TEACHERS / name).resolve()))
    return list(found.values())


def student_space(space: Space, method: str, teachers: list[SharedTeacher]) -> dict[str, Any]:
    """The space of trials that take one of the teachers: what only a teacher depends on is left out."""
    rest = {key: range_ for key, range_ in space.items() if key not in TEACHER_KEYS[method]}
    return {KEY: Choice({teacher.folder.name: str(teacher.folder) for teacher in teachers}), **rest}


def train_teachers(
    base: Base, teachers: list[SharedTeacher], journal: Journal, pool: Pool, told: Callable[[str], None]
) -> float:
    """Trains those that the journal does not have; returns the seconds of training of all.

    Raises ValueError where a teacher fails.
    """
    seconds = {found["teacher"]: found["busy_s"] for found in journal.of("teacher")}
    waiting = [teacher for teacher in reversed(teachers) if teacher.folder.name not in seconds]
    running: dict[int, SharedTeacher] = {}
    while waiting or running:
        while waiting and len(running) < pool.slots:
            teacher = waiting.pop()
            number = FIRST_JOB - len(waiting)
            running[number] = teacher
            config = base.config(teacher.run_values())
            pool.submit(Job(number, config, teacher.folder, keeps="best weights"), teacher.epochs + 1)
        found = pool.wait()
        teacher = running.pop(found.number)
        name = teacher.folder.name
        if isinstance(found, Failed) or found.diverged is not None:
            why = found.error if isinstance(found, Failed) else found.diverged
            raise ValueError(
                f"teacher {name} failed: {why}; go on with --resume, or search with --teachers 0"
            )
        seconds[name] = found.busy_s
        journal.add(
            "teacher", teacher=name, values=dict(teacher.values), epochs=teacher.epochs, busy_s=found.busy_s
        )
        told(f"teacher {name}: {teacher.epochs} epochs in {found.busy_s:.1f} s of training")
    return sum(seconds[teacher.folder.name] for teacher in teachers)


def saving(num_trials: int, num_teachers: int, seconds: float) -> str:
    """In words: what sharing saved against a teacher for each trial."""
    own = seconds / num_teachers * num_trials
    return (
        f"{num_trials} trials shared {num_teachers} teachers: {seconds:.1f} s of teaching instead of about "
        f"{own:.1f} s, {max(0.0, own - seconds):.1f} s saved"
    )

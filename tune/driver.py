"""The loop of a search: ask, train to the next rung, decide, tell; and how it goes on after it was killed.

What happened is written to the journal first and told to Optuna then, so that whatever is missing there after a kill
can be told again.  A trial that was running is run again from its last checkpoint, with the parameters that it has.
"""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.study import Study
from optuna.trial import TrialState

from raytrain.config import Config, override, validate
from raytrain.data.manifest import Manifest
from raytrain.methods import resolve
from tune.rungs import Rungs
from tune.space import Range, Space, ranges_of, suggest
from tune.storage import TRIALS, Direction, Journal
from tune.trials import Job, Reached
from tune.workers import Failed, Pool

Objective = Literal["map", "time", "size"]
DIRECTIONS: Mapping[Objective, Direction] = {"map": "maximize", "time": "minimize", "size": "minimize"}
END_STATES = {"complete": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}
ATTEMPTS = 2
"""Of a trial that fails."""


@dataclass(frozen=True)
class Base:
    """What all trials share: the configuration that the values of a trial are put into."""

    values: Mapping[str, Any]
    """Nested, as the user gave them."""
    manifest: Manifest
    with_teacher: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Values that go with a shared teacher, by its folder."""

    def config(self, values: Mapping[str, Any]) -> Config:
        """Resolved.  Raises ValueError where values do not go together."""
        nested = json.loads(json.dumps(self.values))
        for key, value in {**self.with_teacher.get(values.get("train.teacher", ""), {}), **values}.items():
            override(nested, key.split("."), value)
        return resolve(validate(Config, nested), self.manifest)


@dataclass
class Trial:
    """A trial as the driver knows it."""

    number: int
    values: dict[str, Any]
    epoch: int = 0
    score: float = -math.inf
    curve: list[float] = field(default_factory=list)
    busy_s: float = 0.0
    state: Literal["running", "complete", "stopped", "failed"] = "running"
    why: str = ""

    @property
    def ended(self) -> bool:
        return self.state != "running"


@dataclass
class Search:
    """Trials until there are `num_trials`."""

    folder: Path
    journal: Journal
    study: Study
    space: Space
    fixed: Mapping[str, Any]
    base: Base
    objectives: tuple[Objective, ...]
    rungs: Rungs | None
    """None: every trial trains to its end."""
    epochs: int
    num_trials: int
    counts_stopped: bool
    """Whether the sampler learns from stopped trials only if they are told as complete."""
    default: Mapping[str, Any] = field(default_factory=dict)
    """Values of the default that the best is compared with."""
    told: Callable[[Trial], None] = lambda trial: None
    """Hears of every trial that moved."""
    on_begin: Callable[[Mapping[int, Trial]], None] = lambda trials: None
    """Hears once of the trials that there are already."""
    trials: dict[int, Trial] = field(default_factory=dict, init=False)
    _asked: dict[int, optuna.Trial] = field(default_factory=dict, init=False)

    def run(self, pool: Pool) -> None:
        """Returns when there are `num_trials`, each ended."""
        due = deque(self.replayed())
        self.on_begin(self.trials)
        failed = Counter(found["trial"] for found in self.journal.of("failed"))
        jobs: dict[int, Job] = {}
        while True:
            while len(jobs) < pool.slots and (number := self.next_trial(due)) is not None:
                trial = self.trials[number]
                try:
                    config = self.base.config(trial.values)
                except ValueError as error:
                    self.end(trial, "failed", str(error))
                    continue
                jobs[number] = Job(number, config, self.folder / TRIALS / f"{number:05d}")
                self.told(trial)
                pool.submit(jobs[number], self._until(0))
            if not jobs:
                return
            found = pool.wait()
            trial, job = self.trials[found.number], jobs[found.number]
            if isinstance(found, Failed):
                del jobs[found.number]
                self.journal.add("failed", trial=found.number, error=found.error)
                failed[found.number] += 1
                if failed[found.number] < ATTEMPTS:
                    due.append(found.number)
                else:
                    self.end(trial, "failed", found.error)
            elif self._goes_on(trial, found):
                pool.submit(job, self._until(found.epoch))
            else:
                del jobs[found.number]
                if not found.ended:
                    pool.drop(job)

    def _until(self, epoch: int) -> int:
        return self.epochs if self.rungs is None else self.rungs.after(epoch)

    def next_trial(self, due: deque[int]) -> int | None:
        """The number of the trial to run now: one that was interrupted, or a new one while there are to be more."""
        if due:
            return due.popleft()
        if len(self.trials) >= self.num_trials:
            return None
        asked = self.study.ask()
        return self._started(asked).number

    def _started(self, asked: optuna.Trial) -> Trial:
        values = json.loads(json.dumps(suggest(asked, self.space, self.fixed)))  # as the journal has them
        trial = Trial(asked.number, values)
        self.trials[asked.number], self._asked[asked.number] = trial, asked
        self.journal.add("started", trial=asked.number, values=values)
        return trial

    def _goes_on(self, trial: Trial, found: Reached) -> bool:
        trial.epoch, trial.score, trial.curve = found.epoch, found.score, found.curve
        trial.busy_s = round(found.busy_s, 3)
        if found.diverged is not None:
            self.end(trial, "stopped", found.diverged)
            return False
        goes_on = self.rungs is None or self.rungs.decide(trial.number, found.epoch, found.score) == "go on"
        if found.ended:
            self.end(trial, "complete", "")
        elif not goes_on:
            self.end(trial, "stopped", f"not among the best 1/{self.rungs.factor:g} at its rung")  # type: ignore[union-attr]
        else:
            self.journal.add("rung", trial=trial.number, epoch=found.epoch, score=found.score)
            self.told(trial)
        return not trial.ended

    def end(self, trial: Trial, state: Literal["complete", "stopped", "failed"], why: str) -> None:
        """A trial has ended: into the journal, then to Optuna."""
        trial.state, trial.why = state, why
        self.journal.add(
            "ended",
            trial=trial.number,
            state=state,
            why=why,
            epoch=trial.epoch,
            score=trial.score if math.isfinite(trial.score) else None,
            curve=[score if math.isfinite(score) else None for score in trial.curve],
            busy_s=trial.busy_s,
        )
        self._tell(trial)
        self.told(trial)

    def _tell(self, trial: Trial) -> None:
        """Optuna hears how a trial ended."""
        asked = self._asked[trial.number]
        for name, value in (("epochs", trial.epoch), ("seconds", trial.busy_s), ("why", trial.why)):
            asked.set_user_attr(name, value)
        state = END_STATES[trial.state]
        scored = bool(trial.curve) and math.isfinite(trial.score)
        if len(self.objectives) == 1 and scored:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # it may have been told before a kill
                asked.report(trial.score, trial.epoch)
        if state == TrialState.PRUNED and self.counts_stopped and scored:
            state = TrialState.COMPLETE
        values = None
        if state == TrialState.COMPLETE:
            values = [self.value(trial, objective) for objective in self.objectives]
        self.study.tell(asked, values, state=state)

    def value(self, trial: Trial, objective: Objective) -> float:
        """Of an ended trial: validation MAP, seconds of an epoch, or size of the embedding."""
        if objective == "map":
            return trial.score
        if objective == "time":
            return trial.busy_s / trial.epoch
        return float(self.base.config(trial.values).model.embedding)

    def replayed(self) -> list[int]:
        """What the journal says has happened; returns the trials that were interrupted, oldest first."""
        known = {frozen.number: frozen for frozen in self.study.get_trials(deepcopy=False)}
        started: dict[int, dict[str, Any]] = {}
        ended: dict[int, dict[str, Any]] = {}
        for found in self.journal.events:
            if found["what"] == "started":
                started[found["trial"]] = found
                ended.pop(found["trial"], None)
            elif found["what"] == "ended":
                ended[found["trial"]] = found
            if found["what"] in ("rung", "ended") and found["score"] is not None and self.rungs is not None:
                self.rungs.decide(found["trial"], found["epoch"], found["score"])
        interrupted = []
        for number, frozen in known.items():
            asked = optuna.Trial(self.study, frozen._trial_id)
            if number not in started:  # killed while its parameters were drawn: draws them again, the same
                self._started(asked)
            else:
                self.trials[number] = Trial(number, started[number]["values"])
                self._asked[number] = asked
            trial = self.trials[number]
            if number not in ended:
                interrupted.append(number)
                continue
            last = ended[number]
            trial.epoch, trial.state, trial.why = last["epoch"], last["state"], last["why"]
            trial.score = -math.inf if last["score"] is None else last["score"]
            trial.curve = [math.nan if score is None else score for score in last["curve"]]
            trial.busy_s = last["busy_s"]
            if not frozen.state.is_finished():
                self._tell(trial)
        return interrupted

    def maximises(self, objective: Objective) -> bool:
        return DIRECTIONS[objective] == "maximize"

    def range_of(self, key: str) -> Range:
        """Of a key of the space, or of one that a choice brings."""
        return dict(ranges_of(self.space))[key]

    @property
    def best(self) -> Trial | None:
        """By validation score; None where none has one."""
        scored = [trial for trial in self.trials.values() if math.isfinite(trial.score)]
        return max(scored, key=lambda trial: trial.score, default=None)

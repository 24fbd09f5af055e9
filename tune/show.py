"""What a search looks like while it runs: a live table on a terminal, else a line per trial."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tune.driver import Trial

ROWS = 12


class Shown:
    """Hears of trials as they move."""

    def __init__(self, console: Console, num_trials: int, epochs: int):
        self._console, self._num_trials, self._epochs = console, num_trials, epochs
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._trials: dict[int, Trial] = {}
        self._ended_before: int | None = None
        self._since = time.monotonic()

    def __enter__(self) -> Shown:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *unused: object) -> None:
        if self._live is not None:
            self._live.stop()

    def begin(self, trials: Mapping[int, Trial]) -> None:
        """Before the first trial moves: what earlier calls have done."""
        self._trials = dict(trials)
        self._ended_before = sum(trial.ended for trial in trials.values())
        self._since = time.monotonic()

    def __call__(self, trial: Trial) -> None:
        self._trials[trial.number] = trial
        if self._live is not None:
            self._live.update(Group(self._table(), Text(self.line())), refresh=True)
        elif trial.ended:
            self._console.print(f"{self.line()}  |  {described(trial)}", highlight=False)

    def line(self) -> str:
        """How far, the best so far, and how long it may take."""
        ended = sum(trial.ended for trial in self._trials.values())
        parts = [f"{ended}/{self._num_trials} trials"]
        best = max((t for t in self._trials.values() if math.isfinite(t.score)), key=_score, default=None)
        if best is not None:
            parts.append(f"best {best.score:.4f} (trial {best.number})")
        now = ended - (self._ended_before or 0)
        if now and ended < self._num_trials:
            left = (time.monotonic() - self._since) / now * (self._num_trials - ended)
            parts.append(f"about {duration(left)} left")
        return ", ".join(parts)

    def _table(self) -> Table:
        table = Table("trial", "state", "epochs", "validation", "values", expand=True)
        running = [trial for trial in self._trials.values() if not trial.ended]
        best = sorted((t for t in self._trials.values() if t.ended), key=_score, reverse=True)
        for trial in [*best[: max(1, ROWS - len(running))], *running]:
            score = f"{trial.score:.4f}" if math.isfinite(trial.score) else ""
            state = trial.state if trial.state != "failed" else f"[red]{trial.state}"
            table.add_row(
                str(trial.number), state, f"{trial.epoch}/{self._epochs}", score, values_of(trial.values)
            )
        return table


def _score(trial: Trial) -> float:
    return trial.score


def described(trial: Trial) -> str:
    """A trial in one line."""
    score = f"{trial.score:.4f}" if math.isfinite(trial.score) else "no score"
    why = f" ({trial.why})" if trial.state == "failed" or not math.isfinite(trial.score) else ""
    return f"trial {trial.number} {trial.state}{why}: {score} after {trial.epoch} epochs, {values_of(trial.values)}"


def values_of(values: Mapping[str, Any]) -> str:
    """Values of a trial, short: keys without their section."""
    return " ".join(f"{key.rpartition('.')[2]}={number(value)}" for key, value in values.items())


def number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, (list, tuple)):
        return "x".join(map(str, value))
    return "off" if value is None else str(value).rpartition("/")[2]


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def each(hearers: Iterable[Any]) -> Any:
    """One who tells all of them."""
    of = list(hearers)

    def told(trial: Trial) -> None:
        for hearer in of:
            hearer(trial)

    return told

"""How the driver learns where the workers are, and how it shows it."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Mailbox:
    """What rank 0 posted and the driver has not read; an actor of its own, so that nobody waits for anybody.

    Only the newest step is kept, and every validation.
    """

    def __init__(self) -> None:
        self._step: dict[str, Any] | None = None
        self._validations: list[dict[str, Any]] = []
        self._stop = False

    def post(self, message: dict[str, Any]) -> bool:
        """Whether the driver was told to end."""
        if "validation" in message:
            self._validations.append(message["validation"])
        else:
            self._step = message
        return self._stop

    def drain(self, stop: bool = False) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
        self._stop = self._stop or stop
        step, validations = self._step, self._validations
        self._step, self._validations = None, []
        return step, validations


class ProgressBar:
    """Steps, rows per second, loss, the last validation, the time that remains.

    Where there is no terminal it prints a plain line from time to time.
    """

    PLAIN_EVERY_S = 5.0

    def __init__(self, num_steps: int, first_step: int, console: Console):
        self._console = console
        self._bar = Progress(
            TextColumn("[bold]train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[info]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(
            "train", total=num_steps, completed=first_step, info="starting workers"
        )
        self._num_steps = num_steps
        self._score = ""
        self._printed_at = 0.0

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._bar.stop()

    def show(self, step: dict[str, Any] | None, validations: list[dict[str, Any]]) -> None:
        if validations:
            last = validations[-1]
            scores = (f"{name} {last[name]:.4f}" for name in last if name not in {"epoch", "step"})
            self._score = f"  epoch {last['epoch']}: {next(scores)}"
        if step is None:
            return
        terms = " ".join(
            f"{k.removeprefix('loss/')} {v:.4f}" for k, v in step.items() if k.startswith("loss")
        )
        info = f"{terms}  {step['rows_per_s']:,.0f} rows/s{self._score}"
        self._bar.update(self._task, completed=step["step"], info=info)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._printed_at >= self.PLAIN_EVERY_S:
            self._printed_at = now
            self._console.print(f"step {step['step']}/{self._num_steps}  {info}", highlight=False)

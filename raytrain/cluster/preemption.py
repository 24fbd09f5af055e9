"""A run that is told to end: what a rank has heard, and how all ranks act on it after the same step.

Three ways lead here.  SIGTERM to a worker process: its main thread takes it (`on_sigterm`), and the run ends with a
checkpoint after the next step.  A node that Ray drains, because its provider takes it back (`raytrain.cluster.spot`)
or because `ray start --block` got SIGTERM: Ray Train marks the workers, and the run writes a checkpoint and goes on
until the node goes.  SIGTERM to the driver: the answers of its mailbox say so to rank 0, and the run ends.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from enum import IntEnum

import torch
import torch.distributed as dist
from torch import Tensor

from raytrain.collectives import num_ranks

ASK_EVERY = {"cpu": 1, "cuda": 32}
"""Steps between two agreements: on a device the host would wait for each of them."""


class Heard(IntEnum):
    """In the order of urgency: the ranks act on the highest that any of them has heard."""

    NOTHING = 0
    SAVE = 1
    """Write a checkpoint and go on."""
    END = 2
    """Write a checkpoint and end; whoever started the ranks may start them anew."""
    STOP = 3
    """Write a checkpoint and end for good."""


class Preempted(RuntimeError):
    """The run was told to end and has written a checkpoint of the step that it reached."""

    def __init__(self, heard: Heard, step: int):
        super().__init__(f"told to end; the checkpoint of step {step} is written")
        self.heard, self.step = heard, step

    def __reduce__(self) -> tuple[type[Preempted], tuple[Heard, int]]:
        return Preempted, (self.heard, self.step)


Listen = Callable[[], Heard]
"""What this rank has heard since it was asked last."""


def nothing() -> Heard:
    return Heard.NOTHING


class Agreement:
    """What any rank has heard, on all ranks after the same step; nobody waits.

    Each step starts a maximum over ranks and takes the result of the one before it.
    """

    def __init__(self, listen: Listen, device: torch.device):
        self._listen, self._device = listen, device
        self._every = ASK_EVERY[device.type]
        self._pending: tuple[Tensor, dist.Work] | None = None

    def after(self, step: int) -> Heard:
        """Collective.  `step` is the number of steps done."""
        if step % self._every:
            return Heard.NOTHING
        heard = self._listen()
        if num_ranks() == 1:
            return heard
        agreed = self.finish()
        value = torch.tensor([int(heard)], dtype=torch.int32, device=self._device)
        work = dist.all_reduce(value, dist.ReduceOp.MAX, async_op=True)
        assert work is not None
        self._pending = (value, work)
        return agreed

    def finish(self) -> Heard:
        """Waits for the last maximum that was started."""
        if self._pending is None:
            return Heard.NOTHING
        value, work = self._pending
        self._pending = None
        work.wait()
        return Heard(int(value.item()))


_terminated = threading.Event()


def on_sigterm() -> None:
    """From now on SIGTERM asks this process to end after the next step.  In the main thread only."""

    def handler(number: int, frame: object) -> None:
        del number, frame
        _terminated.set()

    signal.signal(signal.SIGTERM, handler)


def heard_sigterm() -> Heard:
    return Heard.END if _terminated.is_set() else Heard.NOTHING

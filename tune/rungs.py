"""Which trials go on: asynchronous successive halving, Li et al., MLSys 2020 (arXiv:1810.05934), Algorithm 2.

    rungs at  first * factor^k  epochs, k = 0, 1, ... up to `last`
    a score at a rung goes on if it is not below the (1 - 1/factor) quantile of the scores that were there before it

Departs from the paper as Ray Tune's AsyncHyperBandScheduler does, with which it agrees decision by decision: nobody
waits to be promoted; a trial is stopped or goes on at once, and the first to reach a rung goes on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Decision = Literal["go on", "stop"]


@dataclass
class Rungs:
    """The scores that reached each rung, in the order in which they came."""

    first: int
    factor: float
    last: int
    reached: dict[float, dict[int, float]] = field(init=False)
    """By rung, the highest first: the score of each trial, by its number."""

    def __post_init__(self) -> None:
        count = int(np.log(self.last / self.first) / np.log(self.factor) + 1)
        self.reached = {self.first * self.factor**k: {} for k in reversed(range(count))}

    def decide(self, trial: int, epoch: int, score: float) -> Decision:
        """What becomes of a trial with this score after this many epochs.  Asked again at the same rung it goes on."""
        if epoch >= self.last:
            return "stop"
        for rung, scores in self.reached.items():
            if epoch < rung or trial in scores:
                continue
            below = bool(scores) and score < float(
                np.nanpercentile(list(scores.values()), (1 - 1 / self.factor) * 100)
            )
            scores[trial] = score
            return "stop" if below else "go on"
        return "go on"

    def after(self, epoch: int) -> int:
        """The epoch at which the next decision is made."""
        higher = [math.ceil(rung) for rung in self.reached if math.ceil(rung) > epoch]
        return min([*higher, self.last])

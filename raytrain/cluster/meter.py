"""Means of what the steps report, taken on the device: nothing is waited for until they are read."""

from __future__ import annotations

import torch
from torch import Tensor

from raytrain.cluster.step import Updated
from raytrain.collectives import num_ranks, sum_over_ranks


class Meter:
    """A term that only some of the steps have, for it joined the loss between them, is a mean over those."""

    def __init__(self) -> None:
        self.rows = 0
        self._sums: dict[str, Tensor] = {}
        self._steps: dict[str, int] = {}

    def add(self, updated: Updated, rows: int) -> None:
        loss = updated.loss
        values = {"loss": loss.total, **{f"loss/{k}": v for k, v in loss.terms.items()}}
        values["gradient_norm"] = updated.gradient_norm
        if loss.active is not None:
            values["active_ratio"] = loss.active
        for name, value in values.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._steps[name] = self._steps.get(name, 0) + 1
        self.rows += rows

    def means(self) -> dict[str, float]:
        """Over steps and ranks; every rank must ask."""
        sums = sum_over_ranks(torch.stack(list(self._sums.values()))).tolist()
        steps = self._steps.values()
        return {name: of / (n * num_ranks()) for name, of, n in zip(self._sums, sums, steps, strict=True)}

"""The update, and nothing else: forward, gather, loss, backward, clip, step, average."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raytrain.cluster.diagnostics import Watch
from raytrain.cluster.gather import gather
from raytrain.cluster.row_stream import RowStream
from raytrain.methods.base import Method
from raytrain.models.ema import Ema
from raytrain.types import Batch, Loss, Progress


class WorldLoss(nn.Module):
    """Forward, gather and loss as one module, so that data-parallel training can wrap it."""

    def __init__(self, method: Method, precision: torch.dtype):
        super().__init__()
        self.method, self.precision = method, precision
        self.watch: Watch | None = None
        self.stream: RowStream | None = None

    def forward(self, batch: Batch, sizes: tuple[int, ...], progress: Progress) -> Loss:
        reduced = self.precision != torch.float32
        with torch.autocast(batch.row.device.type, self.precision, enabled=reduced):
            rows = self.method.rows(batch, progress)
        here, world = gather(rows, sizes)
        if self.watch is not None:
            self.watch.rows(here, world)
        if self.stream is not None:
            self.stream.add(world.row)
        return self.method.loss(here, world, progress)


@dataclass(frozen=True)
class Updated:
    loss: Loss
    gradient_norm: Tensor


def update(
    world_loss: nn.Module,
    method: Method,
    batch: Batch,
    sizes: tuple[int, ...],
    progress: Progress,
    *,
    optimizer: torch.optim.Optimizer,
    learning_rate: float,
    clip: float | None,
    ema: Ema | None,
    watch: Watch | None = None,
) -> Updated:
    """One step.  A gradient that is not finite is the same on all ranks: all of them raise RuntimeError."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["rate"]
    optimizer.zero_grad(set_to_none=True)
    loss: Loss = world_loss(batch, sizes, progress)
    if watch is not None:
        watch.terms(loss, progress)
    loss.total.backward()
    norm = nn.utils.clip_grad_norm_(
        world_loss.parameters(), float("inf") if clip is None else clip, error_if_nonfinite=True
    )
    if watch is not None:
        watch.add(loss, norm)
    optimizer.step()
    method.after_step(progress)
    if ema is not None:
        ema.update()
    return Updated(loss, norm)

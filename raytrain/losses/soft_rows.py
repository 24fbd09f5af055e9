"""Losses whose positives are positive by degree: of each query's distances and weights, in bounded memory.

As `rowwise`, with soft alignments in place of the masks of a relation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from raytrain.losses import distances
from raytrain.losses.alignment import Alignment


class SoftRows(NamedTuple):
    """What a loss says of each query of this rank; its page says what a query weighs in the mean."""

    value: Float[Tensor, " b"]
    active: Float[Tensor, " b"]
    """How much of the row's weight is still at work; no gradient."""


class SoftBlock(NamedTuple):
    """What a kernel makes of k queries."""

    value: Float[Tensor, " k"]
    slope: Float[Tensor, "k n"]
    """d value_i / d distance_ij."""
    active: Float[Tensor, " k"] | None
    """None for a softmax loss, whose queries are judged by their gradient."""


Kernel = Callable[[Tensor, Tensor], SoftBlock]
"""From distances [k n] and w [k n]."""


def soft_rows(
    query: Float[Tensor, "b d"],
    keys: Float[Tensor, "n d"],
    alignment: Alignment,
    counted: Bool[Tensor, " b"],
    kernel: Kernel,
    *,
    gradient_above: float | None,
) -> SoftRows:
    """Values of the kernel for every counted query, d = 1 - cos, with gradient to queries and keys; others are at 0.

    `gradient_above`: a query is active, 1, where the norm of the gradient of its own value with respect to it, of unit
    norm, is larger; None where the kernel says it.  Memory is that of some queries at a time: blocks are made again in
    the backward pass.
    """
    assert len(alignment) == len(query) and len(alignment.keys) == len(keys)
    with torch.autocast(query.device.type, enabled=False):
        query, keys = distances.unit(query), distances.unit(keys)
        if query.device.type != "cpu":  # the number of counted rows is known to the device alone
            value, active = _SoftRows.apply(query, keys, alignment, kernel, gradient_above)
            return SoftRows(torch.where(counted, value, 0), torch.where(counted, active, 0))
        (index,) = counted.nonzero(as_tuple=True)
        value, active = _SoftRows.apply(query[index], keys, alignment.of(index), kernel, gradient_above)
        zero = torch.zeros(len(query), dtype=query.dtype)
        return SoftRows(zero.index_put((index,), value), zero.index_put((index,), active))


class _SoftRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        keys: Tensor,
        alignment: Alignment,
        kernel: Kernel,
        gradient_above: float | None,
    ) -> tuple[Tensor, Tensor]:
        value = query.new_empty(len(query))
        active, slope_query = torch.empty_like(value), torch.empty_like(query)
        whole: Tensor | None = None
        for start, stop in alignment.chunks():
            here = slice(start, stop)
            block = kernel(1 - query[here] @ keys.T, alignment.weights(start, stop))
            value[here] = block.value
            slope_query[here] = -(block.slope @ keys)
            whole = block.slope if stop - start == len(query) else None
            if block.active is None:
                assert gradient_above is not None
                active[here] = (slope_query[here].norm(dim=1) > gradient_above).to(active.dtype)
            else:
                active[here] = block.active
        # where one block holds all queries, keeping it is cheaper than making it again
        ctx.save_for_backward(query, keys, slope_query, whole)
        ctx.alignment, ctx.kernel = alignment, kernel
        ctx.mark_non_differentiable(active)
        return value, active

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        query, keys, slope_query, whole = ctx.saved_tensors
        weight = upstream[0][:, None]  # [b 1]
        slope_keys = torch.zeros_like(keys) if ctx.needs_input_grad[1] else None
        if slope_keys is not None:
            for start, stop in ctx.alignment.chunks():
                here, slope = slice(start, stop), whole
                if slope is None:
                    slope = ctx.kernel(1 - query[here] @ keys.T, ctx.alignment.weights(start, stop)).slope
                slope_keys.addmm_(slope.T, weight[here] * query[here], alpha=-1)
        return weight * slope_query, slope_keys, None, None, None

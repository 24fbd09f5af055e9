"""Triplet loss with positives by degree: every pair of keys is a triplet, weighed by a soft alignment."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from raytrain.losses import distances
from raytrain.losses.alignment import MORE_THAN_NOT, Alignment, Extent

SoftMining = Literal["all", "hard"]


class SoftTriplets(NamedTuple):
    """The loss of the world is  sum value / sum `soft_weight`  over the counted queries of all ranks."""

    value: Float[Tensor, " b"]
    active: Float[Tensor, " b"]
    """The part of the row's weight that lies on violated triplets; no gradient."""


class SoftBlock(NamedTuple):
    """What a kernel makes of k queries."""

    value: Float[Tensor, " k"]
    slope: Float[Tensor, "k n"]
    """d value_i / d distance_ij."""
    active: Float[Tensor, " k"]


Kernel = Callable[[Tensor, Tensor], SoftBlock]
"""From distances [k n] and w [k n]."""


def soft_triplet(
    query: Float[Tensor, "b d"],
    keys: Float[Tensor, "n d"],
    alignment: Alignment,
    counted: Bool[Tensor, " b"],
    *,
    margin: float,
    mining: SoftMining,
) -> SoftTriplets:
    r"""Soft triplet loss with w_ij of the alignment in place of labels; d(x, y) = 1 - cos(x, y).

        all    value_i = sum_{j,k} w_ij (1 - w_ik) [m + d(q_i, k_j) - d(q_i, k_k)]_+        j = k included: it adds
               the constant m w_ij (1 - w_ij), without a gradient
        hard   value_i = w_ij* (1 - w_ik*) [m + d(q_i, k_j*) - d(q_i, k_k*)]_+,  j* the farthest key of w_ij >= 1/2 and
               k* the nearest of w_ik < 1/2; zero where there is no such k.  Equal distances share the gradient, and
               their weights are averaged.

    A reconstruction of the soft alignment loss of Zeng, Niu and Taya (arXiv:2501.09608), whose equations were not
    available.  Where each w is 0 or 1 it is the triplet loss over all triplets, and the batch-hard one, of the keys
    with w = 1 as positives.

    Rows that are not `counted` are at 0.  O(n log n) per query: sum_k (1 - w_k) [c - d_k]_+ is a prefix sum over the
    sorted d.  Memory is that of some queries at a time; the blocks are made again in the backward pass.
    """
    assert len(alignment) == len(query) and len(alignment.keys) == len(keys)
    kernel: Kernel = partial(_all if mining == "all" else _hard, margin=margin)
    with torch.autocast(query.device.type, enabled=False):
        query, keys = distances.unit(query), distances.unit(keys)
        if query.device.type != "cpu":  # the number of counted rows is known to the device alone
            value, active = _SoftTriplet.apply(query, keys, alignment, kernel)
            return SoftTriplets(torch.where(counted, value, 0), torch.where(counted, active, 0))
        (index,) = counted.nonzero(as_tuple=True)
        value, active = _SoftTriplet.apply(query[index], keys, alignment.of(index), kernel)
        zero = torch.zeros(len(query), dtype=query.dtype)
        return SoftTriplets(zero.index_put((index,), value), zero.index_put((index,), active))


def soft_weight(extent: Extent, num_keys: int, *, mining: SoftMining) -> Float[Tensor, " b"]:
    """What a query counts in the mean: sum_{j,k} w_ij (1 - w_ik), or, for 'hard', 1 where there is a negative."""
    if mining == "hard":
        return (extent.num_negative > 0).to(extent.mass.dtype)
    return extent.mass * (num_keys - extent.mass).clamp(min=0)


class _SoftTriplet(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, keys: Tensor, alignment: Alignment, kernel: Kernel
    ) -> tuple[Tensor, Tensor]:
        value = query.new_empty(len(query))
        active, slope_query = torch.empty_like(value), torch.empty_like(query)
        whole: Tensor | None = None
        for start, stop in alignment.chunks():
            here = slice(start, stop)
            block = kernel(1 - query[here] @ keys.T, alignment.weights(start, stop))
            value[here], active[here] = block.value, block.active
            slope_query[here] = -(block.slope @ keys)
            whole = block.slope if stop - start == len(query) else None
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
        return weight * slope_query, slope_keys, None, None


def _all(distance: Float[Tensor, "k n"], w: Float[Tensor, "k n"], *, margin: float) -> SoftBlock:
    """A row is  sum_x s_x d_x + m A,  A the weight of its violated triplets, s_x that of those that x is part of."""
    ordered, column = distance.sort(dim=1)
    limit = ordered + margin
    positive = w.gather(1, column)
    negative = 1 - positive
    nearer = torch.searchsorted(ordered, limit)  # [k n]: keys that are nearer than the limit of j
    met = torch.searchsorted(limit, ordered, right=True)  # [k n]: positives whose limit k does not come below
    of_positive = positive * F.pad(negative.cumsum(dim=1), (1, 0)).gather(1, nearer)
    sums = F.pad(positive.cumsum(dim=1), (1, 0))
    of_negative = negative * (sums[:, -1:] - sums.gather(1, met))
    active = of_positive.sum(dim=1)
    slope = torch.zeros_like(distance).scatter_(1, column, of_positive - of_negative)
    value = (slope * distance).sum(dim=1) + margin * active
    return SoftBlock(value.clamp_(min=0), slope, active)


def _hard(distance: Float[Tensor, "k n"], w: Float[Tensor, "k n"], *, margin: float) -> SoftBlock:
    positive = w >= MORE_THAN_NOT
    farthest = torch.where(positive, distance, -torch.inf).amax(dim=1, keepdim=True)  # [k 1]
    nearest = torch.where(positive, torch.inf, distance).amin(dim=1, keepdim=True)
    pulled, pushed = positive & (distance == farthest), ~positive & (distance == nearest)
    num_pulled, num_pushed = (m.sum(dim=1, keepdim=True).clamp(min=1).to(w.dtype) for m in (pulled, pushed))
    weight = (w * pulled).sum(dim=1, keepdim=True) / num_pulled
    weight = weight * ((1 - w) * pushed).sum(dim=1, keepdim=True) / num_pushed
    hinge = (margin + farthest - nearest).relu_()  # zero without a negative, and without a positive
    slope = (pulled / num_pulled - pushed / num_pushed) * (weight * (hinge > 0))
    return SoftBlock((weight * hinge).squeeze(1), slope, (weight * (hinge > 0)).squeeze(1))

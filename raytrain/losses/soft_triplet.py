"""Triplet loss with positives by degree: every pair of keys is a triplet, weighed by a soft alignment."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from raytrain.losses.alignment import MORE_THAN_NOT, Alignment, Extent
from raytrain.losses.soft_rows import SoftBlock, SoftRows, soft_rows

SoftMining = Literal["all", "hard"]


def soft_triplet(
    query: Float[Tensor, "b d"],
    keys: Float[Tensor, "n d"],
    alignment: Alignment,
    counted: Bool[Tensor, " b"],
    *,
    margin: float,
    mining: SoftMining,
) -> SoftRows:
    r"""Soft triplet loss with w_ij of the alignment in place of labels; d(x, y) = 1 - cos(x, y).

        all    value_i = sum_{j,k} w_ij (1 - w_ik) [m + d(q_i, k_j) - d(q_i, k_k)]_+        j = k included: it adds
               the constant m w_ij (1 - w_ij), without a gradient
        hard   value_i = w_ij* (1 - w_ik*) [m + d(q_i, k_j*) - d(q_i, k_k*)]_+,  j* the farthest key of w_ij >= 1/2 and
               k* the nearest of w_ik < 1/2; zero where there is no such k.  Equal distances share the gradient, and
               their weights are averaged.

    A reconstruction of the soft alignment loss of Zeng, Niu and Taya (arXiv:2501.09608), whose equations were not
    available.  Where each w is 0 or 1 it is the triplet loss over all triplets, and the batch-hard one, of the keys
    with w = 1 as positives.

    The loss of the world is  sum value / sum `soft_weight`  over the counted queries of all ranks; `active` is the part
    of the row's weight that lies on violated triplets.  Rows that are not `counted` are at 0.  O(n log n) per query:
    sum_k (1 - w_k) [c - d_k]_+ is a prefix sum over the sorted d.
    """
    kernel = partial(_all if mining == "all" else _hard, margin=margin)
    return soft_rows(query, keys, alignment, counted, kernel, gradient_above=None)


def soft_weight(extent: Extent, num_keys: int, *, mining: SoftMining) -> Float[Tensor, " b"]:
    """What a query counts in the mean: sum_{j,k} w_ij (1 - w_ik), or, for 'hard', 1 where there is a negative."""
    if mining == "hard":
        return (extent.num_negative > 0).to(extent.mass.dtype)
    return extent.mass * (num_keys - extent.mass).clamp(min=0)


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

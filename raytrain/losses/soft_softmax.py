"""InfoNCE and supervised contrastive with positives by degree: a teacher's soft alignment in place of labels."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from raytrain.losses.alignment import Alignment, Extent
from raytrain.losses.soft_rows import Kernel, SoftBlock, SoftRows, soft_rows

SoftSoftmax = Literal["info-nce", "supcon"]

GRADIENT_ABOVE = 1e-3
"""A query is active when the norm of its gradient is larger."""


def soft_softmax(
    query: Float[Tensor, "b d"],
    keys: Float[Tensor, "n d"],
    alignment: Alignment,
    counted: Bool[Tensor, " b"],
    *,
    kind: SoftSoftmax,
    temperature: float,
    gradient_above: float,
) -> SoftRows:
    r"""A softmax loss with w_ij of the alignment in place of labels, P_ij = w_ij / sum_l w_il, s_ij = cos / tau.

        info-nce   value_i = - sum_j P_ij log  e^{s_ij} / (e^{s_ij} + sum_k (1 - w_ik) e^{s_ik})
        supcon     value_i = - sum_j P_ij log  e^{s_ij} / sum_k e^{s_ik}

    j and k are all keys.  'supcon' is the cross-entropy between the alignment and the student's own softmax over
    the keys, least where both are the same; 'info-nce' goes on to draw aligned keys away from those that are not.
    Where each w is 0 or 1 they are `info_nce` and `supervised_contrastive` of the keys with w = 1 as positives.

    A reconstruction of our own of what soft audio-visual alignments (Zeng, Niu and Taya, arXiv:2501.09608) say to a
    softmax loss; distillation by cross-entropy over a batch is Hinton et al. 2015 (arXiv:1503.02531) with rows in place
    of classes.  `tau` is the student's, not that of the alignment.

    A query counts as `soft_softmax_weight` says.  It is active, 1, where the norm of the gradient of its value with
    respect to it is above `gradient_above`.  Rows that are not `counted` are at 0.
    """
    kernel: Kernel = partial(_info_nce if kind == "info-nce" else _supcon, scale=1 / temperature)
    return soft_rows(query, keys, alignment, counted, kernel, gradient_above=gradient_above)


def soft_softmax_weight(extent: Extent, num_keys: int, *, kind: SoftSoftmax) -> Float[Tensor, " b"]:
    """What a query counts in the mean: 1; with 'info-nce' 0 where all keys are aligned alike and none is a negative."""
    if kind == "info-nce":
        return (extent.mass < num_keys).to(extent.mass.dtype)
    return torch.ones_like(extent.mass)


def _info_nce(distance: Float[Tensor, "k n"], w: Float[Tensor, "k n"], *, scale: float) -> SoftBlock:
    logit = -scale * distance
    negative = logit + torch.log1p(-w)  # -inf at w = 1
    some = (w < 1).any(dim=1, keepdim=True)
    share = torch.where(some, negative, 0).softmax(dim=1)
    pool = torch.where(some, negative, 0).logsumexp(dim=1, keepdim=True)
    gap = torch.where(some, pool - logit, -torch.inf)  # without a negative: zero, and zero slopes
    p = _probabilities(w)
    pull = p * torch.sigmoid(gap)
    push = share * pull.sum(dim=1, keepdim=True)
    return SoftBlock((p * F.softplus(gap)).sum(dim=1), scale * (pull - push), None)


def _supcon(distance: Float[Tensor, "k n"], w: Float[Tensor, "k n"], *, scale: float) -> SoftBlock:
    logit = -scale * distance
    p = _probabilities(w)
    value = logit.logsumexp(dim=1) * p.sum(dim=1) - (p * logit).sum(dim=1)
    return SoftBlock(value, scale * (p - logit.softmax(dim=1) * p.sum(dim=1, keepdim=True)), None)


def _probabilities(w: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
    """P; zero where a query is aligned with nothing."""
    mass = w.sum(dim=1, keepdim=True)
    return w / torch.where(mass > 0, mass, 1)

"""Positives by degree: soft affinities among rows, and the InfoNCE that they weigh."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def soft_top_k(
    query: Float[Tensor, "b d"],
    keys: Float[Tensor, "n d"],
    own: Bool[Tensor, "b n"],
    *,
    neighbours: int,
    temperature: float,
) -> Float[Tensor, "b n"]:
    r"""Soft affinities, Zeng et al. 2026 (arXiv:2604.04229): softmax over the k nearest other rows; no gradient.

        w_ij = exp(q_i.k_j / tau) / sum_{l in N(i)} exp(q_i.k_l / tau)   for j in N(i), 0 elsewhere

    N(i) are the k rows j, not `own`, with the largest q_i.k_j >= 0: fewer where fewer are not negative.  A row
    without any has weights of zero.
    """
    with torch.no_grad():
        similarity = query @ keys.T  # [b n]
        similarity = similarity.masked_fill(own | (similarity < 0), -torch.inf)
        nearest, index = similarity.topk(min(neighbours, keys.shape[0]), dim=1)  # [b k]
        weights = torch.softmax(nearest / temperature, dim=1).nan_to_num(nan=0.0)  # no neighbour: 0 / 0
        return torch.zeros_like(similarity).scatter_(1, index, weights)


def affinity_info_nce(
    query: Float[Tensor, "b d"],
    keys: Float[Tensor, "n d"],
    weights: Float[Tensor, "b n"],
    own: Bool[Tensor, "b n"],
    *,
    temperature: float,
    include_pair: bool,
) -> Float[Tensor, " b"]:
    r"""InfoNCE in which another row is a positive to the degree w_ij and a negative to the degree 1 - w_ij.

        pos_i = sum_j w_ij e^{l_ij},  neg_i = sum_j (1 - w_ij) e^{l_ij},  l = q.k / tau,  j not own
        value_i = -log pos_i / (pos_i + neg_i)

    Zeng et al. 2026 (arXiv:2604.04229).  With `include_pair` the pair (`own`) takes part with w = 1.  pos + neg is
    the sum of e^{l_ij} over all that take part, so the value is a difference of two log-sum-exps.  A row without
    a positive is at 0, without a gradient.  Rows are unit-norm; they are taken as given.
    """
    logits = query @ keys.T / temperature
    weights = torch.where(own, float(include_pair), weights)
    has_positive = weights.any(dim=1, keepdim=True)
    pool = logits if include_pair else logits.masked_fill(own, -torch.inf)
    some = weights > 0
    log_weights = torch.where(some, torch.where(some, weights, 1.0).log(), -torch.inf)  # log of 0 is slow
    positive = torch.where(has_positive, logits + log_weights, 0.0)
    return torch.where(has_positive, pool, 0.0).logsumexp(dim=1) - positive.logsumexp(dim=1)

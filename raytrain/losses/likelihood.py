"""Likelihood of the pairs' similarities: DSCMR's loss in the common space."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from raytrain.losses.masks import Relation
from raytrain.losses.reduction import PerRow, per_row
from raytrain.losses.rowwise import Block, rowwise


def pair_likelihood(query: Float[Tensor, "b d"], keys: Float[Tensor, "n d"], relation: Relation) -> PerRow:
    r"""Negative log-likelihood of the pairs, Zhen et al., CVPR 2019 (DSCMR, "Deep supervised cross-modal retrieval").

        value_i = sum_j log(1 + e^{G_ij}) - S_ij G_ij,   G_ij = cos(q_i, k_j) / 2

    over the positives (S = 1) and negatives (S = 0) of i.  Rows are unit-norm; they are taken as given.

    Departs from the paper: within one view a clip is not its own pair; it adds a constant there.

    Denominator of the world and terms: pairs, all of which are active, for none is ever zero.
    """
    rows = rowwise(query, keys, relation, _kernel, score="inner", gradient_above=None)
    return per_row(rows, weight_rule="pairs", terms_rule="pairs")


def _kernel(
    score: Float[Tensor, "k n"], positive: Bool[Tensor, "k n"], negative: Bool[Tensor, "k n"]
) -> Block:
    theta, pair = score / 2, positive | negative
    value = (F.softplus(theta) * pair - theta * positive).sum(dim=1)
    slope = (torch.sigmoid(theta) * pair - positive.to(score.dtype)) / 2
    return Block(value, slope, pair.sum(dim=1))

"""Redundancy between two views: the cross-correlation of their embeddings' columns."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from raytrain.losses import distances


def cross_correlation(audio: Float[Tensor, "n d"], visual: Float[Tensor, "n e"]) -> Float[Tensor, "d e"]:
    r"""C_kl = sum_i a_ik v_il / (|a_.k| |v_.l|) of centred columns: Pearson's correlation over the rows.

    A column that is constant, up to rounding, correlates with nothing and gets no gradient.
    """
    return _standardised(audio) @ _standardised(visual).T


def decorrelation(audio: Float[Tensor, "n d"], visual: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    r"""mean_{k != l} C_kl^2, in [0, 1]: different columns of the two views are to be uncorrelated.

    As the redundancy term of Barlow Twins (Zbontar et al., ICML 2021, arXiv:2103.03230, Eq. (1)) across two views, as
    a mean.  A number of all rows of the world, the same on every rank.  Zero for d = 1.
    """
    d = audio.shape[1]
    squared = cross_correlation(audio, visual).square()
    return (squared.sum() - squared.diagonal().sum()) / max(1, d * (d - 1))


def _standardised(rows: Float[Tensor, "n d"]) -> Float[Tensor, "d n"]:
    """Centred columns of norm one, as rows."""
    centred = (rows - rows.mean(dim=0)).T
    rounding = 8 * torch.finfo(rows.dtype).eps * torch.linalg.vector_norm(rows, dim=0)
    varies = torch.linalg.vector_norm(centred, dim=1) > rounding
    return distances.unit(torch.where(varies[:, None], centred, 0))

"""Soft alignments: how likely a teacher holds each row of the other view to belong with a query."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from raytrain.losses.masks import blocks

Kind = Literal["similarity", "classes"]

MORE_THAN_NOT = 0.5
"""A key with w of at least this is rather a positive than a negative."""


class Extent(NamedTuple):
    """How far the alignment of each query spreads over the keys."""

    mass: Float[Tensor, " b"]
    """sum_j w_ij = 1 / max_j P_ij: the number of keys that a uniform P of the same height would have.

    Where pairs are positive it is one key larger at the most.
    """
    num_negative: Int[Tensor, " b"]
    """Keys with w below one half."""


@dataclass(frozen=True)
class Alignment:
    r"""P_ij over the n keys of the other view for each query i, from what a teacher makes of both; no gradient.

        similarity   P_ij = softmax_j(q_i . k_j / tau)              rows are unit-norm embeddings
        classes      P_ij = q_i . k_j / sum_l q_i . k_l             rows are class probabilities

    It is asked for as  w_ij = P_ij / max_l P_il  in [0, 1], some queries at a time: no [b n] matrix is kept.  A row of
    'classes' whose products are all zero is aligned with nothing: its w is zero.
    """

    query: Float[Tensor, "b e"]
    keys: Float[Tensor, "n e"]
    kind: Kind
    temperature: float | None
    """tau, of 'similarity' alone."""
    pair: Int[Tensor, " b"] | None = None
    """The key of each query's own clip, whose w is 1 whatever the teacher says; None: the teacher alone says w."""

    def __post_init__(self) -> None:
        assert (self.temperature is not None) == (self.kind == "similarity")
        assert not self.query.requires_grad and not self.keys.requires_grad

    def __len__(self) -> int:
        return self.query.shape[0]

    def of(self, index: Int[Tensor, " k"] | slice) -> Alignment:
        """Of these queries alone."""
        return replace(self, query=self.query[index], pair=None if self.pair is None else self.pair[index])

    def weights(self, start: int, stop: int) -> Float[Tensor, "k n"]:
        """w of the queries start..stop-1."""
        score = self.query[start:stop] @ self.keys.T  # [k n]
        most = score.amax(dim=1, keepdim=True)
        if self.temperature is not None:
            w = score.sub_(most).div_(self.temperature).exp_()
        else:
            w = score.div_(torch.where(most > 0, most, 1))
        return w if self.pair is None else w.scatter_(1, self.pair[start:stop, None], 1.0)

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Ranges of queries whose [k n] block is small."""
        return blocks(len(self), len(self.keys), self.keys.device)

    def extent(self) -> Extent:
        mass = self.query.new_empty(len(self))
        num_negative = torch.empty(len(self), dtype=torch.long, device=mass.device)
        for start, stop in self.chunks():
            weights = self.weights(start, stop)
            mass[start:stop] = weights.sum(dim=1)
            num_negative[start:stop] = (weights < MORE_THAN_NOT).sum(dim=1)
        return Extent(mass, num_negative)


def confident(extent: Extent, num_keys: int, *, gate: float | None) -> Bool[Tensor, " b"]:
    """True where  1 / sum_j w_ij >= gate / n,  which is max_j P_ij unless pairs are certain.

    A row that is aligned with nothing never is; None keeps all others.
    """
    aligned = extent.mass > 0
    return aligned if gate is None else aligned & (extent.mass * gate <= num_keys)

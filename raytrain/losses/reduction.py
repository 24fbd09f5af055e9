"""From one value per query to the loss of the world, exactly, for any number of ranks.

A loss is a ratio, sum of the rows' values over sum of the rows' weights, both over the world's queries.
The weights follow from row ids and labels alone (how many positives and negatives a query has), so every rank
counts those of the whole world by itself and nothing is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from raytrain.losses.masks import Relation
from raytrain.losses.rowwise import Rowwise

Rule = Literal["paired", "queries", "anchored", "pairs", "positive pairs", "triplets"]

ACTIVE_ABOVE = 1e-6
"""A term of a hinge loss is active when it is larger (Liu et al., arXiv:2601.21450)."""


class PerRow(NamedTuple):
    """What a loss says of each query of this rank.

    The loss of the world is  sum value / sum weight,  its active share  sum active / sum terms,  each sum
    over the queries of all ranks.  `weight` and `terms` depend on the relation alone.
    """

    value: Float[Tensor, " b"]
    weight: Int[Tensor, " b"]
    active: Int[Tensor, " b"]
    """How many of the row's terms are not zero; no gradient."""
    terms: Int[Tensor, " b"]
    """How many terms (pairs, triplets, or the row itself as an anchor) the row has."""
    weight_rule: Rule
    terms_rule: Rule


def count(rule: Rule, num_positive: Int[Tensor, " b"], num_negative: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
    """How often a query with so many positives and negatives counts.

    paired          once if it has a positive or a negative
    queries         once if it has a positive and any other key
    anchored        once if it has a positive and a negative
    pairs           once per positive and per negative
    positive pairs  once per positive, if it has a negative
    triplets        once per positive and negative together
    """
    if rule == "paired":
        return (num_positive + num_negative > 0).long()
    if rule == "queries":
        return ((num_positive > 0) & (num_positive + num_negative > 1)).long()
    if rule == "anchored":
        return ((num_positive > 0) & (num_negative > 0)).long()
    if rule == "pairs":
        return num_positive + num_negative
    if rule == "positive pairs":
        return num_positive * (num_negative > 0)
    return num_positive * num_negative


def per_row(rows: Rowwise, *, weight_rule: Rule, terms_rule: Rule) -> PerRow:
    weight = count(weight_rule, rows.num_positive, rows.num_negative)
    terms = count(terms_rule, rows.num_positive, rows.num_negative)
    return PerRow(rows.value, weight, rows.active, terms, weight_rule, terms_rule)


def world_mean(rows: PerRow, relation: Relation) -> Float[Tensor, ""]:
    """The summand of this rank such that the mean over ranks is sum value / sum weight over the world.

    Zero, with a zero gradient, where no query of the world counts.
    """
    total = _world_total(rows.weight, rows.weight_rule, relation)
    return rows.value.sum() * (relation.num_ranks / total.clamp(min=1).to(rows.value.dtype))


def active_share(rows: PerRow, relation: Relation) -> Float[Tensor, ""]:
    """The summand of this rank such that the mean over ranks is the active share of the world's terms."""
    total = _world_total(rows.terms, rows.terms_rule, relation)
    return (rows.active.sum() * relation.num_ranks / total.clamp(min=1)).to(rows.value.dtype)


def world_means(
    parts: Mapping[str, tuple[PerRow, Relation]],
) -> tuple[dict[str, Float[Tensor, ""]], Float[Tensor, ""]]:
    """`world_mean` of each part of a loss, e.g. of each direction, and the mean of their active shares."""
    values = {name: world_mean(*part) for name, part in parts.items()}
    return values, torch.stack([active_share(*part) for part in parts.values()]).mean()


def _world_total(here: Int[Tensor, " b"], rule: Rule, relation: Relation) -> Int[Tensor, ""]:
    if relation.num_ranks == 1:
        return here.sum()
    return torch.sum(count(rule, *relation.world_counts))

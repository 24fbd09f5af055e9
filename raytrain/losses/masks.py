"""Who is whose positive and whose negative, said by row ids and labels and never by a stored [b n] matrix.

Between a query i (a row of this rank) and a key j (a row of the world), with i and j the clips they show:

    what is known          positive                         negative
    labels                 the same class, both annotated   another class, both annotated
    events (multi-hot)     any event in common              no event in common, both with at least one event
    pairs (nothing)        the same clip                    every other clip

Across two views the clip's own pair is always a positive and never a negative.  Within one view a clip
is neither to itself.  An unannotated clip (UNANNOTATED, or no event at all) has its own pair as its only
positive, is nobody's negative and has no negatives: what nobody annotated may well be of the same class.

Beside these, pairs may be linked by something else, said by a vector of every row: where the product of query's and
key's exceeds the draws' (0 without), the pair is no negative.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from raytrain.types import UNANNOTATED, Rows

Known = Literal["labels", "events", "pairs"]
Views = Literal["cross", "within"]

CHUNK_ELEMENTS = {"cpu": 2**20, "cuda": 2**24}
"""Elements of a [k n] block, by device: 4 MB of float32 on a CPU, 64 MB on a GPU, which it keeps busy."""


def blocks(num_queries: int, elements: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """Ranges of queries, so many that their `elements` each come to CHUNK_ELEMENTS, and at least one."""
    budget = CHUNK_ELEMENTS.get(device.type, CHUNK_ELEMENTS["cuda"])
    step = max(1, budget // max(1, elements))
    for start in range(0, num_queries, step):
        yield start, min(start + step, num_queries)


@dataclass(frozen=True)
class Marks:
    """What is known of some rows: at most one of `labels` and `events`."""

    row: Int[Tensor, " b"]
    labels: Int[Tensor, " b"] | None = None
    events: UInt8[Tensor, "b c"] | None = None
    link: Float[Tensor, "b l"] | None = None
    """Not negative.  A pair of which query.link . key.link > 0 is linked and leaves the negatives."""
    draw: Float[Tensor, " b"] | None = None
    """Uniform in [0, 1): with it a linked pair leaves with probability min(1, query.link . key.link)."""

    @classmethod
    def of(cls, rows: Rows, by: Known) -> Marks:
        if by == "pairs":
            return cls(rows.row)
        if by == "labels":
            if rows.labels is None:
                raise ValueError("relation by 'labels', but these rows have no labels; use 'pairs'")
            return cls(rows.row, labels=rows.labels)
        if rows.events is None:
            raise ValueError("relation by 'events', but these rows have none; use 'labels' or 'pairs'")
        return cls(rows.row, events=rows.events)

    def __getitem__(self, rows: slice) -> Marks:
        return Marks(
            self.row[rows],
            None if self.labels is None else self.labels[rows],
            None if self.events is None else self.events[rows],
            None if self.link is None else self.link[rows],
            None if self.draw is None else self.draw[rows],
        )

    def __len__(self) -> int:
        return self.row.shape[0]


@dataclass(frozen=True)
class Relation:
    """Between b queries of this rank and n keys; masks of a few queries at a time are made on demand.

    `world` are the queries of all ranks: the denominator of a mean over the world is counted from it alone,
    so that no rank has to ask another one.
    """

    query: Marks
    key: Marks
    world: Marks
    views: Views
    num_ranks: int

    def __post_init__(self) -> None:
        if self.views == "within" and self.query.labels is None and self.query.events is None:
            raise ValueError(
                "within one view a clip is not its own positive, so without labels nothing is; "
                "use views='cross', or relate the rows by 'labels' or 'events'"
            )

    @classmethod
    def between(cls, here: Rows, world: Rows, *, views: Views, by: Known) -> Relation:
        """Queries are the rows of this rank, keys the rows of all ranks (of the other view or the same).

        Raises ValueError where the rows lack what `by` names, and for 'within' by 'pairs'.
        """
        keys = Marks.of(world, by)
        return cls(Marks.of(here, by), keys, keys, views, world.num_ranks)

    @classmethod
    def to_classes(
        cls, here: Rows, world: Rows, *, num_classes: int, by: Literal["labels", "events"]
    ) -> Relation:
        """Queries are the rows of this rank, keys one row per class (proxies, centres, weights) in order."""
        index = torch.arange(num_classes, device=here.row.device)
        keys = Marks(-1 - index)  # the id of no clip: row ids are positions, never negative
        if by == "labels":
            keys = replace(keys, labels=index)
        else:
            keys = replace(keys, events=torch.eye(num_classes, dtype=torch.uint8, device=index.device))
        return cls(Marks.of(here, by), keys, Marks.of(world, by), "cross", world.num_ranks)

    def masks(self, start: int, stop: int) -> tuple[Bool[Tensor, "k n"], Bool[Tensor, "k n"]]:
        """(positive, negative) of the queries start..stop-1."""
        query, key = self.query[start:stop], self.key
        positive, negative = self._known(query, key)
        if query.link is None or key.link is None:
            return positive, negative
        linked = query.link @ key.link.T  # [k n]
        if query.draw is None or key.draw is None:
            return positive, negative & ~(linked > 0)
        return positive, negative & ~(linked > torch.frac(query.draw[:, None] + key.draw[None, :]))

    def _known(self, query: Marks, key: Marks) -> tuple[Bool[Tensor, "k n"], Bool[Tensor, "k n"]]:
        other = query.row[:, None] != key.row[None, :]  # [k n]
        if query.labels is not None and key.labels is not None:
            same = query.labels[:, None] == key.labels[None, :]
            known, known_key = query.labels != UNANNOTATED, key.labels != UNANNOTATED
        elif query.events is not None and key.events is not None:
            same = query.events.float() @ key.events.float().T > 0
            known, known_key = query.events.ne(0).any(dim=1), key.events.ne(0).any(dim=1)
        else:
            assert query.labels is None and query.events is None, "known by one thing"
            return ~other, other
        both = known[:, None] & known_key[None, :]
        negative = both & ~same & other
        positive = same & both
        return (positive | ~other if self.views == "cross" else positive & other), negative

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Ranges of queries, small enough that a [k n] block is cheap and large enough that it is fast."""
        return blocks(len(self.query), len(self.key), self.key.row.device)

    def counts(self) -> tuple[Int[Tensor, " b"], Int[Tensor, " b"]]:
        """(number of positives, number of negatives) of each query."""
        num_positive = self.query.row.new_zeros(len(self.query))
        num_negative = torch.zeros_like(num_positive)
        for start, stop in self.chunks():
            positive, negative = self.masks(start, stop)
            num_positive[start:stop] = positive.sum(dim=1)
            num_negative[start:stop] = negative.sum(dim=1)
        return num_positive, num_negative

    @cached_property
    def world_counts(self) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        """The counts of the queries of all ranks."""
        return replace(self, query=self.world).counts()

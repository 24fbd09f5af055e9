"""The items of a gallery that are nearest to a query: exact, and in memory that does not grow with the queries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int

CHUNK_QUERIES = 64


@dataclass(frozen=True)
class Nearest:
    """Of each query the k best items, best first."""

    item: Int[np.ndarray, "q k"]
    """Position in the gallery."""
    cosine: Float[np.ndarray, "q k"]


def nearest(query: Float32[np.ndarray, "q d"], gallery: Float32[np.ndarray, "g d"], *, count: int) -> Nearest:
    """The `count` items (all of a smaller gallery) of highest inner product with each query; rows are unit-norm.

    Among items of equal score the one that stands first in the gallery comes first, also across the last place.
    Raises ValueError where `count` is not positive.
    """
    if count < 1:
        raise ValueError(f"got {count} items to find; at least 1 is allowed")
    count = min(count, len(gallery))
    item = np.empty((len(query), count), np.int64)
    cosine = np.empty((len(query), count), np.float32)
    for start in range(0, len(query), CHUNK_QUERIES):
        here = slice(start, start + CHUNK_QUERIES)
        scores = query[here] @ gallery.T  # [few g]
        last = np.partition(scores, -count, axis=1)[:, -count]
        for i, (row, least) in enumerate(zip(scores, last, strict=True), start):
            near = np.flatnonzero(row >= least)
            best = near[np.argsort(-row[near], kind="stable")[:count]]
            item[i], cosine[i] = best, row[best]
    return Nearest(item, cosine)

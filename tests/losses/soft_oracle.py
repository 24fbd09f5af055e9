"""Soft alignments and their triplets as loops over floats, from the equations of the reconstruction of PSD."""

from __future__ import annotations

import math
from collections.abc import Sequence

Row = Sequence[float]


def dot(x: Row, y: Row) -> float:
    return math.fsum(float(a) * float(b) for a, b in zip(x, y, strict=True))


def distance(x: Row, y: Row) -> float:
    return 1 - dot(x, y) / math.sqrt(dot(x, x) * dot(y, y))


def probabilities(query: Row, keys: Sequence[Row], kind: str, tau: float | None) -> list[float]:
    scores = [dot(query, key) for key in keys]
    if kind == "similarity":
        assert tau is not None
        scores = [math.exp(s / tau) for s in scores]
    total = math.fsum(scores)
    return [s / total for s in scores]


def weights(query: Row, keys: Sequence[Row], kind: str, tau: float | None) -> list[float]:
    p = probabilities(query, keys, kind, tau)
    return [x / max(p) for x in p]


def soft_triplets(query: Row, keys: Sequence[Row], w: Row, margin: float) -> tuple[float, float, float]:
    """(value, weight, weight of violated triplets) over all j and k."""
    value = weight = active = 0.0
    d = [distance(query, key) for key in keys]
    for j in range(len(keys)):
        for k in range(len(keys)):
            of = w[j] * (1 - w[k])
            hinge = max(0.0, margin + d[j] - d[k])
            value += of * hinge
            weight += of
            active += of if hinge > 0 else 0.0
    return value, weight, active


def hardest_soft_triplet(
    query: Row, keys: Sequence[Row], w: Row, margin: float
) -> tuple[float, float, float]:
    """The farthest key of w >= 1/2 and the nearest of the others; distances are all different."""
    d = [distance(query, key) for key in keys]
    positives = [j for j in range(len(keys)) if w[j] >= 0.5]
    negatives = [k for k in range(len(keys)) if w[k] < 0.5]
    if not positives or not negatives:
        return 0.0, 0.0, 0.0
    j, k = max(positives, key=lambda x: d[x]), min(negatives, key=lambda x: d[x])
    of, hinge = w[j] * (1 - w[k]), max(0.0, margin + d[j] - d[k])
    return of * hinge, 1.0, of if hinge > 0 else 0.0

"""Softmax losses by degree as loops over floats, from their equations."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tests.losses.soft_oracle import Row, distance


def soft_info_nce(query: Row, keys: Sequence[Row], w: Row, tau: float) -> float:
    s = [(1 - distance(query, key)) / tau for key in keys]
    rest = math.fsum((1 - w[k]) * math.exp(s[k]) for k in range(len(keys)))
    total = math.fsum(w)
    value = 0.0
    for j in range(len(keys)):
        value -= w[j] / total * math.log(math.exp(s[j]) / (math.exp(s[j]) + rest))
    return value


def soft_supcon(query: Row, keys: Sequence[Row], w: Row, tau: float) -> float:
    s = [(1 - distance(query, key)) / tau for key in keys]
    everyone = math.fsum(math.exp(x) for x in s)
    total = math.fsum(w)
    return -math.fsum(w[j] / total * math.log(math.exp(s[j]) / everyone) for j in range(len(keys)))

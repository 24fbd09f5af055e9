"""The false-negative distance test against loops, and graphs compared."""

from __future__ import annotations

import math

import numpy as np
import pytest

from raytrain.evaluation.latent import (
    adjacency_distance,
    co_activated,
    distance_test,
    distance_to_partners,
    edge_frequency,
    pair_f1,
    unlike_labels,
)

RNG = np.random.default_rng(4)


def unit(n: int, d: int) -> np.ndarray:
    x = RNG.normal(size=(n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_partners_and_their_distance_are_their_equations() -> None:
    source, target = RNG.random((5, 3)), RNG.random((7, 3))
    edges = np.array([[0, 1, 0], [0, 0, 1], [0, 0, 0]], bool)
    found = co_activated(source, target, edges, threshold=0.5)
    query, gallery = unit(5, 4), unit(7, 4)
    found[3] = False
    distances = distance_to_partners(query, gallery, found)
    for n in range(5):
        mine = []
        for m in range(7):
            linked = any(
                edges[i, j] and source[n, i] > 0.5 and target[m, j] > 0.5 for i in range(3) for j in range(3)
            )
            assert found[n, m] == (linked and n != 3)
            if found[n, m]:
                mine.append(1 - float(query[n] @ gallery[m]))
        if mine:
            assert distances[n] == pytest.approx(sum(mine) / len(mine), abs=1e-12)
        else:
            assert math.isnan(distances[n])
    assert math.isnan(distances[3]) and found.any()


def test_nearer_partners_are_above_zero() -> None:
    query, gallery, partners = unit(60, 8), unit(60, 8), np.eye(60, dtype=bool)
    nearer = query + 0.8 * gallery
    nearer /= np.linalg.norm(nearer, axis=1, keepdims=True)
    options = {"level": 0.95, "num_resamples": 500, "generator": np.random.default_rng(0)}
    found = distance_test((query, gallery), (nearer, gallery), partners, **options)
    expected = np.mean([nearer[i] @ gallery[i] - query[i] @ gallery[i] for i in range(60)])
    assert found.difference == pytest.approx(expected, abs=1e-12) and found.interval.low > 0
    same = distance_test((query, gallery), (query, gallery), partners, **options)
    assert same.difference == 0 and same.p_value == 1
    with pytest.raises(ValueError, match="nothing to resample"):
        distance_test((query, gallery), (nearer, gallery), partners & False, **options)


def test_unannotated_rows_are_unlike_nobody() -> None:
    found = unlike_labels(np.array([0, 1, -1]), np.array([1, 0, -1, 1]))
    assert found.tolist() == [[True, False, False, True], [False, True, False, False], [False] * 4]


def test_graphs_of_several_runs() -> None:
    first, second, third = np.zeros((3, 4, 4), bool)
    first[0, 2] = second[2, 0] = second[1, 3] = True
    frequency = edge_frequency([first, second, third])
    assert frequency[0, 2] == frequency[2, 0] == pytest.approx(2 / 3) and frequency[1, 3] == pytest.approx(
        1 / 3
    )
    assert adjacency_distance([first, second, third]) == pytest.approx((3**0.5 + 1 + 2**0.5) / 3)
    with pytest.raises(ValueError, match="at least two"):
        adjacency_distance([first])
    everywhere = np.ones((4, 4), bool)
    assert pair_f1(second, first, everywhere) == pytest.approx(2 / 3)
    assert pair_f1(third, third, everywhere) == 0

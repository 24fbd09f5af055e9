"""LIR against loops over floats written from its equation; the sample against all pairs; pairs that leave."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from raytrain.losses import masks
from raytrain.losses.latent_interaction import (
    Latent,
    latent_interaction,
    num_linked,
    sampled_latent_interaction,
)
from raytrain.losses.masks import Relation
from raytrain.types import Rows

N, D, C = 11, 4, 3
GENERATOR = torch.Generator().manual_seed(2)
TAU = 0.35
LABELS = [0, 1, 2, 0, -1, 1, 2, 0, -1, 1, 0]
WEIGHTS = torch.tensor([[0.0, 0.7, 0.3], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]], dtype=torch.float64)


def unit() -> Tensor:
    return F.normalize(torch.randn(N, D, dtype=torch.float64, generator=GENERATOR), dim=1)


def soft() -> Tensor:
    s = torch.rand(N, C, dtype=torch.float64, generator=GENERATOR)
    s[0, 0] = TAU  # not above
    return s


SOURCE, TARGET = soft(), soft()
LATENT = Latent(SOURCE, TARGET, torch.tensor(LABELS), torch.arange(N) * 2 + 5)


def pairs_of(i: int, j: int) -> list[tuple[int, int]]:
    found = []
    for n in range(N):
        for m in range(N):
            same = LABELS[n] == LABELS[m] and LABELS[n] >= 0
            if SOURCE[n, i] > TAU and TARGET[m, j] > TAU and not same and n != m:
                found.append((n, m))
            elif n == m and LABELS[n] < 0:
                continue  # one clip, whose class nobody knows
    return found


def oracle(z_source: Tensor, z_target: Tensor, rows: range) -> float:
    """The part of the rows in `rows`."""
    total = 0.0
    for i in range(C):
        for j in range(C):
            pairs = pairs_of(i, j)
            for n, m in pairs:
                if n not in rows:
                    continue
                cosine = sum(z_source[n, k].item() * z_target[m, k].item() for k in range(D))
                weight = WEIGHTS[i, j].item() * SOURCE[n, i].item() * TARGET[m, j].item()
                total += weight * (1 - cosine) / len(pairs)
    return total


def test_the_number_of_linked_pairs() -> None:
    found = num_linked(LATENT, threshold=TAU)
    assert found.tolist() == [[len(pairs_of(i, j)) for j in range(C)] for i in range(C)]
    assert found.min() > 0


@pytest.mark.parametrize("chunk", [2**20, 13])
def test_lir_is_its_equation(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(masks.CHUNK_ELEMENTS, "cpu", chunk)
    query, keys = unit(), unit()
    found = 0.0
    for first, stop in ((0, 4), (4, 5), (5, N)):
        rows = latent_interaction(query[first:stop], keys, LATENT, WEIGHTS, first=first, threshold=TAU)
        assert rows.sum().item() == pytest.approx(oracle(query, keys, range(first, stop)), abs=1e-12)
        found += rows.sum().item()
    assert found == pytest.approx(oracle(query, keys, range(N)), abs=1e-12)


@pytest.mark.parametrize("chunk", [2**20, 13])
def test_the_gradient_is_that_of_the_equation(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(masks.CHUNK_ELEMENTS, "cpu", chunk)
    query, keys = unit()[2:9].requires_grad_(), unit().requires_grad_()

    def rows(q: Tensor, k: Tensor) -> Tensor:
        return latent_interaction(q, k, LATENT, WEIGHTS, first=2, threshold=TAU)

    assert torch.autograd.gradcheck(rows, (query, keys))


def test_the_sample_is_lir_in_expectation() -> None:
    query, keys = unit(), unit()
    draws = torch.rand(2, C, 2, 60_000, dtype=torch.float64, generator=GENERATOR)
    parts = [
        sampled_latent_interaction(
            query[first:stop], keys, LATENT, WEIGHTS, draws, first=first, threshold=TAU
        ).item()
        for first, stop in ((0, 4), (4, N))
    ]
    assert sum(parts) == pytest.approx(oracle(query, keys, range(N)), rel=0.01)
    assert parts[0] == pytest.approx(oracle(query, keys, range(4)), rel=0.02)


def test_a_sample_is_the_mean_over_its_kept_pairs() -> None:
    query, keys = unit(), unit()
    draws = torch.rand(2, C, 1, 6, dtype=torch.float64, generator=GENERATOR)
    found = sampled_latent_interaction(query, keys, LATENT, WEIGHTS, draws, first=0, threshold=TAU)
    expected = 0.0
    for i, j in ((0, 1), (1, 2)):  # the strongest edge of each class
        sources = [n for n in range(N) if SOURCE[n, i] > TAU]
        targets = [m for m in range(N) if TARGET[m, j] > TAU]
        kept = []
        for s in range(6):
            n = sources[int(draws[0, i, 0, s].item() * len(sources))]
            m = targets[int(draws[1, i, 0, s].item() * len(targets))]
            if (n, m) in pairs_of(i, j):
                cosine = float(query[n] @ keys[m])
                kept.append(SOURCE[n, i].item() * TARGET[m, j].item() * (1 - cosine))
        assert kept
        expected += WEIGHTS[i, j].item() * sum(kept) / len(kept)
    assert found.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("threshold", [TAU, 0.9999])
def test_nothing_is_linked_without_edges_or_activated_rows(threshold: float) -> None:
    query, keys = unit().requires_grad_(), unit()
    weights = WEIGHTS if threshold > 0.9 else torch.zeros_like(WEIGHTS)
    draws = torch.rand(2, C, 2, 5, dtype=torch.float64, generator=GENERATOR)
    for value in (
        latent_interaction(query, keys, LATENT, weights, first=0, threshold=threshold).sum(),
        sampled_latent_interaction(query, keys, LATENT, weights, draws, first=0, threshold=threshold),
    ):
        (gradient,) = torch.autograd.grad(value, query)
        assert value.item() == 0 and not gradient.any()


def test_linked_pairs_leave_the_negatives_and_are_not_counted() -> None:
    rows = Rows(torch.arange(4), {}, labels=torch.tensor([0, 1, 2, 0]))
    relation = Relation.between(rows, rows, views="cross", by="labels")
    sent = torch.tensor([[0.5, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    received = torch.tensor([[0.0, 0.0], [0.6, 0.0], [0.6, 0.3], [0.6, 0.0]])
    linked = replace(
        relation,
        query=replace(relation.query, link=sent),
        world=replace(relation.world, link=sent),
        key=replace(relation.key, link=received),
    )
    positive, negative = linked.masks(0, 4)
    before = relation.masks(0, 4)
    assert torch.equal(positive, before[0])
    assert torch.equal(negative, before[1] & ~torch.tensor([[False, True, True, False]] + [[False] * 4] * 3))
    assert linked.counts()[1].tolist() == [0, 3, 3, 2]
    assert [count.tolist() for count in linked.world_counts] == [count.tolist() for count in linked.counts()]


def test_a_weighed_pair_stays_with_the_rest_of_its_probability() -> None:
    rows = Rows(torch.arange(2), {}, labels=torch.tensor([0, 1]))
    relation = Relation.between(rows, rows, views="cross", by="labels")
    stayed = 0
    for _ in range(2000):
        draw, key_draw = torch.rand(2, generator=GENERATOR), torch.rand(2, generator=GENERATOR)
        weighed = replace(
            relation,
            query=replace(relation.query, link=torch.tensor([[0.5], [0.0]]), draw=draw),
            key=replace(relation.key, link=torch.tensor([[0.0], [0.6]]), draw=key_draw),
        )
        negative = weighed.masks(0, 2)[1]
        assert negative[1, 0], "not linked, never leaves"
        stayed += int(negative[0, 1])
    assert stayed / 2000 == pytest.approx(0.7, abs=0.04)

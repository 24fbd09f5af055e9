from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from raytrain.losses import alignment, masks
from raytrain.losses.alignment import Alignment, confident
from raytrain.losses.masks import Relation
from raytrain.losses.soft_triplet import SoftMining, soft_triplet, soft_weight
from raytrain.losses.triplet import triplet
from tests.losses import soft_oracle as oracle
from tests.losses.rows import rows, unit
from tests.losses.test_blocks import _Largest

MINING = get_args(SoftMining)
B, N, D = 5, 9, 4
ALIGNMENTS = {
    "similarity": Alignment(unit(B, 3, 10), unit(N, 3, 11), "similarity", 0.4),
    "classes": Alignment(
        (3 * unit(B, 6, 12)).softmax(dim=1), (3 * unit(N, 6, 13)).softmax(dim=1), "classes", None
    ),
}
EVERYONE = torch.ones(B, dtype=torch.bool)


class _Given(Alignment):
    """An alignment whose w is given, for those that no teacher would make."""

    def weights(self, start: int, stop: int) -> Tensor:
        return self.query[start:stop]

    def of(self, index: Tensor) -> Alignment:
        return _Given(self.query[index], self.keys, self.kind, self.temperature)


def given(w: Tensor) -> Alignment:
    return _Given(w, torch.empty(w.shape[1], w.shape[1], dtype=w.dtype), "classes", None)


def vectors(*, ties: bool, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """(query, keys), of any norm; with ties, keys whose distances are equal or differ by the margin exactly."""
    query, keys = unit(B, D, 0, dtype) * 2.5, unit(N, D, 1, dtype) * 0.7
    if ties:
        keys[3:6] = keys[2]
        keys[7] = 3 * keys[6]
        query[0] = keys[2]
        query[1], keys[0] = torch.eye(D, dtype=dtype)[0], torch.eye(D, dtype=dtype)[1]
        keys[1], keys[8] = torch.eye(D, dtype=dtype)[0], -torch.eye(D, dtype=dtype)[0]  # distances 1, 0 and 2
    return query.requires_grad_(), keys.requires_grad_()


@pytest.mark.parametrize("kind", ALIGNMENTS)
def test_weights_and_extent_are_their_equations(kind: str) -> None:
    made = ALIGNMENTS[kind]
    extent = made.extent()
    for i, query in enumerate(made.query.tolist()):
        expected = oracle.weights(query, made.keys.tolist(), kind, made.temperature)
        assert made.weights(i, i + 1)[0].tolist() == pytest.approx(expected, abs=1e-12)
        assert extent.mass[i].item() == pytest.approx(sum(expected), abs=1e-12)
        assert extent.num_negative[i].item() == sum(w < 0.5 for w in expected)
        p = oracle.probabilities(query, made.keys.tolist(), kind, made.temperature)
        for gate in (1.2, 2.0, 3.0, 4.0):
            assert confident(extent, N, gate=gate)[i].item() == (max(p) >= gate / N)
    assert confident(extent, N, gate=None).all()
    some = [confident(extent, N, gate=gate) for gate in (2.0, 3.0, 4.0)]
    assert any(one.any() and not one.all() for one in some), "the case tells rows apart"


@pytest.mark.parametrize("kind", ALIGNMENTS)
@pytest.mark.parametrize("mining", MINING)
@pytest.mark.parametrize("margin", [0.0, 0.3, 1.0])
def test_value_weight_and_active_part_are_the_cubic_sum(kind: str, mining: Any, margin: float) -> None:
    made = ALIGNMENTS[kind]
    query, keys = vectors(ties=False)
    found = soft_triplet(query, keys, made, EVERYONE, margin=margin, mining=mining)
    weight = soft_weight(made.extent(), N, mining=mining)
    of = oracle.soft_triplets if mining == "all" else oracle.hardest_soft_triplet
    for i in range(B):
        w = oracle.weights(made.query[i].tolist(), made.keys.tolist(), kind, made.temperature)
        value, expected_weight, active = of(query[i].tolist(), keys.tolist(), w, margin)
        assert found.value[i].item() == pytest.approx(value, abs=1e-12)
        assert weight[i].item() == pytest.approx(expected_weight, abs=1e-10)
        if margin or mining == "hard":  # without a margin j = k just meets it, by rounding
            assert found.active[i].item() == pytest.approx(active, abs=1e-12)
    assert found.value.any()


def cubic(query: Tensor, keys: Tensor, w: Tensor, margin: float, mining: str) -> Tensor:
    """The same sum over a [b n n] tensor, for its gradient by autograd; ties share it."""
    q, k = (x / x.norm(dim=1, keepdim=True) for x in (query, keys))
    d = 1 - q @ k.T
    if mining == "all":
        of = w[:, :, None] * (1 - w)[:, None, :]
        return (of * (margin + d[:, :, None] - d[:, None, :]).relu()).sum((1, 2))
    positive = w >= 0.5
    far = torch.where(positive, d, -torch.inf).amax(1)
    near = torch.where(positive, torch.inf, d).amin(1)
    of_far = (w * (positive & (d == far[:, None]))).sum(1) / (positive & (d == far[:, None])).sum(1)
    chosen = ~positive & (d == near[:, None])
    of_near = ((1 - w) * chosen).sum(1) / chosen.sum(1).clamp(min=1)
    return (of_far * of_near).detach() * (margin + far - near).relu()


@pytest.mark.parametrize("ties", [False, True], ids=["apart", "ties"])
@pytest.mark.parametrize("mining", MINING)
@pytest.mark.parametrize("budget", [1, 2**20], ids=["one by one", "at once"])
def test_gradient_is_that_of_the_cubic_sum(ties: bool, mining: Any, budget: int, monkeypatch: Any) -> None:
    monkeypatch.setitem(masks.CHUNK_ELEMENTS, "cpu", budget)
    generator = torch.Generator().manual_seed(5)
    w = torch.rand(B, N, generator=generator, dtype=torch.float64)
    w[:, 4] = 1
    w[2], w[3] = 0, 1  # nothing is aligned, and everything: no triplet
    w[4, [0, 3, 6]] = 0
    upstream = torch.rand(B, generator=generator, dtype=torch.float64)
    gradients = []
    for way in ("ours", "cubic"):
        query, keys = vectors(ties=ties)
        if way == "ours":
            counted = torch.ones(B, dtype=torch.bool)
            value = soft_triplet(query, keys, given(w), counted, margin=1.0, mining=mining).value
        else:
            keep = [0, 1, 3, 4] if mining == "all" else [0, 1, 4]  # amax over nothing has no oracle
            value = torch.zeros(B, dtype=torch.float64)
            value = value.index_put((torch.tensor(keep),), cubic(query[keep], keys, w[keep], 1.0, mining))
        (upstream * value).sum().backward()
        gradients.append((value.detach(), query.grad, keys.grad))
    for mine, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-12)
    assert not gradients[0][1][[2, 3]].any() and gradients[0][1][0].any()


@pytest.mark.parametrize("mining", MINING)
def test_certain_alignments_are_the_triplet_loss(mining: Any) -> None:
    """w = 1 for rows of the same class and 0 for others: no triplet of the label loss is missing, none is added."""
    labels = [0, 1, 2, 0, 1, 1, 0, 2, 0]
    query, keys = vectors(ties=False)
    own, everyone = rows(labels[:B]), rows(labels)
    w = (own.labels[:, None] == everyone.labels[None, :]).double()
    relation = Relation.between(own, everyone, views="cross", by="labels")
    expected = triplet(query, keys, relation, margin=0.4, mining=mining, distance="cosine")
    found = soft_triplet(query, keys, given(w), EVERYONE, margin=0.4, mining=mining)
    torch.testing.assert_close(found.value, expected.value)
    torch.testing.assert_close(found.active, expected.active.double())
    torch.testing.assert_close(soft_weight(given(w).extent(), N, mining=mining), expected.weight.double())


@pytest.mark.parametrize("mining", MINING)
def test_rows_that_do_not_count_get_and_give_nothing(mining: Any) -> None:
    counted = torch.tensor([True, False, True, False, False])
    made, found = ALIGNMENTS["similarity"], []
    for some in (counted, EVERYONE):
        query, keys = vectors(ties=False)
        value = soft_triplet(query, keys, made, some, margin=0.3, mining=mining).value
        value[counted].sum().backward()
        found.append((value.detach(), query.grad, keys.grad))
    assert not found[0][0][~counted].any() and not found[0][1][~counted].any()
    torch.testing.assert_close(found[0][0][counted], found[1][0][counted])
    torch.testing.assert_close(found[0][1:], found[1][1:])
    query, keys = vectors(ties=False)
    nobody = soft_triplet(query, keys, made, torch.zeros(B, dtype=torch.bool), margin=0.3, mining=mining)
    nobody.value.sum().backward()
    assert not nobody.value.any() and not query.grad.any() and not keys.grad.any()


def test_classes_without_a_common_one_are_aligned_with_nothing() -> None:
    made = Alignment(torch.eye(3)[:1], torch.eye(3)[1:], "classes", None)
    extent = made.extent()
    assert made.weights(0, 1).tolist() == [[0, 0]] and not confident(extent, 2, gate=None).any()


@pytest.mark.parametrize("mining", MINING)
def test_float32_is_near_float64_under_autocast_too(mining: Any) -> None:
    made = ALIGNMENTS["similarity"]
    single = Alignment(made.query.float(), made.keys.float(), "similarity", 0.4)
    values = []
    for dtype, aligned in ((torch.float64, made), (torch.float32, single)):
        query, keys = vectors(ties=False, dtype=dtype)
        with torch.autocast("cpu", torch.bfloat16):
            values.append(soft_triplet(query, keys, aligned, EVERYONE, margin=0.3, mining=mining).value)
    assert values[1].dtype == torch.float32
    torch.testing.assert_close(values[1].double(), values[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mining", MINING)
def test_no_tensor_is_as_large_as_all_pairs(mining: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(masks.CHUNK_ELEMENTS, "cpu", 2**12)
    assert alignment.blocks is masks.blocks
    n = 512
    query, keys = unit(n, 8, 0, torch.float32).requires_grad_(), unit(n, 8, 1, torch.float32).requires_grad_()
    made = Alignment(unit(n, 8, 2, torch.float32), unit(n, 8, 3, torch.float32), "similarity", 0.2)
    with _Largest() as largest:
        extent = made.extent()
        counted = confident(extent, n, gate=1.5)
        found = soft_triplet(query, keys, made, counted, margin=0.2, mining=mining)
        found.value.sum().backward()
    assert 0 < largest.numel <= 2 * 2**12 + n, "nothing but a block and its sums"
    assert counted.any() and keys.grad is not None and keys.grad.any()


@pytest.mark.parametrize("kind", ALIGNMENTS)
def test_the_pair_of_a_clip_may_be_certain(kind: str) -> None:
    plain, pair = ALIGNMENTS[kind], torch.tensor([3, 0, 8, 1, 2])
    made = replace(plain, pair=pair)
    w, before = made.weights(1, 4), plain.weights(1, 4)
    for i in range(3):
        for j in range(N):
            assert w[i, j] == (1 if j == pair[1 + i] else before[i, j])
    torch.testing.assert_close(made.extent().mass, made.weights(0, B).sum(dim=1))
    torch.testing.assert_close(made.of(pair[:2]).weights(0, 2), made.weights(0, B)[[3, 0]])
    torch.testing.assert_close(made.of(slice(2, 4)).weights(0, 2), made.weights(2, 4))


def test_an_alignment_is_of_some_queries() -> None:
    made = ALIGNMENTS["similarity"]
    index = torch.tensor([3, 1])
    torch.testing.assert_close(made.of(index).weights(0, 2), made.weights(0, B)[index])
    assert len(replace(made, query=made.query[2:])) == 3

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from raytrain.losses import masks
from raytrain.losses.alignment import Alignment, confident
from raytrain.losses.masks import Relation
from raytrain.losses.soft_softmax import SoftSoftmax, soft_softmax, soft_softmax_weight
from raytrain.losses.softmax import info_nce, supervised_contrastive
from raytrain.models.class_space import beside_classes
from tests.losses import soft_oracle, soft_softmax_oracle
from tests.losses.rows import rows, unit
from tests.losses.test_blocks import _Largest
from tests.losses.test_soft_triplet import ALIGNMENTS, EVERYONE, B, D, N, given, vectors

KINDS = get_args(SoftSoftmax)
ORACLES = {"info-nce": soft_softmax_oracle.soft_info_nce, "supcon": soft_softmax_oracle.soft_supcon}


def loss(query: Tensor, keys: Tensor, made: Alignment, kind: Any, counted: Tensor = EVERYONE) -> Any:
    return soft_softmax(query, keys, made, counted, kind=kind, temperature=0.3, gradient_above=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("aligned", ALIGNMENTS)
@pytest.mark.parametrize("ties", [False, True], ids=["apart", "ties"])
def test_values_are_their_equations(kind: Any, aligned: str, ties: bool) -> None:
    made = ALIGNMENTS[aligned]
    query, keys = vectors(ties=ties)
    found = loss(query, keys, made, kind)
    assert soft_softmax_weight(made.extent(), N, kind=kind).tolist() == [1.0] * B
    for i in range(B):
        w = soft_oracle.weights(made.query[i].tolist(), made.keys.tolist(), aligned, made.temperature)
        expected = ORACLES[kind](query[i].tolist(), keys.tolist(), w, 0.3)
        assert found.value[i].item() == pytest.approx(expected, abs=1e-12)


def dense(query: Tensor, keys: Tensor, w: Tensor, kind: str) -> Tensor:
    """The same over a [b n] matrix, for its gradient by autograd."""
    s = (query / query.norm(dim=1, keepdim=True)) @ (keys / keys.norm(dim=1, keepdim=True)).T / 0.3
    rest = ((1 - w) * s.exp()).sum(1, keepdim=True) + (
        s.exp() if kind == "info-nce" else (w * s.exp()).sum(1, keepdim=True)
    )
    return -(w / w.sum(1, keepdim=True) * (s.exp() / rest).log()).sum(1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", [1, 2**20], ids=["one by one", "at once"])
def test_gradient_is_that_of_autograd(kind: Any, budget: int, monkeypatch: Any) -> None:
    monkeypatch.setitem(masks.CHUNK_ELEMENTS, "cpu", budget)
    generator = torch.Generator().manual_seed(5)
    w = torch.rand(B, N, generator=generator, dtype=torch.float64)
    w[:, 4] = 1
    w[4, [0, 3, 6]] = 0
    upstream = torch.rand(B, generator=generator, dtype=torch.float64)
    gradients, active = [], None
    for way in ("ours", "dense"):
        query, keys = vectors(ties=True)
        found = loss(query, keys, given(w), kind) if way == "ours" else None
        value = dense(query, keys, w, kind) if found is None else found.value
        active = active if found is None else found.active
        (upstream * value).sum().backward()
        gradients.append((value.detach(), query.grad, keys.grad))
    for mine, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-12)
    assert gradients[0][1].any(dim=1).all() and active is not None and active.tolist() == [1.0] * B


@pytest.mark.parametrize("kind", KINDS)
def test_certain_alignments_are_the_loss_with_labels(kind: Any) -> None:
    labels = [0, 1, 2, 0, 1, 1, 0, 2, 0]
    query, keys = (unit(B, D, 0).requires_grad_(), unit(N, D, 1).requires_grad_())
    own, everyone = rows(labels[:B]), rows(labels)
    w = (own.labels[:, None] == everyone.labels[None, :]).double()
    relation = Relation.between(own, everyone, views="cross", by="labels")
    of_labels = info_nce if kind == "info-nce" else supervised_contrastive
    expected = of_labels(query, keys, relation, temperature=0.3, gradient_above=1e-3)
    found = loss(query, keys, given(w), kind)
    torch.testing.assert_close(found.value, expected.value)
    torch.testing.assert_close(found.active, expected.active.double())


def test_a_student_that_is_its_teacher_has_learnt_supcon_but_not_info_nce() -> None:
    """The cross-entropy is least, the teacher's entropy, where both softmaxes agree; InfoNCE goes on."""
    query, keys = (unit(B, D, 0).requires_grad_(), unit(N, D, 1).requires_grad_())
    made = Alignment(query.detach(), keys.detach(), "similarity", 0.3)
    found = loss(query, keys, made, "supcon")
    p = (query @ keys.T / 0.3).softmax(dim=1)
    torch.testing.assert_close(found.value, -(p * p.log()).sum(dim=1))
    assert not found.active.any()
    assert loss(query, keys, made, "info-nce").active.all()


def test_keys_that_are_all_aligned_alike_have_no_negative() -> None:
    made = given(torch.ones(B, N, dtype=torch.float64))
    query, keys = vectors(ties=False)
    found = loss(query, keys, made, "info-nce")
    found.value.sum().backward()
    assert not found.value.any() and not query.grad.any() and not keys.grad.any()
    assert not soft_softmax_weight(made.extent(), N, kind="info-nce").any()
    assert soft_softmax_weight(made.extent(), N, kind="supcon").all()
    assert loss(*vectors(ties=False), made, "supcon").value.all()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_are_aligned_with_nothing_or_do_not_count_are_at_zero(kind: Any) -> None:
    w = torch.zeros(B, N, dtype=torch.float64)
    w[0, 2] = 1
    query, keys = vectors(ties=False)
    found = loss(query, keys, given(w), kind, torch.tensor([True, False, True, True, True]))
    found.value.sum().backward()
    assert found.value[0] > 0 and not found.value[1:].any() and not query.grad[1:].any()
    assert query.grad.isfinite().all() and keys.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_low_temperatures_and_half_precision_stay_finite(kind: Any) -> None:
    made = ALIGNMENTS["similarity"]
    single = Alignment(made.query.float(), made.keys.float(), "similarity", 1e-3)
    query, keys = vectors(ties=True, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = soft_softmax(query, keys, single, EVERYONE, kind=kind, temperature=1e-3, gradient_above=1e-3)
    found.value.sum().backward()
    assert found.value.isfinite().all() and query.grad.isfinite().all() and keys.grad.isfinite().all()
    values = [
        loss(*vectors(ties=False, dtype=dtype), of, kind).value.double()
        for dtype, of in (
            (torch.float64, made),
            (torch.float32, Alignment(made.query.float(), made.keys.float(), "similarity", 0.4)),
        )
    ]
    torch.testing.assert_close(values[1], values[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_no_tensor_is_as_large_as_all_pairs(kind: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(masks.CHUNK_ELEMENTS, "cpu", 2**12)
    n = 512
    query, keys = unit(n, 8, 0, torch.float32).requires_grad_(), unit(n, 8, 1, torch.float32).requires_grad_()
    made = Alignment(unit(n, 8, 2, torch.float32), unit(n, 8, 3, torch.float32), "similarity", 0.2)
    with _Largest() as largest:
        counted = confident(made.extent(), n, gate=1.5)
        loss(query, keys, made, kind, counted).value.sum().backward()
    assert 0 < largest.numel <= 2 * 2**12 + n, "nothing but a block and its sums"
    assert counted.any() and keys.grad is not None and keys.grad.any()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_classes_beside_the_embedding_mix_two_cosines(share: float) -> None:
    z, u = unit(4, 3, 0), unit(4, 5, 1) * 3
    made = beside_classes(z, u, share=share)
    for i in range(4):
        for j in range(4):
            q, k = ([math.exp(x) for x in u[r].tolist()] for r in (i, j))  # a cosine needs no norm
            of_classes = 1 - soft_oracle.distance(q, k)
            expected = (1 - share) * soft_oracle.dot(z[i].tolist(), z[j].tolist()) + share * of_classes
            assert (made[i] @ made[j]).item() == pytest.approx(expected, abs=1e-12)
    assert (made is z) == (share == 0)

"""Losses on class logits, between columns, and DSCMR's likelihood of pairs."""

from __future__ import annotations

import math

import pytest
import torch

from raytrain.losses.decorrelation import cross_correlation, decorrelation
from raytrain.losses.label import is_annotated, label_loss, targets
from raytrain.losses.likelihood import pair_likelihood
from raytrain.losses.masks import Marks, Relation
from raytrain.losses.reduction import active_share, world_mean
from tests.losses.rows import rows, unit

EVENTS = [[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]]


def test_targets_are_one_hot_or_the_event_set() -> None:
    labels = Marks.of(rows([2, -1, 0]), "labels")
    assert targets(labels, 4, torch.float64).tolist() == [[0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert is_annotated(labels).tolist() == [True, False, True]
    events = Marks.of(rows(events=EVENTS), "events")
    assert targets(events, 4, torch.float32).tolist() == EVENTS
    assert is_annotated(events).tolist() == [True, False, True]


def test_label_losses_are_their_equations() -> None:
    logits = unit(3, 4, 0) * 3 + 0.4
    target = targets(Marks.of(rows(events=EVENTS), "events"), 4, torch.float64)
    norm, cross = (label_loss(logits, target, kind=kind) for kind in ("norm", "cross-entropy"))
    for i, (u, y) in enumerate(zip(logits.tolist(), EVENTS, strict=True)):
        assert norm[i].item() == pytest.approx(
            math.sqrt(sum((a - b) ** 2 for a, b in zip(u, y, strict=True)))
        )
        log_sum = math.log(sum(math.exp(a) for a in u))
        expected = sum(b / max(1, sum(y)) * (log_sum - a) for a, b in zip(u, y, strict=True))
        assert cross[i].item() == pytest.approx(expected)
    one_hot = targets(Marks.of(rows([3, 0, 1]), "labels"), 4, torch.float64)
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([3, 0, 1]), reduction="none")
    torch.testing.assert_close(label_loss(logits, one_hot, kind="cross-entropy"), expected)


def test_the_norm_has_no_gradient_where_it_is_zero() -> None:
    logits = torch.tensor([[0.0, 1.0], [1.0, 1.0]], requires_grad=True)
    loss = label_loss(logits, torch.tensor([[0.0, 1.0], [0.0, 1.0]]), kind="norm")
    loss.sum().backward()
    assert loss.tolist() == [0, 1] and logits.grad is not None
    assert logits.grad.tolist() == [[0, 0], [1, 0]]


def test_correlations_are_their_equation() -> None:
    audio, visual = unit(7, 3, 0) + 0.8, unit(7, 4, 1) * 2 - 0.3
    found = cross_correlation(audio, visual)
    for k, x in enumerate(audio.T.tolist()):
        for m, y in enumerate(visual.T.tolist()):
            mx, my = sum(x) / 7, sum(y) / 7
            above = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
            below = math.sqrt(sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y))
            assert found[k, m].item() == pytest.approx(above / below, abs=1e-12)
    c = cross_correlation(audio, visual[:, :3])
    expected = sum(c[k, m].item() ** 2 for k in range(3) for m in range(3) if k != m) / 6
    assert decorrelation(audio, visual[:, :3]).item() == pytest.approx(expected, abs=1e-14)


def test_decorrelation_of_independent_and_of_equal_columns() -> None:
    signs = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]).double()  # orthogonal columns
    assert decorrelation(signs, signs).item() == pytest.approx(0, abs=1e-14)
    same = signs[:, :1].expand(4, 3)
    assert decorrelation(same, same).item() == pytest.approx(1)
    assert decorrelation(signs[:, :1], signs[:, :1]).item() == 0


def test_a_constant_column_is_uncorrelated_and_still() -> None:
    audio, visual = unit(6, 3, 0, torch.float32), unit(6, 3, 1, torch.float32)
    audio[:, 1] = 0.1  # its computed mean is not exactly it
    audio.requires_grad_()
    found = cross_correlation(audio, visual)
    decorrelation(audio, visual).backward()
    assert not found[1].any() and audio.grad is not None
    assert audio.grad.isfinite().all() and not audio.grad[:, 1].any() and audio.grad[:, 0].any()


def test_pair_likelihood_is_its_equation_and_its_gradient() -> None:
    labels = [0, 1, 0, -1, 2, 1]
    query, keys = unit(4, 5, 0).requires_grad_(), unit(6, 5, 1).requires_grad_()
    relation = Relation.between(rows(labels[:4]), rows(labels), views="cross", by="labels")
    found = pair_likelihood(query, keys, relation)
    whole, pairs = 0.0, 0
    for i in range(4):
        value = 0.0
        for j in range(6):
            same = i == j or (labels[i] == labels[j] != -1)
            if i != j and -1 in (labels[i], labels[j]):
                continue
            theta = 0.5 * sum(a * b for a, b in zip(query[i].tolist(), keys[j].tolist(), strict=True))
            value += math.log(1 + math.exp(theta)) - (theta if same else 0.0)
            pairs += 1
        assert found.value[i].item() == pytest.approx(value, abs=1e-12)
        whole += value
    assert found.weight.sum() == pairs
    assert world_mean(found, relation).item() == pytest.approx(whole / pairs)
    assert active_share(found, relation) == 1
    assert torch.autograd.gradcheck(lambda q, k: pair_likelihood(q, k, relation).value, (query, keys))

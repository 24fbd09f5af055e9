"""The terms of AV-SAL against loops over floats, and the calibration against a search."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from raytrain.losses.label_agreement import either, fit_calibration, jensen_shannon, label_error, one_of
from raytrain.types import UNANNOTATED

GENERATOR = torch.Generator().manual_seed(3)


def logits(n: int, c: int, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(n, c, generator=GENERATOR, dtype=torch.float64) - 0.7


def softmax(u: list[float], temperature: float) -> list[float]:
    weights = [math.exp(x / temperature) for x in u]
    return [w / sum(weights) for w in weights]


@pytest.mark.parametrize(("smoothing", "r"), [(0.0, 1.0), (0.3, 1.0), (0.2, 0.35)])
def test_the_binary_cross_entropy_is_its_equation(smoothing: float, r: float) -> None:
    u, labels = logits(5, 4), [2, 0, -1, 2, 3]
    found = label_error(u, torch.tensor(labels), kind="bce", smoothing=smoothing, annotated=r)
    for row, label in enumerate(labels):
        total = 0.0
        for k in range(4):
            y = (1 - smoothing) * (k == label) + smoothing * 0.5
            s = r / (1 + math.exp(-u[row, k].item()))
            total -= y * math.log(s) + (1 - y) * math.log(1 - s)
        assert found[row].item() == pytest.approx(0.0 if label < 0 else total / 4, abs=1e-12)


def test_l2_is_the_distance_to_the_target() -> None:
    u, labels = logits(3, 5), [4, 1, -1]
    found = label_error(u, torch.tensor(labels), kind="l2", smoothing=0.2, annotated=0.6)
    for row, label in enumerate(labels):
        squares = [
            (0.6 / (1 + math.exp(-u[row, k].item())) - (0.8 * (k == label) + 0.1)) ** 2 for k in range(5)
        ]
        assert found[row].item() == pytest.approx(0.0 if label < 0 else math.sqrt(sum(squares)), abs=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_jensen_shannon_is_its_equation(temperature: float) -> None:
    first, second = logits(6, 3), logits(6, 3)
    second[4] = first[4]
    found = jensen_shannon(first, second, temperature=temperature)
    for row in range(6):
        p, q = (softmax(u[row].tolist(), temperature) for u in (first, second))
        m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
        kl = [sum(a * math.log(a / b) for a, b in zip(x, m, strict=True)) for x in (p, q)]
        assert found[row].item() == pytest.approx(sum(kl) / 2, abs=1e-12)
    assert found[4].item() == pytest.approx(0, abs=1e-15)


def test_jensen_shannon_is_bounded_and_finite_where_a_probability_vanishes() -> None:
    first = torch.tensor([[900.0, -900.0], [0.0, 0.0]], requires_grad=True)
    second = torch.tensor([[-900.0, 900.0], [0.0, -1e4]])
    found = jensen_shannon(first, second, temperature=1.0)
    found.sum().backward()
    assert found[0].item() == pytest.approx(math.log(2), abs=1e-6)
    assert 0 < found[1].item() < math.log(2)
    assert first.grad is not None and first.grad.isfinite().all()


def test_a_hidden_event_may_be_sure() -> None:
    """Of two classes that always happen, half of the clips annotate either: with r = 1/2 both soft labels go to 1."""
    logit = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([logit], lr=0.1)
    labels = torch.arange(10) % 2
    for _ in range(300):
        optimizer.zero_grad()
        label_error(logit.expand(10, 2), labels, kind="bce", smoothing=0.0, annotated=0.5).mean().backward()
        optimizer.step()
    assert torch.sigmoid(logit).min() > 0.97


@pytest.mark.parametrize("r", [1.0, 0.4])
@pytest.mark.parametrize("kind", ["temperature", "platt"])
def test_calibration_is_the_minimum_that_a_search_finds(kind: str, r: float) -> None:
    u = logits(400, 3)
    labels = torch.multinomial(torch.softmax(0.4 * u, dim=1), 1, generator=GENERATOR).squeeze(1)
    labels[::7] = -1
    found = fit_calibration(u, labels, kind=kind, annotated=r)
    known = (labels >= 0).numpy()
    x, y = u.numpy()[known], np.eye(3)[labels.numpy()[known]]

    def error(theta: np.ndarray) -> float:
        z = theta[0] * x + (theta[1] if kind == "platt" else 0.0)
        s = r / (1 + np.exp(-z))
        return float(-np.mean(y * np.log(s) + (1 - y) * np.log(1 - s)))

    best = minimize(error, [1.0, 0.0][: 2 if kind == "platt" else 1], method="Nelder-Mead",
                    options={"xatol": 1e-9, "fatol": 1e-14}).x  # fmt: skip
    assert found.scale == pytest.approx(best[0], abs=1e-5)
    assert found.offset == pytest.approx(best[1] if kind == "platt" else 0.0, abs=1e-5)
    if r == 1:
        assert 0.1 < found.scale < 0.9, "overconfident logits are drawn in"


def test_either_is_the_noisy_or_and_finite_where_both_are_sure() -> None:
    first, second = torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    s = 1 - (1 - torch.sigmoid(first)) * (1 - torch.sigmoid(second))
    torch.testing.assert_close(torch.sigmoid(either(first, second)), s)
    for u, v, expected in ((-300.0, -300.0, -300 + math.log(2)), (-300.0, 5.0, 5.0), (300.0, 300.0, 600.0)):
        found = either(torch.tensor([[u]]), torch.tensor([[v]]))
        assert found.item() == pytest.approx(expected, rel=1e-6)


def test_the_annotation_is_one_of_the_events_by_their_odds() -> None:
    first, second = logits(6, 5), logits(6, 5)
    labels = torch.tensor([2, 0, UNANNOTATED, 4, 1, 0])
    found = one_of(either(first, second), labels)
    for n, label in enumerate(labels.tolist()):
        odds = [(1 + math.exp(a)) * (1 + math.exp(v)) - 1 for a, v in zip(first[n], second[n], strict=True)]
        expected = 0.0 if label == UNANNOTATED else -math.log(odds[label] / sum(odds))
        assert found[n].item() == pytest.approx(expected, rel=1e-9)


def test_a_fainter_event_need_not_be_absent_for_another_to_be_annotated() -> None:
    """What BCE asks of a hidden event is that it goes; the choice of a louder one asks next to nothing of it."""
    u = torch.tensor([[8.0, 3.0]], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0])
    (choice,) = torch.autograd.grad(one_of(u, labels).sum(), u)
    (fit,) = torch.autograd.grad(label_error(u, labels, kind="bce", smoothing=0.0, annotated=1.0).sum(), u)
    assert 0 < choice[0, 1] < 0.01 < 0.4 < fit[0, 1]
    assert torch.isfinite(one_of(torch.full((1, 2), 1e4), labels)).all()


def test_calibration_of_separable_rows_stays_finite() -> None:
    u = torch.tensor([[5.0, -5.0], [-5.0, 5.0]])
    found = fit_calibration(u, torch.tensor([0, 1]), kind="platt", annotated=1.0)
    assert 1 < found.scale <= 100 and math.isfinite(found.offset)
    assert fit_calibration(u, torch.tensor([0, 1]), kind="none", annotated=1.0) == (1.0, 0.0)


def test_calibration_without_a_held_out_class_is_refused() -> None:
    with pytest.raises(ValueError, match="needs held-out rows with a class, got none of 2"):
        fit_calibration(torch.zeros(2, 3), torch.tensor([-1, -1]), kind="temperature", annotated=1.0)

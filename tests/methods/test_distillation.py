"""Every comparator against its equation as loops over floats, and its limits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from raytrain.config import validate
from raytrain.losses.masks import Marks, Relation
from raytrain.methods.distillation import DISTILLATIONS
from raytrain.methods.distillation.base import Distillation, Pair, Signals, Sizes, Term
from raytrain.methods.distillation.composition import (
    Composition,
    compose,
    multi_class_nce,
    symmetric_divergence,
)
from raytrain.types import Progress

N, D, CLASSES = 9, 4, 3
GENERATOR = torch.Generator().manual_seed(1)
LABELS = torch.tensor([0, 1, 2, 0, 1, -1, 0, 0, 1])
START = Progress(step=0, epoch=2, t=0.1, seed=0)
Rows = list[list[float]]


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=GENERATOR)


def signals(student: Tensor | None = None, teacher: Tensor | None = None) -> Signals:
    return Signals(
        student=randn(N, D) if student is None else student,
        teacher=randn(N, D) if teacher is None else teacher,
        student_logits=randn(N, CLASSES),
        student_layers=(randn(N, 6), randn(N, 5)),
        teacher_layers=(randn(N, 7),),
        labels=LABELS,
    )


def relation(labels: Tensor = LABELS) -> Relation:
    marks = Marks(torch.arange(len(labels)) * 2, labels)
    return Relation(marks, marks, marks, "cross", 1)


def made(name: str, **settings: Any) -> Distillation:
    sizes = Sizes("audio", D, CLASSES, student_layers=(6, 5), teacher_layers=(7,))
    torch.manual_seed(0)
    kind = DISTILLATIONS[name]
    return kind(validate(kind.Settings, settings), sizes).double()


def terms_of(
    distillation: Distillation, known: Signals, at: Progress = START, labels: Tensor = LABELS
) -> dict[str, Term]:
    pair = Pair(
        F.normalize(known.student, dim=1), F.normalize(known.teacher, dim=1), dict(distillation.rows(known))
    )
    return distillation.loss(pair, pair, relation(labels), at)


def unit(rows: Tensor) -> Rows:
    found = []
    for row in rows.tolist():
        norm = math.sqrt(sum(x * x for x in row))
        found.append([x / norm for x in row])
    return found


def dot(x: list[float], y: list[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True))


def apart(x: list[float], y: list[float]) -> float:
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(x, y, strict=True)))


def huber(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def close(found: Term, expected: float) -> None:
    torch.testing.assert_close(found.value.item(), expected, rtol=1e-9, atol=1e-12)


def test_fitnet() -> None:
    fitnet, known = made("fitnet"), signals()
    estimate = fitnet.regressor(known.student)  # type: ignore[operator]
    errors = [
        (a - b) ** 2
        for a, b in zip(estimate.flatten().tolist(), known.teacher.flatten().tolist(), strict=True)
    ]
    close(terms_of(fitnet, known)["fitnet"], sum(errors) / (N * D))


def conditional_by_hand(kernel: Any, rows: Rows, i: int) -> dict[int, float]:
    values = {j: kernel(rows[i], rows[j]) for j in range(len(rows)) if j != i}
    total = sum(values.values())
    return {j: value / total for j, value in values.items()}


def half_cosine(x: list[float], y: list[float]) -> float:
    return (dot(x, y) + 1) / 2


def test_pkt() -> None:
    known = signals()
    t, s = unit(known.teacher), unit(known.student)
    expected = 0.0
    for i in range(N):
        p, q = conditional_by_hand(half_cosine, t, i), conditional_by_hand(half_cosine, s, i)
        expected += sum(p[j] * math.log(p[j] / q[j]) for j in p) / N
    close(terms_of(made("pkt"), known)["pkt"], expected)


def test_correlation() -> None:
    known, gamma = signals(), 0.7
    t, s = unit(known.teacher), unit(known.student)

    def kernel(x: list[float], y: list[float]) -> float:
        a = 2 * gamma
        return math.exp(-a) * (1 + a * dot(x, y) + a * a / 2 * dot(x, y) ** 2 + a**3 / 6 * dot(x, y) ** 3)

    expected = sum((kernel(t[i], t[j]) - kernel(s[i], s[j])) ** 2 / N**2 for i in range(N) for j in range(N))
    close(terms_of(made("correlation", gamma=gamma, order=3), known)["correlation"], expected)


def test_correlation_kernel_is_the_gaussian_to_its_order() -> None:
    from raytrain.methods.distillation.correlation import taylor_kernel

    x = F.normalize(randn(5, 3), dim=1)
    exact = torch.exp(-0.4 * torch.cdist(x, x).square())
    torch.testing.assert_close(taylor_kernel(x, x, gamma=0.4, order=12), exact, rtol=1e-9, atol=1e-9)


def test_rkd() -> None:
    known = signals()
    t, s = unit(known.teacher), unit(known.student)
    pairs = [(i, j) for i in range(N) for j in range(N) if i != j]
    mu = [sum(apart(x[i], x[j]) for i, j in pairs) / len(pairs) for x in (t, s)]
    distance = sum(huber(apart(t[i], t[j]) / mu[0] - apart(s[i], s[j]) / mu[1]) for i, j in pairs) / len(
        pairs
    )

    def angle(x: Rows, i: int, j: int, k: int) -> float:
        a = [p - q for p, q in zip(x[j], x[i], strict=True)]
        b = [p - q for p, q in zip(x[k], x[i], strict=True)]
        return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))

    triples = [(i, j, k) for i in range(N) for j in range(N) for k in range(N) if len({i, j, k}) == 3]
    angles = sum(huber(angle(t, *ijk) - angle(s, *ijk)) for ijk in triples) / len(triples)
    found = terms_of(made("rkd"), known)
    close(found["rkd_distance"], distance)
    close(found["rkd_angle"], angles)
    assert found["rkd_distance"].weight == 25 and found["rkd_angle"].weight == 50


def test_rkd_is_the_same_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    from raytrain.losses import masks

    known = signals(student=randn(N, D).requires_grad_())
    whole = terms_of(made("rkd"), known)["rkd_angle"].value
    gradient = torch.autograd.grad(whole, known.student)[0]
    monkeypatch.setitem(masks.CHUNK_ELEMENTS, "cpu", 2 * N * N)
    chunked = terms_of(made("rkd"), known)["rkd_angle"].value
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(torch.autograd.grad(chunked, known.student)[0], gradient)


def test_rkd_is_finite_where_rows_coincide() -> None:
    student = randn(N, D)
    student[3] = student[5]
    known = signals(student=student.requires_grad_())
    for flat in (known, signals(student=torch.ones(N, D, dtype=torch.float64, requires_grad=True))):
        found = terms_of(made("rkd"), flat)
        (found["rkd_distance"].value + found["rkd_angle"].value).backward()
        assert flat.student.grad is not None and flat.student.grad.isfinite().all()
        assert flat.student.grad.abs().max() < 1e3


def test_crd() -> None:
    crd, known = made("crd", temperature=0.4, size=3), signals()
    s, t = unit(crd.student(known.student)), unit(crd.teacher(known.teacher))  # type: ignore[operator]
    labels = LABELS.tolist()
    expected = 0.0
    for x, y in ((s, t), (t, s)):
        for i in range(N):
            negatives = [j for j in range(N) if labels[j] != labels[i] and -1 not in (labels[i], labels[j])]
            if not negatives:
                continue
            e = [math.exp(dot(x[i], y[j]) / 0.4) for j in range(N)]
            nz = len(negatives) * (sum(e[j] for j in negatives) / len(negatives))
            h = [value / (value + nz) for value in e]
            expected -= (math.log(h[i]) + sum(math.log(1 - h[j]) for j in negatives)) / N
    close(terms_of(crd, known)["crd"], expected)


def test_cmc() -> None:
    known = signals()
    s, t = unit(known.student), unit(known.teacher)
    expected = 0.0
    for x, y in ((s, t), (t, s)):
        for i in range(N):
            e = [math.exp(dot(x[i], y[j]) / 0.3) for j in range(N)]
            expected -= math.log(e[i] / sum(e)) / N
    close(terms_of(made("cmc", temperature=0.3), known)["cmc"], expected)


def test_information_flow() -> None:
    known, flow = signals(), made("information-flow", weight=3.0, initial=2.0, decay=0.5)

    def near(x: list[float], y: list[float]) -> float:
        return 1 / (1 + apart(x, y))

    def layer(student: Tensor, teacher: Tensor) -> float:
        s, t, total = unit(student), unit(teacher), 0.0
        for kernel in (half_cosine, near):
            for i in range(N):
                p, q = conditional_by_hand(kernel, t, i), conditional_by_hand(kernel, s, i)
                total += sum((p[j] - q[j]) * (math.log(p[j]) - math.log(q[j])) for j in p) / N
        return total

    found = terms_of(flow, known)
    close(found["flow_last"], layer(known.student, known.teacher))
    hidden = [layer(x, known.teacher_layers[0]) for x in known.student_layers]
    close(found["flow_hidden"], sum(hidden) / 2)
    assert found["flow_last"].weight == 3 and found["flow_hidden"].weight == 3 * 2 * 0.5**2


def nce_by_hand(x: Rows, y: Rows, labels: list[int], tau: float) -> list[float]:
    values = []
    for i in range(len(x)):
        e = [math.exp(dot(x[i], y[j]) / tau) for j in range(len(y))]
        p = [value / sum(e) for value in e]
        known = labels[i] != -1
        positive = [j for j in range(len(y)) if j == i or (known and labels[j] == labels[i])]
        negative = [j for j in range(len(y)) if known and labels[j] not in (-1, labels[i])]
        value = -sum(math.log(p[j]) for j in positive) / len(positive)
        if negative:
            value -= sum(math.log(1 - p[j]) for j in negative) / len(negative)
        values.append(value)
    return values


def test_multi_class_nce() -> None:
    x, y = randn(N, D), randn(N, D)
    masks = relation().masks(0, N)
    for tau in (0.5, 0.1, 2.0):
        found = multi_class_nce(F.normalize(x, dim=1), F.normalize(y, dim=1), *masks, temperature=tau)
        torch.testing.assert_close(
            found.tolist(), nce_by_hand(unit(x), unit(y), LABELS.tolist(), tau), rtol=1e-9, atol=1e-10
        )


def test_multi_class_nce_at_its_limits() -> None:
    rows = F.normalize(randn(6, D), dim=1).float().requires_grad_()
    for labels in (torch.zeros(6, dtype=torch.long), torch.arange(6), torch.full((6,), -1)):
        masks = relation(labels).masks(0, 6)
        value = multi_class_nce(rows, -rows, *masks, temperature=0.01)
        gradient = torch.autograd.grad(value.sum(), rows)[0]
        assert value.isfinite().all() and gradient.isfinite().all()
    one = multi_class_nce(rows[:1], rows[:1], *relation(torch.tensor([2])).masks(0, 1), temperature=0.1)
    assert one.tolist() == [0.0]
    assert torch.autograd.grad(one.sum(), rows)[0].isfinite().all()
    # a negative that takes all the mass: 1 - p = e^-40 / (1 + e^-40), far below what 1 - p can hold
    x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    positive = torch.tensor([[True, False]])
    value = multi_class_nce(x, y, positive, ~positive, temperature=0.05)
    assert value.item() == pytest.approx(40 + 40)


def test_symmetric_divergence() -> None:
    u, w = randn(N, CLASSES), randn(N, CLASSES)
    p, q = torch.softmax(u, 1), torch.softmax(w, 1)
    for i in range(N):
        expected = sum(
            a * math.log(a / b) + b * math.log(b / a)
            for a, b in zip(p[i].tolist(), q[i].tolist(), strict=True)
        )
        assert symmetric_divergence(u, w)[i].item() == pytest.approx(expected, rel=1e-9)
    assert symmetric_divergence(100 * u, -100 * u).isfinite().all()


def test_composition_is_its_equation() -> None:
    x, y, weight, bias = randn(2, D), randn(2, D), randn(D, 2 * D), randn(D)
    found = compose(x, y, weight, bias)
    for i in range(2):
        both = unit(x)[i] + unit(y)[i]
        for k in range(D):
            expected = x[i, k].item() + dot(weight[k].tolist(), both) + bias[k].item()
            assert found[i, k].item() == pytest.approx(expected)


def composition() -> Composition:
    found = made("compositional", mixing=0.3, temperatures={"audio": 0.4}, divergence=0.7, weight=2.0)
    assert isinstance(found, Composition)
    return found


def test_compositional_terms() -> None:
    net, known = composition(), signals()
    found = terms_of(net, known)
    composed = compose(known.teacher, known.student, net.residual.weight, net.residual.bias)
    classes = net.head(composed)
    labels, v, m, mv = LABELS.tolist(), unit(known.student), unit(known.teacher), unit(composed)

    def nce(x: Rows, y: Rows) -> float:
        return (sum(nce_by_hand(x, y, labels, 0.4)) + sum(nce_by_hand(y, x, labels, 0.4))) / N

    divergence = symmetric_divergence(known.student_logits, classes).mean().item()
    annotated = LABELS >= 0
    ce = F.cross_entropy(classes[annotated], LABELS[annotated]).item()
    expected = {
        "nce_teacher": (0.6, nce(v, m)),
        "nce_composed": (1.4, nce(v, mv)),
        "divergence": (1.4, divergence),
        "composition_nce_teacher": (0.3, nce(mv, m)),
        "composition_nce_student": (0.7, nce(v, mv)),
        "composition_divergence": (0.7, divergence),
        "composition_ce": (1.0, ce),
    }
    assert set(found) == set(expected)
    for name, (weight, value) in expected.items():
        assert found[name].weight == pytest.approx(weight)
        close(found[name], value)


def test_each_objective_moves_its_own_network() -> None:
    net = composition()
    student = randn(N, D).requires_grad_()
    found = terms_of(net, signals(student=student))
    for name, term in found.items():
        moved = torch.autograd.grad(
            term.value, [student, *net.parameters()], retain_graph=True, allow_unused=True
        )
        of_student, *of_net = [g is not None and bool(g.abs().max() > 1e-12) for g in moved]
        assert of_student == (not name.startswith("composition")), name
        assert any(of_net) == name.startswith("composition"), name


@pytest.mark.parametrize("name", [name for name in DISTILLATIONS if name != "baseline"])
def test_equal_embeddings_are_the_best_of_the_relations(name: str) -> None:
    """PKT, CCKD, RKD and the last layer of IFD compare relations: they are 0 where the student is the teacher."""
    teacher = randn(N, D)
    terms = terms_of(made(name), signals(student=teacher.clone(), teacher=teacher))
    if name in {"pkt", "correlation", "rkd"}:
        assert all(abs(term.value.item()) < 1e-12 for term in terms.values())
    elif name == "information-flow":
        assert abs(terms["flow_last"].value.item()) < 1e-12 < terms["flow_hidden"].value.item()
    else:
        assert all(term.value.item() > 0 for term in terms.values())


def test_the_baseline_has_no_term() -> None:
    assert terms_of(made("baseline"), signals()) == {}

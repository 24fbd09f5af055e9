from __future__ import annotations

import copy
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raytrain.cluster.alone import train_alone
from raytrain.cluster.step import WorldLoss, update
from raytrain.cluster.training import make_optimizer
from raytrain.collectives import num_ranks
from raytrain.config import Config, Model, Optim, build, validate
from raytrain.methods import resolve
from raytrain.methods.psd import Psd
from raytrain.methods.psd_settings import PsdSettings, annotated_share
from raytrain.methods.psd_student import draw
from raytrain.models.towers import ViewInput
from raytrain.types import UNANNOTATED, Batch, Progress, Rows
from tests.datasets import small_dataset
from tests.losses import soft_oracle as oracle
from tests.losses.soft_softmax_oracle import soft_info_nce, soft_supcon
from tests.worlds import run_world

N, CLASSES = 14, 3
GENERATOR = torch.Generator().manual_seed(9)
VIEWS = {
    "audio": torch.randn(N, 5, dtype=torch.float64, generator=GENERATOR),
    "visual": torch.randn(N, 8, dtype=torch.float64, generator=GENERATOR) - 1,
}
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 0, 0, 1, 2, 0, 2])
MISSING = LABELS.masked_fill(torch.tensor([1, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0, 1, 0, 0]).bool(), UNANNOTATED)
EVENTS = (torch.rand(N, CLASSES, generator=GENERATOR) > 0.6).to(torch.uint8)
MIDDLE = Progress(step=3, epoch=1, t=0.5, seed=11)

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {"gate": 1.1},
    "hard": {"mining": "hard", "margin": 0.7, "gate": None},
    "self": {"teacher": "self", "dis": "distance", "gate": None},
    "self classes": {"teacher": "self", "alignment": "classes", "temperature": 0.5, "gate": None},
    "separate": {"teacher": "separate", "label": "cross-entropy", "gate": None},
    "separate classes hard": {
        "teacher": "separate", "alignment": "classes", "mining": "hard", "margin": 0.7, "gate": None
    },
    "ema classes": {"alignment": "classes", "dis": None, "temperature": 0.3, "gate": 1.1},
    "info-nce": {"metric": "info-nce", "metric_temperature": 0.4, "gate": None},
    "info-nce pairs": {
        "metric": "info-nce", "pair": "positive", "alignment": "classes", "temperature": 0.5, "gate": None
    },
    "hard pairs": {"mining": "hard", "margin": 0.7, "gate": None, "pair": "positive"},
    "supcon separate": {
        "metric": "supcon", "teacher": "separate", "alignment": "classes", "temperature": 0.2, "gate": None
    },
}  # fmt: skip


def method_of(variant: str = "default", *, dropout: float = 0.0, **settings: Any) -> Psd:
    torch.manual_seed(6)
    inputs = {name: ViewInput(x.mean(0).float(), torch.full((x.shape[1],), 0.7)) for name, x in VIEWS.items()}
    model = Model(hidden=(7,), embedding=4, norm="batch", dropout=dropout)
    wanted = validate(PsdSettings, {**VARIANTS[variant], **settings})
    made = Psd.build(wanted, inputs, model, CLASSES).double().train()
    if made.teacher is not None and wanted.teacher == "ema":  # a teacher that is not the student
        generator = torch.Generator().manual_seed(8)
        for p in made.teacher.parameters():
            p.add_(0.3 * torch.randn(p.shape, dtype=p.dtype, generator=generator))
    return made


def batch(
    part: slice = slice(0, N), *, labels: Tensor | None = LABELS, events: Tensor | None = None
) -> Batch:
    def of(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[part]

    return Batch(torch.arange(N)[part] * 2, {k: x[part] for k, x in VIEWS.items()}, of(labels), of(events))


def rows_of(annotation: Tensor) -> Rows:
    return Rows(torch.arange(len(annotation)), {}, labels=annotation)


# The schedule and the draw


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {0.0: 1.0, 0.5: 0.65, 1.0: 0.3, 0.25: 0.3 + 0.7 * (1 + math.sqrt(0.5)) / 2}),
        ({"r_0": 0.8, "r_end": 0.2, "r_schedule": "linear"}, {0.0: 0.8, 0.25: 0.65, 1.0: 0.2}),
        ({"r_schedule": "step"}, {0.0: 1.0, 0.49: 1.0, 0.5: 0.3, 1.0: 0.3}),
        (
            {"r_schedule": "step", "r_levels": 3, "r_end": 0.4},
            {0.0: 1.0, 0.33: 1.0, 0.34: 0.7, 0.67: 0.4, 1.0: 0.4},
        ),
        ({"r_schedule": "constant", "r_0": 0.6}, {0.0: 0.6, 0.7: 0.6, 1.0: 0.6}),
    ],
)
def test_the_share_follows_its_schedule(settings: dict[str, Any], expected: dict[float, float]) -> None:
    made = validate(PsdSettings, settings)
    for t, share in expected.items():
        assert annotated_share(made, t) == pytest.approx(share)


def test_as_many_rows_are_drawn_as_the_share_says_and_of_the_annotated_alone() -> None:
    for share in (1.0, 0.65, 0.3):
        drawn = draw(rows_of(LABELS), share, seed=(3, 5))
        assert drawn.annotated.sum() == round(share * N) and drawn.share == round(share * N) / N
    drawn = draw(rows_of(MISSING), 0.5, seed=(3, 5))
    assert drawn.annotated.sum() == 7 and not drawn.annotated[MISSING == UNANNOTATED].any()
    few = draw(rows_of(MISSING), 0.9, seed=(3, 5))
    assert torch.equal(few.annotated, MISSING != UNANNOTATED) and few.share == 13 / 14
    nobody = draw(rows_of(torch.full((N,), UNANNOTATED)), 0.5, seed=(3, 5))
    assert not nobody.annotated.any() and nobody.share == 0.5
    events = Rows(torch.arange(N), {}, events=EVENTS)
    drawn = draw(events, 0.3, seed=(0, 0))
    assert drawn.annotated.sum() == 4 and EVENTS[drawn.annotated].ne(0).any(dim=1).all()


def test_the_draw_is_a_function_of_seed_and_step_and_spreads_over_the_batch() -> None:
    world = rows_of(LABELS)
    once = [draw(world, 0.5, seed=(1, step)).annotated for step in range(200)]
    again = [draw(world, 0.5, seed=(1, step)).annotated for step in range(200)]
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    other = [draw(world, 0.5, seed=(2, step)).annotated for step in range(200)]
    assert sum(torch.equal(a, b) for a, b in zip(once, other, strict=True)) < 5
    share = torch.stack(once).double().mean(dim=0)
    assert (share - 0.5).abs().max() < 0.15  # four standard deviations


# The equations


def expected_loss(method: Psd, rows: Rows, progress: Progress) -> tuple[dict[str, float], float]:
    """The terms and the loss in loops over floats, from the equations of the method's page."""
    settings = method.settings
    n, share = len(rows), annotated_share(settings, progress.t)
    of_draw = draw(rows, share, seed=(progress.seed, progress.step))
    labels = rows.labels.tolist()
    annotated = [i for i in range(n) if of_draw.annotated[i]]
    others = [i for i in range(n) if i not in annotated]
    z = {view: x.tolist() for view, x in rows.embeddings.items()}
    own = settings.teacher == "self"
    taught = {v: z[v] if own else rows.extras[f"teacher {v}"].tolist() for v in z}
    logits = {v: x.tolist() for v, x in rows.logits.items()}
    classes = {v: logits[v] if own else rows.extras[f"classes {v}"].tolist() for v in z}

    def by_degree(query: list[float], keys: list[list[float]], w: list[float]) -> float:
        of = soft_info_nce if settings.metric == "info-nce" else soft_supcon
        return of(query, keys, w, settings.metric_temperature)

    def label(of: dict[str, list[list[float]]]) -> float:
        total = 0.0
        for i in annotated:
            for u in (of["audio"][i], of["visual"][i]):
                y = [float(c == labels[i]) for c in range(CLASSES)]
                if settings.label == "norm":
                    total += math.sqrt(sum((a - b) ** 2 for a, b in zip(u, y, strict=True)))
                else:
                    total += math.log(sum(math.exp(a) for a in u)) - u[labels[i]]
        return total / len(annotated)

    def hard(of: dict[str, list[list[float]]], query: str, key: str) -> float:
        total, count = 0.0, 0
        if settings.metric != "triplet":
            keys = [of[key][j] for j in annotated]
            values = [
                by_degree(of[query][i], keys, [float(labels[i] == labels[j]) for j in annotated])
                for i in annotated
            ]
            return sum(values) / len(values)
        for i in annotated:
            d = [oracle.distance(of[query][i], x) for x in of[key]]
            hinges = [
                (d[j], -d[k], max(0.0, settings.margin + d[j] - d[k]))
                for j in annotated
                for k in annotated
                if labels[j] == labels[i] != labels[k]
            ]
            if settings.mining == "hard" and hinges:
                hinges = [max(hinges)]  # the farthest positive, then the nearest negative
            total += sum(h for *_, h in hinges)
            count += len(hinges)
        return total / count

    def soft(query: str, key: str) -> float:
        total = weight = 0.0
        if settings.alignment == "classes":

            def softmax(u: list[float]) -> list[float]:
                e = [math.exp(x / settings.temperature) for x in u]
                return [x / sum(e) for x in e]

            asks, keys, kind, tau = (
                [softmax(u) for u in classes[query]], [softmax(u) for u in classes[key]], "classes", None
            )  # fmt: skip
        else:
            asks, keys, kind, tau = taught[query], taught[key], "similarity", settings.temperature
        for i in others:
            p = oracle.probabilities(asks[i], keys, kind, tau)
            w = [x / max(p) for x in p]
            if settings.pair == "positive":
                w[i] = 1.0
            if settings.gate is not None and 1 / sum(w) < settings.gate / n:  # without pairs, max P
                continue
            of = oracle.soft_triplets if settings.mining == "all" else oracle.hardest_soft_triplet
            if settings.metric != "triplet":
                total, weight = total + by_degree(z[query][i], z[key], w), weight + 1
                continue
            value, of_weight, _ = of(z[query][i], z[key], w, settings.margin)
            total, weight = total + value, weight + of_weight
        return total / weight

    directions = (("audio", "visual"), ("visual", "audio"))
    terms = {"label": label(logits)}
    terms |= {f"hard_{q}_to_{k}": hard(z, q, k) for q, k in directions}
    terms |= {f"soft_{q}_to_{k}": soft(q, k) for q, k in directions}
    ratio = round(share * n) / n
    loss = terms["label"]
    for q, k in directions:
        loss += (ratio * terms[f"hard_{q}_to_{k}"] + (1 - ratio) * terms[f"soft_{q}_to_{k}"]) / 2
    if settings.dis == "distance":
        pairs = zip(z["audio"], z["visual"], strict=True)
        terms["dis"] = (
            sum(math.sqrt(sum((a - b) ** 2 for a, b in zip(x, y, strict=True))) for x, y in pairs) / n
        )
    elif settings.dis == "decorrelation":
        columns = [list(zip(*z[v], strict=True)) for v in ("audio", "visual")]
        centred = [[[x - sum(c) / n for x in c] for c in of] for of in columns]
        squared = [
            (oracle.dot(a, v) / math.sqrt(oracle.dot(a, a) * oracle.dot(v, v))) ** 2
            for k, a in enumerate(centred[0])
            for m, v in enumerate(centred[1])
            if k != m
        ]
        terms["dis"] = sum(squared) / len(squared)
    loss += (settings.lambda_dis or 0.0) * terms.get("dis", 0.0)
    if settings.teacher == "separate":
        terms["teacher_label"] = label(classes)
        terms["teacher_hard"] = sum(hard(taught, q, k) for q, k in directions) / 2
        loss += terms["teacher_label"] + terms["teacher_hard"]
    return terms, loss


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("labels", [LABELS, MISSING], ids=["all annotated", "some missing"])
def test_every_term_and_the_loss_are_their_equations(variant: str, labels: Tensor) -> None:
    method = method_of(
        variant, **({"lambda_dis": 0.7} if VARIANTS[variant].get("dis", "") is not None else {})
    )
    rows = method.rows(batch(labels=labels), MIDDLE)
    found = method.loss(rows, rows, MIDDLE)
    terms, loss = expected_loss(method, rows, MIDDLE)
    assert found.terms.keys() == terms.keys()
    for name, value in terms.items():
        assert found.terms[name].item() == pytest.approx(value, abs=1e-12), name
        assert value != 0, f"{name} says something"
    assert found.total.item() == pytest.approx(loss, abs=1e-12)
    assert found.active is not None and 0 < found.active <= 1


def test_with_every_row_annotated_it_is_label_and_triplet() -> None:
    method = method_of(r_schedule="constant", dis=None)
    rows = method.rows(batch(), MIDDLE)
    found = method.loss(rows, rows, MIDDLE)
    assert not found.terms["soft_audio_to_visual"] and not found.terms["soft_visual_to_audio"]
    hard = (found.terms["hard_audio_to_visual"] + found.terms["hard_visual_to_audio"]) / 2
    torch.testing.assert_close(found.total, found.terms["label"] + hard)


def test_a_teacher_that_knows_nothing_teaches_nothing() -> None:
    """All of its embeddings are the same: P is uniform, and the gate leaves every row out."""
    method = method_of(gate=2.0)
    rows = method.rows(batch(), MIDDLE)
    same = torch.ones_like(rows.extras["teacher audio"]) / 2
    rows = replace(rows, extras={**rows.extras, "teacher audio": same, "teacher visual": same})
    found = method.loss(rows, rows, MIDDLE)
    assert not found.terms["soft_audio_to_visual"] and found.total.isfinite()
    method = method_of(gate=None)  # w = 1 everywhere: no negative, no triplet, and no 0 / 0
    assert not method.loss(rows, rows, MIDDLE).terms["soft_audio_to_visual"]


# Labels of U reach nothing


def three_steps(variant: str, annotations: list[tuple[Tensor | None, Tensor | None]]) -> list[Tensor]:
    """Losses, terms, active shares, gradients, and the weights of student and teacher after three steps."""
    method = method_of(variant, dropout=0.2)
    world_loss, found = WorldLoss(method, torch.float32), []
    optimizer = make_optimizer(method, Optim(lr=1e-2))
    for step, (labels, events) in enumerate(annotations):
        torch.manual_seed(step)
        made = update(
            world_loss,
            method,
            batch(labels=labels, events=events),
            (N,),
            replace(MIDDLE, step=step),
            optimizer=optimizer,
            learning_rate=1e-2,
            clip=1.0,
            ema=None,
        )
        assert made.loss.active is not None
        found += [made.loss.total.detach(), made.loss.active, *(t.detach() for t in made.loss.terms.values())]
        found += [p.grad.clone() for p in method.parameters() if p.grad is not None]
    return found + [x.clone() for x in method.state_dict().values()]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("annotation", ["labels", "some missing", "events"])
def test_labels_of_hidden_rows_reach_nothing(variant: str, annotation: str) -> None:
    """In every step those of U are changed; loss, gradients and the next weights stay, bit for bit."""
    labels = None if annotation == "events" else LABELS if annotation == "labels" else MISSING
    events = EVENTS if annotation == "events" else None
    world = Rows(torch.arange(N), {}, labels=labels, events=events)
    share = annotated_share(method_of(variant).settings, MIDDLE.t)

    def changed(step: int, *, of_drawn: bool) -> tuple[Tensor | None, Tensor | None]:
        drawn = draw(world, share, seed=(MIDDLE.seed, step)).annotated
        if labels is not None:
            some = (drawn if of_drawn else ~drawn) & (labels != UNANNOTATED)
            assert some.any() or annotation == "some missing"
            return torch.where(some, (labels + 1) % CLASSES, labels), None
        some = (drawn if of_drawn else ~drawn) & EVENTS.ne(0).any(dim=1)
        return None, torch.where(some[:, None], EVENTS.roll(1, dims=1), EVENTS)

    given = three_steps(variant, [(labels, events)] * 3)
    hidden = three_steps(variant, [changed(step, of_drawn=False) for step in range(3)])
    assert all(torch.equal(a, b) for a, b in zip(given, hidden, strict=True))
    told = three_steps(variant, [changed(step, of_drawn=True) for step in range(3)])
    assert not torch.equal(told[0], given[0]), "the labels of A do reach it"


# Ranks, teachers, states


def outcome(variant: str, labels: Tensor | None, events: Tensor | None, parts: list[slice], rank: int) -> Any:
    method = method_of(variant)
    module: nn.Module = WorldLoss(method, torch.float32)
    if num_ranks() > 1:
        module = DistributedDataParallel(module, broadcast_buffers=False)
    sizes = tuple(part.stop - part.start for part in parts)
    loss = module(batch(parts[rank], labels=labels, events=events), sizes, MIDDLE)
    loss.total.backward()
    missing = [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing, f"data-parallel training would wait for {missing}"
    gradients = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    assert loss.active is not None
    values = {"total": loss.total, "active": loss.active, **loss.terms}
    return {f"value {k}": v.detach() for k, v in values.items()} | gradients


ANNOTATIONS: dict[str, tuple[Tensor | None, Tensor | None]] = {
    "labels": (LABELS, None),
    "some missing": (MISSING, None),
    "events": (None, EVENTS),
    "none": (torch.full((N,), UNANNOTATED), None),
}


@pytest.mark.parametrize(
    ("cuts", "annotations"),
    [([0, 9, N], ["labels", "events"]), ([0, 1, 5, 11, N], ["some missing", "none"])],
    ids=["two", "four"],
)
def test_one_two_and_four_ranks_agree(cuts: list[int], annotations: list[str], tmp_path: Path) -> None:
    """Loss, terms, active share and gradients, for every variant and kind of annotation."""
    parts = [slice(a, b) for a, b in pairwise(cuts)]
    cases = [(variant, *ANNOTATIONS[name]) for variant in VARIANTS for name in annotations]
    found = run_world(len(parts), lambda rank: [outcome(*case, parts, rank) for case in cases], tmp_path)
    for i, case in enumerate(cases):
        for name, expected in outcome(*case, [slice(0, N)], 0).items():
            assert expected.isfinite().all()
            value = torch.stack([of_rank[i][name] for of_rank in found]).mean(0)
            bound = 1e-6 if name == "value active" else 1e-10
            torch.testing.assert_close(
                value, expected, rtol=bound, atol=bound, msg=lambda m, of=(case[0], name): f"{of}: {m}"
            )


@pytest.mark.parametrize("variant", ["default", "hard", "self classes", "separate"])
def test_swapping_the_views_swaps_the_directions(variant: str) -> None:
    method, terms = method_of(variant), []
    made = method.rows(batch(), MIDDLE)
    for swap in (False, True):
        rows = made
        if swap:
            rows = replace(
                rows,
                embeddings={"audio": rows.embeddings["visual"], "visual": rows.embeddings["audio"]},
                logits={"audio": rows.logits["visual"], "visual": rows.logits["audio"]},
                extras={
                    name: rows.extras[f"{what} {other}"]
                    for name in rows.extras
                    for what, view in [name.split()]
                    for other in VIEWS
                    if other != view
                },
            )
        terms.append(method.loss(rows, rows, MIDDLE).terms)
    for part in ("hard", "soft"):
        there, back = f"{part}_audio_to_visual", f"{part}_visual_to_audio"
        torch.testing.assert_close(terms[1][there], terms[0][back])
        assert not torch.allclose(terms[0][there], terms[0][back])


def test_the_averaged_teacher_follows_and_gets_no_gradient() -> None:
    method = method_of(ema_decay=0.75)
    assert method.teacher is not None
    optimizer = make_optimizer(method, Optim(lr=1e-2))
    before = [p.clone() for p in method.teacher.parameters()]
    update(
        WorldLoss(method, torch.float32), method, batch(), (N,), MIDDLE,
        optimizer=optimizer, learning_rate=1e-2, clip=1.0, ema=None,
    )  # fmt: skip
    for slow, old, fast in zip(method.teacher.parameters(), before, method.towers.parameters(), strict=True):
        assert slow.grad is None and not slow.requires_grad
        torch.testing.assert_close(slow.data, 0.75 * old + 0.25 * fast.data)
    assert method.train().teacher is not None and not method.teacher.training and method.towers.training


def test_student_and_separate_teacher_learn_apart() -> None:
    """The teacher's loss moves the teacher alone; soft alignments carry no gradient to it."""
    method = method_of("separate")
    assert method.teacher is not None
    rows = method.rows(batch(), MIDDLE)
    terms = method.loss(rows, rows, MIDDLE).terms
    mine, theirs = list(method.towers.parameters()), list(method.teacher.parameters())
    taught = terms["teacher_label"] + terms["teacher_hard"]
    of_teacher = torch.autograd.grad(taught, mine + theirs, retain_graph=True, allow_unused=True)
    assert all(g is None for g in of_teacher[: len(mine)]) and all(
        g is not None for g in of_teacher[len(mine) :]
    )
    of_soft = torch.autograd.grad(terms["soft_audio_to_visual"], mine + theirs, allow_unused=True)
    assert all(g is None for g in of_soft[len(mine) :]) and any(g is not None and g.any() for g in of_soft)


@pytest.mark.parametrize("variant", ["default", "self", "separate"])
def test_soft_labels_are_the_teachers_logits_without_dropout(variant: str) -> None:
    method = method_of(variant, dropout=0.5)
    found = method.soft_labels(VIEWS)
    teacher = method.towers if method.teacher is None else method.teacher
    modes = [m.training for m in method.modules()]
    assert method.towers.training and (variant != "separate" or teacher.training), "left as it was"
    expected = copy.deepcopy(teacher).eval()(VIEWS)[1]
    for view in VIEWS:
        assert not found[view].requires_grad and torch.equal(found[view], expected[view])
        one = method.soft_labels({view: x[3:4] for view, x in VIEWS.items()})
        torch.testing.assert_close(one[view], found[view][3:4])
    assert modes == [m.training for m in method.modules()]


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_what_is_evaluated_holds_its_share_of_classes(share: float) -> None:
    method = method_of(class_share=share).eval()
    found = method.embed(VIEWS)
    z, u = method.towers(VIEWS)
    of_classes = [nn.functional.normalize(u[view].softmax(dim=1), dim=1) for view in VIEWS]
    expected = (1 - share) * z["audio"] @ z["visual"].T + share * of_classes[0] @ of_classes[1].T
    torch.testing.assert_close(found["audio"] @ found["visual"].T, expected)
    for x in found.values():
        torch.testing.assert_close(x.norm(dim=1), torch.ones(N, dtype=torch.float64))


def test_a_teacher_travels() -> None:
    for variant in ("default", "separate"):
        source, target = method_of(variant), method_of(variant)
        with torch.no_grad():
            assert source.teacher is not None
            for p in source.teacher.parameters():
                p.add_(0.1)
        state = {name: x.clone() for name, x in source.teacher_state().items()}
        target.load_teacher(state)
        for view, u in source.soft_labels(VIEWS).items():
            assert torch.equal(u, target.soft_labels(VIEWS)[view])
        with pytest.raises(ValueError, match=r"head\.bias is \(5,\), this method's is \(3,\)"):
            target.load_teacher({**state, "head.bias": torch.zeros(5)})
        with pytest.raises(ValueError, match=r"head\.bias is missing"):
            target.load_teacher({name: x for name, x in state.items() if name != "head.bias"})
    with pytest.raises(ValueError, match="'self'"):
        method_of("self").load_teacher(method_of("self").teacher_state())


# What the user writes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r_end": 0.1}, "at least 0.2, or set teacher = 'separate'"),
        ({"teacher": "self", "r_schedule": "constant", "r_0": 0.1}, "confirm itself"),
        ({"r_0": 0.4, "r_end": 0.5}, "r_end is 0.5, above r_0 = 0.4"),
        ({"r_schedule": "constant", "r_end": 0.5}, "r_end is set"),
        ({"r_levels": 3}, "r_levels is set"),
        ({"teacher": "self", "ema_decay": 0.9}, "ema_decay is set"),
        ({"dis": None, "lambda_dis": 1.0}, "lambda_dis is set"),
        ({"metric": "info-nce", "margin": 0.2}, "margin and mining are those of triplets"),
        ({"metric": "supcon", "mining": "hard"}, "margin and mining are those of triplets"),
        ({"metric_temperature": 0.1}, "metric_temperature is set"),
        ({"class_share": 1.5}, "class_share"),
        ({"gate": 0.5}, "gate"),
        ({"temperature": 0.0}, "temperature"),
        ({"r_schedule": "cosin"}, "r_schedule"),
    ],
)
def test_what_contradicts_or_would_be_ignored_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate(PsdSettings, settings)


def test_settings_that_are_filled_in_are_settings_again() -> None:
    for values in VARIANTS.values():
        for more in ({}, {"r_schedule": "step"}, {"r_schedule": "constant", "r_0": 0.5}):
            made = validate(PsdSettings, {**values, **more})
            assert validate(PsdSettings, made.model_dump()) == made
    assert validate(PsdSettings, {"teacher": "separate", "r_end": 0.05}).r_end == 0.05


def config_of(path: str, **train: Any) -> Config:
    values = [
        "method.name=psd",
        "model.hidden=[16]",
        "model.embedding=8",
        "data.batch_size=40",
        "optim.lr=0.02",
    ]
    return build(overrides=values, data={"path": path}, train={"epochs": 3, "precision": "float32", **train})


def test_data_without_annotation_is_refused(tmp_path: Path) -> None:
    dataset = small_dataset(tmp_path)
    with pytest.raises(ValueError, match="psd starts from annotated rows"):
        given = build(overrides=["method.name=psd", "data.annotation=none"], data={"path": dataset.path})
        resolve(given, dataset.manifest)


def test_a_run_that_was_interrupted_ends_with_the_same_weights(tmp_path: Path) -> None:
    dataset = small_dataset(tmp_path)
    whole = train_alone(config_of(dataset.path, checkpoint_every=1), dataset, tmp_path / "whole")
    assert whole.best_score > 0.4, "four classes, so chance is 0.25"
    resumed = tmp_path / "resumed"
    checkpoints = sorted((tmp_path / "whole" / "checkpoints").iterdir())
    assert len(checkpoints) == 2, "the last two are kept"
    (resumed / "checkpoints").mkdir(parents=True)
    checkpoints[0].rename(resumed / "checkpoints" / checkpoints[0].name)
    again = train_alone(config_of(dataset.path, checkpoint_every=1), dataset, resumed)
    assert again.history == whole.history

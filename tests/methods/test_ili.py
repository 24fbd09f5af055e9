"""ILI: its stages, what is trained when, LIR and the negatives in one step, the graph and its controls."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raytrain.cluster.step import WorldLoss, update
from raytrain.cluster.training import make_optimizer
from raytrain.config import Model, Optim, validate
from raytrain.losses.label_agreement import jensen_shannon, label_error
from raytrain.losses.latent_interaction import Latent, latent_interaction
from raytrain.losses.masks import Relation
from raytrain.losses.reduction import world_mean
from raytrain.losses.triplet import triplet
from raytrain.methods.ili import Ili
from raytrain.methods.ili_settings import IliSettings
from raytrain.methods.ili_student import Linked
from raytrain.methods.psd import Psd
from raytrain.methods.psd_settings import PsdSettings
from raytrain.models.dropout import Dropout
from raytrain.models.towers import ViewInput
from raytrain.types import Progress
from tests.methods.test_every_method import CLASSES, PROGRESS, VIEWS, N, batch, planted_graph

HELD_OUT = batch(slice(0, N))
LINKED = Linked(torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]).double(), draws=None)
"""Of `planted_graph`: 0 heard with 1 and 2 seen, 1 heard with 2 seen."""
PSD = {"metric": "info-nce", "alignment": "classes", "label": "cross-entropy"}


INPUTS = {name: ViewInput(torch.zeros(x.shape[1]), torch.ones(x.shape[1])) for name, x in VIEWS.items()}
MODEL = Model(hidden=(6,), embedding=5, dropout=0.0)


def ili(**values: Any) -> Ili:
    torch.manual_seed(1)
    made = Ili.build(validate(IliSettings, values), INPUTS, MODEL, CLASSES).double().train()
    assert isinstance(made, Ili)
    return made


def in_student_stage(**values: Any) -> Ili:
    made = ili(**values)
    made.begin("student", HELD_OUT)
    return made.train()


def step(method: Ili, at: Progress = PROGRESS) -> dict[str, Tensor]:
    """Loss, terms and gradients of one step on all rows."""
    method.zero_grad()
    loss = WorldLoss(method, torch.float32)(HELD_OUT, (N,), at)
    loss.total.backward()
    gradients = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    return {"loss": loss.total.detach(), **loss.terms, **gradients}


def learn(method: Ili, steps: int, *, first: int = 0) -> None:
    optimizer = make_optimizer(method, Optim())
    for k in range(first, first + steps):
        at = Progress(step=k, epoch=0, t=0.5, seed=0)
        world_loss = WorldLoss(method, torch.float32)
        update(
            world_loss,
            method,
            HELD_OUT,
            (N,),
            at,
            optimizer=optimizer,
            learning_rate=1e-2,
            clip=1.0,
            ema=None,
        )


def weights_of(method: Ili, part: str) -> Tensor:
    return torch.cat([p.detach().flatten() for p in getattr(method, part).parameters()]).clone()


def test_the_teacher_stage_is_av_sal_and_the_metric_loss() -> None:
    paper = {"each_view": 1.0, "either_view": 0.0, "contrast": 0.0, "one_of": 0.0, "reconstruction": 0.0}
    method = ili(smoothing=0.2, annotated=0.4, alignment=0.3, alignment_temperature=2.0, **paper)
    found = step(method)
    rows = method.rows(HELD_OUT, PROGRESS)
    logits = list(method.teacher(HELD_OUT.views)[1].values())
    annotated = int((HELD_OUT.labels >= 0).sum())
    errors = [
        label_error(u, HELD_OUT.labels, kind="bce", smoothing=0.2, annotated=0.4).sum() / annotated
        for u in logits
    ]
    agreement = jensen_shannon(*logits, temperature=2.0).mean()
    relation = Relation.to_classes(rows, rows, num_classes=CLASSES, by="labels")
    metric = [
        world_mean(
            triplet(z, method.student.proxies, relation, margin=0.2, mining="all", distance="cosine"),
            relation,
        )
        for z in rows.embeddings.values()
    ]
    assert found["loss"].item() == pytest.approx(
        (sum(metric) / 2 + sum(errors) + 0.3 * agreement).item(), abs=1e-12
    )
    assert "lir" not in found


def test_the_teacher_also_learns_what_is_in_either_view_and_which_views_are_of_one_clip() -> None:
    """Against loops: BCE of the noisy or of both views, and InfoNCE over the clips of the world, falling to 0."""
    values = {"each_view": 0.5, "either_view": 2.0, "contrast": 0.7, "contrast_until": 0.5, "t_teach": 0.8}
    others = {"one_of": 0.0, "reconstruction": 0.0}
    method = ili(annotated=0.4, alignment=0.0, contrast_temperature=0.3, **values, **others)
    embeddings, logits = method.teacher(HELD_OUT.views)
    audio, visual = (torch.sigmoid(u) for u in logits.values())
    label_errors, known = 0.0, [n for n in range(N) if HELD_OUT.labels[n] >= 0]
    for n in known:
        for k in range(CLASSES):
            hit = k == int(HELD_OUT.labels[n])
            either = 1 - (1 - audio[n, k]) * (1 - visual[n, k])
            for s, weight in ((audio[n, k], 0.5), (visual[n, k], 0.5), (either, 2.0)):
                p = 0.4 * s.item()
                label_errors -= weight * math.log(p if hit else 1 - p) / CLASSES / len(known)
    contrast = 0.0
    for query, key in (("audio", "visual"), ("visual", "audio")):
        for n in range(N):
            scores = [(embeddings[query][n] @ embeddings[key][m]).item() / 0.3 for m in range(N)]
            contrast -= (scores[n] - math.log(sum(map(math.exp, scores)))) / N / 2
    for t, share in ((0.0, 1.0), (0.1, 0.75), (0.4, 0.0)):
        found = step(method, replace(PROGRESS, t=t))
        assert found["label_error"].item() == pytest.approx(label_errors, rel=1e-9)
        assert ("contrast" in found) == (share > 0)
        if share:
            assert found["contrast"].item() == pytest.approx(contrast, rel=1e-9)
        metric = [value for name, value in found.items() if name.endswith("_to_proxies")]
        assert found["loss"].item() == pytest.approx(
            sum(metric).item() / 2 + label_errors + 0.7 * share * contrast, rel=1e-9
        )


def test_the_teacher_tells_which_event_is_annotated_and_what_the_features_were() -> None:
    """Against loops: the choice among a clip's events, and features decoded from soft labels alone."""
    others = {"alignment": 0.0, "contrast": 0.0}
    method = ili(one_of=0.3, reconstruction=0.7, **others)
    without = ili(one_of=0.0, reconstruction=0.0, **others)
    assert without.av_sal.decoders is None and method.av_sal.decoders is not None
    without.load_state_dict({n: v for n, v in method.state_dict().items() if "decoders" not in n})
    logits = method.teacher(HELD_OUT.views)[1]
    choice, known = 0.0, [n for n in range(N) if HELD_OUT.labels[n] >= 0]
    for n in known:
        odds = [
            (1 + math.exp(a)) * (1 + math.exp(v)) - 1
            for a, v in zip(logits["audio"][n].tolist(), logits["visual"][n].tolist(), strict=True)
        ]
        choice -= math.log(odds[int(HELD_OUT.labels[n])] / sum(odds)) / len(known)
    error = 0.0
    for view, decode in zip(("audio", "visual"), method.av_sal.decoders.decoders, strict=True):
        told = decode(torch.log(1 + torch.exp(logits[view])))
        for x, y in zip(told.flatten().tolist(), HELD_OUT.views[view].flatten().tolist(), strict=True):
            error += (x - y) ** 2 / told.numel()
    found, plain = step(method), step(without)
    assert found["one_of"].item() == pytest.approx(choice, rel=1e-9)
    assert found["reconstruction"].item() == pytest.approx(error, rel=1e-9)
    assert found["loss"].item() == pytest.approx(plain["loss"].item() + 0.3 * choice + 0.7 * error, rel=1e-9)
    assert any(name.startswith("av_sal.decoders") and g.abs().max() > 0 for name, g in found.items())


def test_student_and_teacher_share_no_gradient() -> None:
    found = step(ili())
    alone = step(ili(alignment=0.0, label_error="l2"))
    for name, gradient in found.items():
        if name.startswith(("towers", "proxies")):
            assert torch.equal(gradient, alone[name]), "the teacher's loss does not reach the student"
    assert any(not torch.equal(found[name], alone[name]) for name in found if name.startswith("teacher."))


@pytest.mark.parametrize("pairs", ["all", 8])
def test_the_student_stage_adds_lir_with_its_ramp(pairs: str | int) -> None:
    values = {"threshold": 0.35, "weight": 0.6, "ramp": 0.2, "pairs": pairs, "negatives": "stay"}
    method, without = in_student_stage(**values), in_student_stage(**values)
    method.adopt(planted_graph())
    for t, share in ((0.3, 0.0), (0.45, 0.25), (0.9, 1.0)):
        at = replace(PROGRESS, t=t)
        found, plain = step(method, at), step(without, at)
        assert found["lir"].item() > 0
        added = found["loss"].item() - plain["loss"].item()
        assert added == pytest.approx(0.6 * share * found["lir"].item(), abs=1e-12)
    if pairs == "all":
        rows = method.rows(HELD_OUT, PROGRESS)
        audio, visual = (rows.extras[f"soft {view}"] for view in ("audio", "visual"))
        labels, z = HELD_OUT.labels, rows.embeddings
        there = latent_interaction(
            z["audio"], z["visual"], Latent(audio, visual, labels, rows.row), method.audio_to_visual,
            first=0, threshold=0.35,
        )  # fmt: skip
        back = latent_interaction(
            z["visual"], z["audio"], Latent(visual, audio, labels, rows.row), method.visual_to_audio,
            first=0, threshold=0.35,
        )  # fmt: skip
        assert found["lir"].item() == pytest.approx((there.sum() + back.sum()).item(), abs=1e-12)
        assert back.sum() > 0


def test_psd_is_the_students_loss_whole_and_lir_comes_beside_it() -> None:
    """Loss and gradients of `psd` with the same weights, plus lambda LIR; its teacher is the student's average."""
    method = in_student_stage(loss="psd", psd=PSD, weight=0.3, ramp=0.0, threshold=0.35)
    method.adopt(planted_graph())
    alone = Psd(validate(PsdSettings, PSD), INPUTS, MODEL, CLASSES).double()
    alone.load_state_dict(method.student.state_dict())
    found, expected = step(method), step(alone.train())
    assert found["lir"] > 0
    torch.testing.assert_close(found["loss"], expected["loss"] + 0.3 * found["lir"])
    for name in ("label", "hard_audio_to_visual", "soft_visual_to_audio"):
        torch.testing.assert_close(found[name], expected[name])
    slow = weights_of(method.student, "teacher")
    learn(method, 3)
    assert not torch.equal(weights_of(method.student, "teacher"), slow)


def test_embeddings_of_a_psd_student_have_its_class_probabilities_beside_them() -> None:
    method = ili(loss="psd", psd={**PSD, "class_share": 0.5}).eval()
    torch.testing.assert_close(method.embed(HELD_OUT.views), method.student.embed(HELD_OUT.views))
    assert method.embed(HELD_OUT.views)["audio"].shape[1] == 5 + CLASSES


def test_weights_from_before_the_student_was_a_module_are_read() -> None:
    method, other = ili(), ili()
    learn(method, 2)
    before = {name.removeprefix("student."): value for name, value in method.state_dict().items()}
    assert "proxies" in before and any(name.startswith("towers.") for name in before)
    other.load_state_dict(before)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in method.state_dict().items())


def test_soft_labels_carry_no_gradient_and_the_slow_teacher_is_in_no_optimiser() -> None:
    method = in_student_stage(threshold=0.35)
    method.adopt(planted_graph())
    found = step(method)
    assert not any(name.startswith("slow") for name in found)
    teacher = [found[name] for name in found if name.startswith("teacher.")]
    assert len(teacher) == len(list(method.teacher.parameters())) and not any(g.any() for g in teacher)
    rows = method.rows(HELD_OUT, PROGRESS)
    assert not rows.extras["soft audio"].requires_grad
    expected = torch.sigmoid(method.soft_labels(HELD_OUT.views)["audio"])
    torch.testing.assert_close(rows.extras["soft audio"], expected)


def test_linked_pairs_are_no_negatives_in_either_direction() -> None:
    method = in_student_stage(loss="info-nce", threshold=0.35, negatives="leave")
    method.adopt(planted_graph())
    rows = method.rows(HELD_OUT, PROGRESS)
    generator = torch.Generator().manual_seed(8)
    soft = {view: torch.rand(N, CLASSES, generator=generator, dtype=torch.float64) * 0.6 for view in VIEWS}
    rows = replace(rows, extras={f"soft {view}": s for view, s in soft.items()})
    plain = Relation.between(rows, rows, views="cross", by="labels")
    for query, key in (("audio", "visual"), ("visual", "audio")):
        linked = method.student._without_linked(plain, rows, rows, query, key, LINKED)
        negative = linked.masks(0, N)[1]
        for n in range(N):
            for m in range(N):
                a, v = (n, m) if query == "audio" else (m, n)
                s_a, s_v = soft["audio"][a] > 0.35, soft["visual"][v] > 0.35
                edges = [(0, 1), (0, 2)]  # audio -> visual, then visual -> audio
                joined = any(s_a[i] and s_v[j] for i, j in edges) or bool(s_v[2] and s_a[1])
                assert negative[n, m] == (bool(plain.masks(0, N)[1][n, m]) and not joined)
    assert step(method)["loss"] != step_of_stay(method)


def step_of_stay(method: Ili) -> Tensor:
    other = in_student_stage(loss="info-nce", threshold=0.35, negatives="stay")
    other.load_state_dict(method.state_dict())
    return step(other)["loss"]


def test_a_proxy_leaves_where_an_edge_leads_to_its_class() -> None:
    method = in_student_stage(threshold=0.35)
    method.adopt(planted_graph())
    rows = method.rows(HELD_OUT, PROGRESS)
    plain = Relation.to_classes(rows, rows, num_classes=CLASSES, by="labels")
    linked = method.student._without_linked(plain, rows, rows, "audio", "visual", LINKED).masks(0, N)[1]
    heard = rows.extras["soft audio"] > 0.35
    for n in range(N):
        leave = {
            j for i, j in ((0, 1), (0, 2), (1, 2)) if heard[n, i]
        }  # 2 seen -> 1 heard joins 1 heard with 2
        for j in range(CLASSES):
            assert linked[n, j] == (bool(plain.masks(0, N)[1][n, j]) and j not in leave)


@pytest.mark.parametrize("verdict", ["unlinked", "linked"])
def test_nothing_changes_when_the_graph_is_unlinked_or_empty(verdict: str) -> None:
    graph = replace(planted_graph(), verdict=verdict)
    if verdict == "linked":
        empty = np.zeros((CLASSES, CLASSES))
        graph = replace(graph, audio_to_visual=empty, visual_to_audio=empty)
    method, without = in_student_stage(threshold=0.35), in_student_stage(threshold=0.35, graph="none")
    method.adopt(graph)
    found, expected = step(method), step(without)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_the_controls_of_the_graph() -> None:
    permuted = in_student_stage(graph="permuted", permutation=4)
    permuted.adopt(planted_graph())
    edges = permuted.audio_to_visual
    assert not torch.equal(edges, torch.from_numpy(planted_graph().audio_to_visual))
    assert sorted(edges.flatten().tolist()) == sorted(planted_graph().audio_to_visual.flatten().tolist())
    assert not edges.diagonal().any(), "permuted edges join different classes"
    again = in_student_stage(graph="permuted", permutation=4)
    again.adopt(planted_graph())
    assert torch.equal(again.audio_to_visual, edges)
    assert ili(graph="none").graph_plan(100, 10) is None
    plan = ili(graph="lift").graph_plan(100, 10)
    assert plan is not None and plan.search["weights"] == "lift"
    lift = in_student_stage(graph="lift")
    lift.adopt(replace(planted_graph(), verdict="unlinked"))
    assert lift.audio_to_visual.any()


def test_runs_from_before_the_search_heard_the_annotation_are_read() -> None:
    off = {"min_rise": 0.0, "less_mirror": False}
    before = IliSettings.model_validate({"search": {**off, "min_effect": 0.03}}).search
    assert (before.told, before.min_effect) == (0.0, 0.03) and IliSettings().search.told > 0
    with pytest.raises(ValueError, match="search has no less_mirror any more; set told and min_effect"):
        IliSettings.model_validate({"search": {**off, "less_mirror": True}})


def test_stages_and_plan() -> None:
    method = ili(t_teach=0.4, lag=3)
    assert method.stages(100, 10) == {40: "student"}
    assert method.stages(20, 10) == {10: "student"}
    plan = method.graph_plan(100, 10)
    assert plan is not None and (plan.refreshes, plan.window, plan.lag) == ((50,), 10, 3)
    assert plan.moments == {"bounds": (-2.0, 1.0), "one_view": 1.0, "told": True}
    of_all = ili(one_view=None, logit_bounds=None, search={"told": 0.0}).graph_plan(100, 10)
    assert of_all is not None and of_all.search["told"] == 0
    assert (of_all.search["min_effect"], plan.search["min_effect"]) == (0.03, 0.28)
    given = ili(search={"told": 0.0, "min_effect": 0.1}).graph_plan(100, 10)
    assert given is not None and given.search["min_effect"] == 0.1
    assert of_all.moments == {"bounds": None, "one_view": None, "told": False}
    short = method.graph_plan(20, 10)
    assert short is not None and short.refreshes == (10,), (
        "no epoch is left for moments of the frozen teacher"
    )
    online = ili(after_teaching="training", refresh_every=2, t_teach=0.4).graph_plan(100, 10)
    assert online is not None and online.refreshes == (40, 60, 80)
    with pytest.raises(ValueError, match=r"train\.epochs is 1; ili trains a teacher"):
        method.stages(10, 10)


def test_a_frozen_teacher_stands_still_and_one_that_trains_moves() -> None:
    for after, moves in (("frozen", False), ("training", True)):
        method = ili(after_teaching=after, teacher_average=0.5)
        before = weights_of(method, "slow")
        learn(method, 2)
        assert not torch.equal(weights_of(method, "slow"), before), "the teacher stage moves it"
        method.begin("student", HELD_OUT)
        method.train()
        before, student = weights_of(method, "slow"), weights_of(method, "towers")
        learn(method, 2, first=2)
        assert torch.equal(weights_of(method, "slow"), before) != moves
        assert not torch.equal(weights_of(method, "towers"), student)


def test_the_slow_teacher_is_the_stated_average() -> None:
    method = ili(teacher_average=0.75)
    before = weights_of(method, "slow")
    learn(method, 1)
    torch.testing.assert_close(
        weights_of(method, "slow"), 0.75 * before + 0.25 * weights_of(method, "teacher")
    )


def test_the_calibration_is_of_the_held_out_rows() -> None:
    method = ili(calibration="platt")
    learn(method, 5)
    raw = method.slow(HELD_OUT.views)[1]
    method.begin("student", HELD_OUT)
    for (scale, offset), view in zip(method.calibration.tolist(), VIEWS, strict=True):
        wanted = scale * raw[view] + offset
        torch.testing.assert_close(method.soft_labels(HELD_OUT.views)[view], wanted)
    assert not torch.equal(method.calibration[0], method.calibration[1])
    once = method.calibration.clone()
    method.begin("student", HELD_OUT)
    assert torch.equal(method.calibration, once), "a stage can begin again"


def test_stage_and_graph_survive_a_checkpoint() -> None:
    method = in_student_stage(threshold=0.35)
    method.adopt(planted_graph())
    other = ili(threshold=0.35)
    other.load_state_dict(method.state_dict())
    found, expected = step(other), step(method)
    assert all(torch.equal(found[name], expected[name]) for name in expected) and "lir" in found


def test_a_given_teacher_is_not_trained_and_lir_begins_at_once() -> None:
    source = ili(calibration="platt")
    learn(source, 3)
    source.begin("student", HELD_OUT)
    method = ili(threshold=0.35, ramp=0.1)
    method.load_teacher(source.teacher_state())
    method.adopt(planted_graph())
    before = weights_of(method, "slow")
    found = step(method, replace(PROGRESS, t=0.1))
    assert "label_error" not in found and method._ramp(0.05) == pytest.approx(0.5)
    method.begin("student", HELD_OUT)
    assert torch.equal(method.calibration, source.calibration)
    learn(method, 2)
    assert torch.equal(weights_of(method, "slow"), before) and torch.equal(before, weights_of(source, "slow"))
    with pytest.raises(ValueError, match="this teacher does not fit: calibration"):
        method.load_teacher({k: v for k, v in source.teacher_state().items() if k != "calibration"})


def test_a_teacher_of_its_own_size_teaches_the_same_student() -> None:
    large = ili(teacher_hidden=(9, 7))
    sizes = [p.shape[0] for name, p in large.slow.named_parameters() if "audio" in name and p.dim() == 2]
    assert {9, 7} <= set(sizes)
    assert [p.shape for p in large.towers.parameters()] == [p.shape for p in ili().towers.parameters()]
    with pytest.raises(ValueError, match=r"method\.teacher_hidden, method\.teacher_input_dropout, views and"):
        ili().load_teacher(large.teacher_state())


def test_a_teacher_of_its_own_dropout_leaves_that_of_the_student() -> None:
    own = ili(teacher_dropout=0.3, teacher_input_dropout=0.1)
    shares = {
        name: [layer.p for layer in getattr(own, name).modules() if isinstance(layer, Dropout)]
        for name in ("teacher", "slow", "towers")
    }
    as_the_student = [layer.p for layer in ili().teacher.modules() if isinstance(layer, Dropout)]
    assert shares["towers"] == as_the_student
    assert shares["teacher"] == shares["slow"] == [0.1, 0.3] * len(own.views)  # one hidden layer
    with pytest.raises(ValueError, match="this teacher does not fit"):
        ili().load_teacher(own.teacher_state())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"loss": "triplet", "softmax": {}}, "softmax is set, but loss 'triplet' has none"),
        ({"loss": "psd", "softmax": {}}, "softmax is set, but loss 'psd' has none; set psd instead"),
        ({"loss": "info-nce", "psd": {}}, "psd is set, but loss 'info-nce' has none; set softmax instead"),
        ({"loss": "psd", "negatives": "leave"}, "set negatives = 'stay'"),
        ({"loss": "npair"}, "loss"),
        ({"pairs": 0}, "pairs is 0; at least 1, or 'all'"),
        ({"refresh_every": 2}, "a frozen teacher gives the same graph again"),
        ({"graph": "none", "refresh_every": 2, "after_teaching": "training"}, "makes no graph"),
        ({"permutation": 3}, "set graph = 'permuted'"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        validate(IliSettings, values)


def test_data_without_a_class_per_clip_are_refused() -> None:
    with pytest.raises(ValueError, match="ili needs one annotated class per clip"):
        Ili.check(IliSettings(), "events")

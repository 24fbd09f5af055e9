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

from raytrain.cluster.step import WorldLoss, update
from raytrain.cluster.training import make_optimizer
from raytrain.collectives import num_ranks
from raytrain.config import Model, Optim, validate
from raytrain.losses.dcca import squared_correlations
from raytrain.methods.hsc_mae import HscMae, balanced
from raytrain.methods.hsc_mae_settings import HscMaeSettings, Schedule
from raytrain.models.masking import kept_features
from raytrain.models.towers import ViewInput
from raytrain.types import Batch, Progress
from tests.losses.affinity_oracle import affinities, info_nce
from tests.worlds import run_world

N = 11
GENERATOR = torch.Generator().manual_seed(2)
SHARED = torch.randn(N, 3, dtype=torch.float64, generator=GENERATOR)
VIEWS = {
    "audio": SHARED @ torch.randn(3, 6, dtype=torch.float64, generator=GENERATOR) + 2,
    "visual": SHARED @ torch.randn(3, 9, dtype=torch.float64, generator=GENERATOR) - 1,
}
VIEWS["audio"][:, 4] = 0.5  # constant, as many real columns are
ROW = torch.randperm(100, generator=GENERATOR)[:N]
EARLY, LATE = Progress(step=1, epoch=0, t=0.1, seed=4), Progress(step=9, epoch=3, t=0.6, seed=4)

ABLATIONS: dict[str, dict[str, Any]] = {
    "whole": {},
    "without dcca": {"dcca": None},
    "trace norm": {"dcca": "trace-norm"},
    "eckart-young": {"dcca": "eckart-young"},
    "unmasked dcca": {"dcca_input": "unmasked"},
    "unmasked eckart-young": {"dcca": "eckart-young", "dcca_input": "unmasked"},
    "without contrast": {"contrast": None},
    "pair alone": {"contrast": "pair"},
    "without the pair": {"include_pair": False},
    "without reconstruction": {"reconstruction": None},
    "intra alone": {"reconstruction": "intra"},
    "cross alone": {"reconstruction": "cross"},
    "masked elements": {"reconstructed": "masked"},
    "without distillation": {"distillation": False},
    "without masks": {"mask_ratio": 0.0},
    "without a teacher": {"teacher": "student", "distillation": False},
    "equal weights": {"weights": "equal"},
    "constant mix": {"mix": "constant"},
    "without warm-up": {"warmup": 0.0},
    "given weights": {"dcca_weight": 0.3, "reconstruction_weight": 0.7},
    "given weights alone": {"dcca_weight": 2.0, "reconstruction_weight": 0.0, "weights": "equal"},
    "only dcca": {"contrast": None, "reconstruction": None, "distillation": False},
    "only info-nce": {"dcca": None, "contrast": "pair", "reconstruction": None, "distillation": False},
    "only mae": {"dcca": None, "contrast": None, "distillation": False},
}


def method_of(ablation: str = "whole", **model: Any) -> HscMae:
    torch.manual_seed(3)
    inputs = {name: ViewInput(x.mean(0).float(), torch.full((x.shape[1],), 0.7)) for name, x in VIEWS.items()}
    wanted = {
        "hidden": (8, 7),
        "embedding": 4,
        "norm": "layer",
        "activation": "tanh",
        "dropout": 0.0,
        **model,
    }
    settings = validate(HscMaeSettings, {"decoder_width": 5, "neighbours": 3, **ABLATIONS[ablation]})
    return HscMae.build(settings, inputs, Model(**wanted), None).double().train()


def batch(part: slice = slice(0, N), labels: Tensor | None = None) -> Batch:
    return Batch(ROW[part], {name: x[part] for name, x in VIEWS.items()}, labels)


def outcome(ablation: str, progress: Progress, parts: list[slice], rank: int) -> dict[str, Tensor]:
    method = method_of(ablation)
    module: nn.Module = WorldLoss(method, torch.float32)
    if num_ranks() > 1:
        module = DistributedDataParallel(module, broadcast_buffers=False)
    loss = module(batch(parts[rank]), tuple(part.stop - part.start for part in parts), progress)
    loss.total.backward()
    gradients = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    missing = [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing, f"data-parallel training would wait for {missing}"
    terms = {f"term {name}": value.detach() for name, value in loss.terms.items()}
    return {"term": loss.total.detach(), **terms, **gradients, **dict(method.named_buffers())}


@pytest.mark.parametrize("cuts", [[0, 7, N], [0, 3, 4, 9, N]])
def test_two_and_four_ranks_are_one(cuts: list[int], tmp_path: Path) -> None:
    """Loss, terms, gradients and buffers, with every switch, in the warm-up and after it."""
    parts = [slice(a, b) for a, b in pairwise(cuts)]
    cases = [(ablation, progress) for ablation in ABLATIONS for progress in (EARLY, LATE)]
    found = run_world(
        len(parts), lambda rank: [outcome(ablation, at, parts, rank) for ablation, at in cases], tmp_path
    )
    for i, (ablation, at) in enumerate(cases):
        for name, expected in outcome(ablation, at, [slice(0, N)], 0).items():
            assert expected.isfinite().all()
            value = torch.stack([of_rank[i][name] for of_rank in found]).mean(0)
            torch.testing.assert_close(
                value, expected, rtol=1e-10, atol=1e-10, msg=lambda m, of=(ablation, name): f"{of}: {m}"
            )


@pytest.mark.parametrize("labels", [torch.arange(N) % 3, torch.randperm(N, generator=GENERATOR) % 3])
def test_labels_change_nothing(labels: Tensor) -> None:
    results = []
    for seen in (None, labels):
        method = method_of()
        optimizer = make_optimizer(method, Optim())
        for progress in (EARLY, LATE):
            update(
                WorldLoss(method, torch.float32),
                method,
                batch(labels=seen),
                (N,),
                progress,
                optimizer=optimizer,
                learning_rate=1e-2,
                clip=1.0,
                ema=None,
            )
        rows = method.rows(batch(labels=seen), LATE)
        assert rows.labels is None and rows.events is None and rows.logits == {}
        results.append(method.state_dict())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def forward_by_hand(method: HscMae, view: str, number: int, progress: Progress) -> tuple[Tensor, Tensor]:
    """(scaled inputs, code of the masked inputs), batch statistics written out."""
    encoder = method.towers[view]
    x = (VIEWS[view] - encoder.scaling.shift) * encoder.scaling.scale
    variance = (x - x.mean(0)).square().mean(0)
    clean = (x - x.mean(0)) / (variance + 1e-5).sqrt()
    kept = kept_features(ROW, x.shape[1], ratio=0.2, seed=(progress.seed, progress.step, number))
    return x, encoder.trunk(torch.where(kept, clean, 0.0))


@pytest.mark.parametrize("progress", [EARLY, LATE])
@pytest.mark.parametrize(
    ("ablation", "of_dcca", "of_sample"),
    [("whole", 1, 1), ("given weights", 0.3, 0.7), ("given weights alone", 2, 0)],
)
def test_loss_is_its_equation(ablation: str, of_dcca: float, of_sample: float, progress: Progress) -> None:
    method = method_of(ablation)
    s = [0.0] * 4
    if method.log_variance is not None:
        s = [0.3, -0.4, 0.9, -1.1]
        method.log_variance.data = torch.tensor(s, dtype=torch.float64)
    reference = copy.deepcopy(method)
    loss = WorldLoss(method, torch.float32)(batch(), (N,), progress)
    x, codes, z = {}, {}, {}
    for number, view in enumerate(VIEWS):
        x[view], codes[view] = forward_by_hand(reference, view, number, progress)
        raw = reference.towers[view].projector(codes[view])
        z[view] = raw / raw.norm(dim=1, keepdim=True)
    assert reference.teacher is not None
    taught = reference.teacher(VIEWS)[0]

    def mse(p: Tensor, q: Tensor) -> float:
        total = sum((a - b) ** 2 for a, b in zip(p.flatten().tolist(), q.flatten().tolist(), strict=True))
        return total / p.numel()

    decoded = dict(zip(reference.decoders.pairs, reference.decoders.decoders, strict=True))
    expected = {"reconstruction": 0.0, "cross": 0.0}
    for (source, target), decode in decoded.items():
        term = "reconstruction" if source == target else "cross"
        expected[term] += mse(decode(codes[source]), x[target])
    expected["distillation"] = sum(mse(z[view], taught[view]) for view in VIEWS)
    fused = (taught["audio"] + taught["visual"]) / 2
    fused = (fused / fused.norm(dim=1, keepdim=True)).tolist()
    w = affinities(fused, fused, list(range(N)), 3, 0.05)
    rows = {view: z[view].tolist() for view in VIEWS}
    expected["contrast"] = sum(
        info_nce(rows[query][i], rows[key], w[i], i, 0.05, include_pair=True) / (2 * N)
        for query, key in (("audio", "visual"), ("visual", "audio"))
        for i in range(N)
    )
    expected["dcca"] = squared_correlations(z["audio"], z["visual"], ridge=1e-4).item()
    for name, value in expected.items():
        torch.testing.assert_close(loss.terms[name].item(), value, rtol=1e-10, atol=1e-12)
    order = ["reconstruction", "cross", "distillation", "contrast"]
    if progress is EARLY:
        fixed = [1.0, 0.1 / 0.25, 0.1, 0.05]
        total = sum(w * expected[name] for w, name in zip(fixed, order, strict=True))
    else:
        c = (1 - math.cos(math.pi * 0.6)) / 2
        given = [of_sample, of_sample, 1, 1]
        total = (1 - c) * of_dcca * expected["dcca"]
        total += c * sum(
            w * (math.exp(-si) * expected[name] + si) for w, si, name in zip(given, s, order, strict=True)
        )
    torch.testing.assert_close(loss.total.item(), total, rtol=1e-10, atol=1e-12)


def test_masked_reconstruction_counts_what_was_hidden() -> None:
    method = method_of("masked elements")
    reference = copy.deepcopy(method)
    loss = WorldLoss(method, torch.float32)(batch(), (N,), LATE)
    expected = 0.0
    for number, view in enumerate(VIEWS):
        x, code = forward_by_hand(reference, view, number, LATE)
        kept = kept_features(ROW, x.shape[1], ratio=0.2, seed=(LATE.seed, LATE.step, number))
        decode = reference.decoders.decoders[reference.decoders.pairs.index((view, view))]
        squares = (decode(code) - x).square()
        expected += squares[~kept].mean().item()
    torch.testing.assert_close(loss.terms["reconstruction"].item(), expected, rtol=1e-10, atol=0)


def test_the_teacher_moves_with_its_buffers_and_learns_nothing() -> None:
    method = method_of()
    assert method.teacher is not None and method.log_variance is not None
    assert not method.teacher.training and method.towers.training
    assert not any(p.requires_grad for p in method.teacher.parameters())
    before = {name: value.clone() for name, value in method.teacher.state_dict().items()}
    method.rows(batch(), EARLY)  # moves the student's running statistics
    with torch.no_grad():
        for parameter in method.towers.parameters():
            parameter.add_(torch.randn_like(parameter))
        method.log_variance.copy_(torch.tensor([5.0, -5.0, 1.0, 0.0]))
    method.after_step(LATE)
    decay = 0.95 + 0.05 * 0.6
    student = method.towers.state_dict()
    for name, value in method.teacher.state_dict().items():
        torch.testing.assert_close(value, decay * before[name] + (1 - decay) * student[name])
    assert not torch.equal(
        before["towers.audio.norm.running_mean"], student["towers.audio.norm.running_mean"]
    )
    assert method.log_variance.tolist() == [3.0, -3.0, 1.0, 0.0]


def test_the_teacher_is_evaluated_and_no_mask_is_drawn() -> None:
    method = method_of(dropout=0.3).eval()
    assert method.teacher is not None
    embeddings = method.embed(VIEWS)
    for view, z in embeddings.items():
        assert torch.equal(z, method.teacher(VIEWS)[0][view]) and torch.equal(z, method.embed(VIEWS)[view])
        torch.testing.assert_close(z.norm(dim=1), torch.ones(N, dtype=torch.float64))
    alone = method_of("without a teacher").eval()
    assert torch.equal(alone.embed(VIEWS)["audio"], alone.towers(VIEWS)[0]["audio"])
    assert not any("teacher" in name for name in alone.state_dict())


def test_masks_differ_by_step_seed_and_view_and_not_otherwise() -> None:
    method = method_of(hidden=(6,))

    def z(progress: Progress) -> Tensor:
        return method.rows(batch(), progress).embeddings["audio"]

    assert torch.equal(z(LATE), z(LATE))
    assert not torch.equal(z(LATE), z(replace(LATE, step=10)))
    assert not torch.equal(z(LATE), z(replace(LATE, seed=5)))


def test_schedule_at_its_ends() -> None:
    schedule = Schedule(validate(HscMaeSettings, {}))
    assert schedule.warming_up(0.0) and schedule.warming_up(0.2499) and not schedule.warming_up(0.25)
    assert schedule.in_warmup("cross", 0.0) == 0 and schedule.in_warmup("cross", 0.125) == 0.5
    assert schedule.mix(0.0) == (0.0, 1.0)
    assert schedule.mix(0.5) == pytest.approx((0.5, 0.5))
    assert schedule.mix(1.0) == pytest.approx((0.0, 1.0))
    assert schedule.ema_decay(0.0) == 0.95 and schedule.ema_decay(1.0) == 0.999
    only = Schedule(validate(HscMaeSettings, ABLATIONS["only dcca"]))
    assert only.mix(0.0) == only.mix(1.0) == (1.0, 0.0) and not only.warming_up(0.0)


def test_balanced_weights_have_their_minimum_at_the_log_of_the_loss() -> None:
    losses, given = torch.tensor([[0.5, 2.0, 7.0], [1.0, 0.2, 3.0]], dtype=torch.float64)
    s = losses.log().requires_grad_()
    value = balanced(losses, s, given)
    value.backward()
    assert s.grad is not None and s.grad.abs().max() < 1e-12
    assert value.item() == pytest.approx(
        1 * (1 + math.log(0.5)) + 0.2 * (1 + math.log(2)) + 3 * (1 + math.log(7))
    )


def test_learns_without_labels_what_the_views_share() -> None:
    """Noise in every column, three shared directions: pairs are found far above chance."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(256, 3, generator=generator)
    rows = {
        name: shared @ torch.randn(3, size, generator=generator) + torch.randn(256, size, generator=generator)
        for name, size in (("audio", 12), ("visual", 20))
    }
    torch.manual_seed(0)
    inputs = {name: ViewInput(x.mean(0), 1 / x.std(0)) for name, x in rows.items()}
    model = Model(hidden=(48, 48), embedding=8, norm="layer", activation="tanh", dropout=0.1)
    method = HscMae.build(validate(HscMaeSettings, {"decoder_width": 16}), inputs, model, None).train()
    optimizer, world_loss = make_optimizer(method, Optim()), WorldLoss(method, torch.float32)

    def recall_at_10() -> float:
        z = method.embed(rows)
        rank = (z["audio"] @ z["visual"].T).argsort(dim=1, descending=True)
        return (rank[:, :10] == torch.arange(256)[:, None]).any(dim=1).float().mean().item()

    untrained, steps = recall_at_10(), 150
    for step in range(steps):
        update(
            world_loss,
            method,
            Batch(torch.arange(256), rows),
            (256,),
            Progress(step, step, step / steps, 0),
            optimizer=optimizer,
            learning_rate=3e-3,
            clip=1.0,
            ema=None,
        )
    assert recall_at_10() > 0.4 > 3 * untrained


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dcca": None, **ABLATIONS["only dcca"]} | {"dcca": None}, "are all off"),
        ({"teacher": "student"}, "nothing to distil; set distillation = false"),
        ({"contrast": "pair", "include_pair": False}, "set include_pair = true"),
        ({"dccca": "trace"}, "Did you mean 'dcca'"),
        ({"dcca": "kernel"}, "'trace', 'trace-norm' or 'eckart-young'"),
        ({"mask_ratio": 1.0}, "less than 1"),
        ({"dcca_weight": 0.0}, "greater than 0"),
        ({"reconstruction_weight": -0.1}, "greater than or equal to 0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate(HscMaeSettings, values, "method")


def test_input_dropout_is_refused() -> None:
    with pytest.raises(ValueError, match=r"set method\.mask_ratio instead of model\.input_dropout"):
        method_of(input_dropout=0.1)


def test_half_precision_towers_give_a_finite_loss() -> None:
    method = method_of().float()
    rows = {name: x.float() for name, x in VIEWS.items()}
    loss = WorldLoss(method, torch.bfloat16)(Batch(ROW, rows), (N,), LATE)
    loss.total.backward()
    assert loss.total.dtype == torch.float32 and loss.total.isfinite()
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


def test_rates_give_the_weights_their_own() -> None:
    method = method_of()
    optimizer = make_optimizer(method, Optim(lr=3e-4))
    assert method.log_variance is not None
    own = [g for g in optimizer.param_groups if any(p is method.log_variance for p in g["params"])]
    assert own[0]["rate"] * 3e-4 == pytest.approx(1e-3) and own[0]["weight_decay"] == 0
    assert len(own[0]["params"]) == 1

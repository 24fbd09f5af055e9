"""What is asked of every method that stands in METHODS, and of every loss of the plain one."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from raytrain.cluster.step import WorldLoss
from raytrain.collectives import num_ranks
from raytrain.config import Model, validate
from raytrain.graph.dependency import ClassDependency
from raytrain.methods import METHODS
from raytrain.methods.base import Method
from raytrain.methods.metric import LOSSES
from raytrain.models.towers import ViewInput
from raytrain.types import Batch, Progress
from tests.worlds import run_world

N, CLASSES = 13, 3
GENERATOR = torch.Generator().manual_seed(5)
VIEWS = {
    "audio": torch.randn(N, 7, generator=GENERATOR).double(),
    "visual": torch.randn(N, 4, generator=GENERATOR).double(),
}
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, -1, 0, 1, 2, 0])
EVENTS = (torch.rand(N, CLASSES, generator=GENERATOR) > 0.6).to(torch.uint8)
PROGRESS = Progress(step=3, epoch=1, t=0.5, seed=11)

CASES = {
    **{f"metric {loss}": ("metric", {"loss": loss}) for loss in LOSSES},
    "metric triplet hard": ("metric", {"loss": "triplet", "triplet": {"mining": "hard"}}),
    "metric triplet semi-hard": (
        "metric",
        {"loss": "triplet", "triplet": {"mining": "semi-hard", "margin": 0.6}},
    ),
    "metric triplet proxies": ("metric", {"loss": "triplet", "triplet": {"against": "proxies"}}),
    "metric triplet euclidean": ("metric", {"loss": "triplet", "triplet": {"distance": "euclidean"}}),
    "metric supcon within": ("metric", {"loss": "supcon", "within": 0.5}),
    "metric center-contrastive within": ("metric", {"loss": "center-contrastive", "within": 0.5}),
    **{name: (name, {}) for name in METHODS if name != "metric"},
    "psd self hard": ("psd", {"teacher": "self", "mining": "hard", "margin": 0.6, "dis": "distance"}),
    "psd separate": ("psd", {"teacher": "separate", "r_schedule": "linear", "r_end": 0.1}),
    "psd classes": ("psd", {"alignment": "classes", "label": "cross-entropy", "r_schedule": "step"}),
    "psd info-nce": (
        "psd",
        {"metric": "info-nce", "alignment": "classes", "label": "cross-entropy", "class_share": 0.5},
    ),
    "psd supcon": ("psd", {"metric": "supcon", "teacher": "separate", "gate": None, "pair": "positive"}),
    "dscmr likelihood": ("dscmr", {"common": "likelihood"}),
    "ili explained": ("ili", {"one_of": 0.3, "reconstruction": 0.5, "contrast": 0.2}),
    "ili labels alone": ("ili", {"one_of": 0.0, "reconstruction": 0.0}),
    "ili linked": ("ili", {"threshold": 0.35, "weight": 0.1}),
    "ili linked all pairs": (
        "ili",
        {"loss": "info-nce", "pairs": "all", "negatives": "leave", "threshold": 0.35, "weight": 0.1},
    ),
    "ili linked weigh": (
        "ili",
        {"loss": "triplet", "negatives": "weigh", "threshold": 0.35, "weight": 0.1},
    ),
    "ili linked psd": (
        "ili",
        {
            "loss": "psd",
            "psd": {"metric": "info-nce", "alignment": "classes", "label": "cross-entropy"},
            "threshold": 0.35,
            "weight": 0.1,
        },
    ),
    "ili linked online": (
        "ili",
        {
            "loss": "supcon",
            "after_teaching": "training",
            "refresh_every": 1,
            "label_error": "l2",
            "threshold": 0.2,
            "weight": 0.1,
        },
    ),
}


def batch(part: slice, *, annotated: str = "label") -> Batch:
    return Batch(
        row=torch.arange(N)[part] * 3,
        views={name: x[part] for name, x in VIEWS.items()},
        labels=LABELS[part] if annotated == "label" else None,
        events=EVENTS[part] if annotated == "events" else None,
    )


def method_of(case: str, *, num_classes: int | None = CLASSES) -> Method:
    name, values = CASES[case]
    torch.manual_seed(7)
    inputs = {
        view: ViewInput(torch.full((x.shape[1],), 0.1), torch.full((x.shape[1],), 1.3))
        for view, x in VIEWS.items()
    }
    model = Model(hidden=(6,), embedding=5, norm="batch", dropout=0.0)
    method = METHODS[name].build(validate(METHODS[name].Settings, values), inputs, model, num_classes)
    method.double()
    if case.startswith("ili linked"):  # in its last stage
        method.begin("student", batch(slice(0, N)))
        method.adopt(planted_graph())
    return method.train()


def planted_graph() -> ClassDependency:
    """0 -> 1 and 0 -> 2 from what is heard to what is seen, 2 -> 1 the other way."""
    there = np.array([[0, 0.7, 0.3], [0, 0, 0], [0, 0, 0]])
    back = np.array([[0, 0, 0], [0, 0, 0], [0, 1.0, 0]])
    square = np.zeros((6, 6))
    return ClassDependency(
        there, back, square, square, square, square > 0, 0.0, 0.0, 0, "linked", 13.0, np.arange(9), True
    )


def outcome(case: str, parts: list[slice], rank: int) -> dict[str, Tensor]:
    """Loss, terms and every parameter's gradient, as data-parallel training has them."""
    method = method_of(case)
    module: torch.nn.Module = WorldLoss(method, torch.float32)
    if num_ranks() > 1:
        module = DistributedDataParallel(module, broadcast_buffers=False)
    sizes = tuple(part.stop - part.start for part in parts)
    loss = module(batch(parts[rank]), sizes, PROGRESS)
    loss.total.backward()
    gradients = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    buffers = {f"buffer {name}": b.clone() for name, b in method.named_buffers()}
    terms = {f"term {name}": value.detach() for name, value in loss.terms.items()}
    active = {} if loss.active is None else {"active": loss.active.detach()}
    return {"loss": loss.total.detach(), **terms, **active, **gradients, **buffers}


@pytest.mark.parametrize("case", CASES)
def test_two_and_three_ranks_are_one(case: str, tmp_path: Path) -> None:
    alone = outcome(case, [slice(0, N)], 0)
    for cuts in ([0, 8, N], [0, 1, 6, N]):
        parts = [slice(a, b) for a, b in pairwise(cuts)]
        found = run_world(len(parts), lambda rank, parts=parts: outcome(case, parts, rank), tmp_path)
        for name, expected in alone.items():
            if name == "loss" or name.startswith("term") or name == "active":
                value = torch.stack([f[name] for f in found]).mean(0)
            else:
                value = found[0][name]
                assert all(torch.equal(f[name], value) for f in found), f"{name} differs between ranks"
            bound = 1e-6 if name == "active" else 1e-10  # a share is counted, and told in float32
            torch.testing.assert_close(
                value, expected, rtol=bound, atol=bound, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("case", CASES)
def test_both_views_learn(case: str) -> None:
    method = method_of(case)
    loss = WorldLoss(method, torch.float32)(batch(slice(0, N)), (N,), PROGRESS)
    loss.total.backward()
    for view in VIEWS:
        moved = [p.grad.norm() for p in method.towers.towers[view].parameters() if p.grad is not None]
        assert moved and max(moved) > 1e-9, f"no gradient reaches {view}"


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("metric")])
def test_swapping_the_views_swaps_the_terms(case: str) -> None:
    """With equal towers for both views, audio -> visual of swapped inputs is visual -> audio."""
    terms = []
    for swap in (False, True):
        method = method_of(case)
        audio, visual = "audio", "visual"
        made = method.rows(batch(slice(0, N)), PROGRESS)
        z = made.embeddings
        if swap:
            made = replace(made, embeddings={audio: z[visual], visual: z[audio]})
        terms.append(method.loss(made, made, PROGRESS).terms)
    for name, value in terms[0].items():
        first, _, second = name.partition("_to_")
        other = {"audio": "visual", "visual": "audio"}
        swapped = f"{other[first]}_to_{other.get(second, second)}"
        torch.testing.assert_close(terms[1][swapped], value)
    values = list(terms[0].values())
    if case == "metric contrastive":  # a mean over pairs, and a pair has no direction
        return
    assert not torch.allclose(values[0], values[1]), "the two directions are told apart"

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from raytrain.config import Model, build, validate
from raytrain.methods import resolve
from raytrain.methods.dscmr import Dscmr, DscmrSettings
from raytrain.models.towers import ViewInput
from raytrain.types import UNANNOTATED, Batch, Progress, Rows
from tests.datasets import small_dataset
from tests.losses.soft_oracle import distance, dot

N, CLASSES = 9, 3
GENERATOR = torch.Generator().manual_seed(3)
VIEWS = {
    "audio": torch.randn(N, 4, dtype=torch.float64, generator=GENERATOR),
    "visual": torch.randn(N, 6, dtype=torch.float64, generator=GENERATOR) + 1,
}
LABELS = torch.tensor([0, 1, 2, 0, -1, 1, 0, 2, 1])
EVENTS = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0], [0, 1, 1]] + [[1, 0, 0]] * 3)
PROGRESS = Progress(step=0, epoch=0, t=0.0, seed=0)


def method_of(**settings: Any) -> Dscmr:
    torch.manual_seed(2)
    inputs = {name: ViewInput(torch.zeros(x.shape[1]), torch.ones(x.shape[1])) for name, x in VIEWS.items()}
    model = Model(hidden=(6,), embedding=5, norm="batch", dropout=0.0)
    return Dscmr.build(validate(DscmrSettings, settings), inputs, model, CLASSES).double().train()


def expected_terms(rows: Rows, settings: DscmrSettings) -> dict[str, float]:
    """In loops over floats; the class of a row is its label, or its set of events."""
    z = {view: x.tolist() for view, x in rows.embeddings.items()}
    if rows.labels is not None:
        classes = [set() if y == UNANNOTATED else {y} for y in rows.labels.tolist()]
    else:
        assert rows.events is not None
        classes = [{c for c in range(CLASSES) if row[c]} for row in rows.events.tolist()]
    annotated = [i for i in range(N) if classes[i]]
    label = 0.0
    for view in z:
        for i in annotated:
            u = rows.logits[view][i].tolist()
            label += math.sqrt(sum((u[c] - (c in classes[i])) ** 2 for c in range(CLASSES)))
    terms = {"label": label / len(annotated)}
    if settings.common == "triplet":
        for query, key in (("audio", "visual"), ("visual", "audio")):
            hinges = [
                max(
                    0.0, settings.margin + distance(z[query][i], z[key][j]) - distance(z[query][i], z[key][k])
                )
                for i in annotated
                for j in annotated
                for k in annotated
                if classes[i] & classes[j] and not classes[i] & classes[k]
            ]
            terms[f"{query}_to_{key}"] = sum(hinges) / len(hinges)
    else:
        for query, key in (("audio", "visual"), ("audio", "audio"), ("visual", "visual")):
            values = []
            for i in range(N):
                for j in range(N):
                    own = i == j and query != key
                    if not own and (i == j or not classes[i] or not classes[j]):
                        continue
                    theta = dot(z[query][i], z[key][j]) / 2
                    same = own or bool(classes[i] & classes[j])
                    values.append(math.log(1 + math.exp(theta)) - (theta if same else 0.0))
            terms[f"{query}_to_{key}"] = sum(values) / len(values)
    pairs = zip(z["audio"], z["visual"], strict=True)
    terms["distance"] = (
        sum(math.sqrt(sum((a - b) ** 2 for a, b in zip(x, y, strict=True))) for x, y in pairs) / N
    )
    return terms


@pytest.mark.parametrize("annotation", ["labels", "events"])
@pytest.mark.parametrize("common", ["triplet", "likelihood"])
def test_terms_and_loss_are_their_equations(common: str, annotation: str) -> None:
    method = method_of(common=common, alpha=0.6, beta=0.3)
    labels, events = (LABELS, None) if annotation == "labels" else (None, EVENTS.to(torch.uint8))
    rows = method.rows(Batch(torch.arange(N), VIEWS, labels, events), PROGRESS)
    found = method.loss(rows, rows, PROGRESS)
    terms = expected_terms(rows, method.settings)
    assert found.terms.keys() == terms.keys()
    for name, value in terms.items():
        assert found.terms[name].item() == pytest.approx(value, abs=1e-12), name
    of_common = [terms[name] for name in terms if "_to_" in name]
    weighed = sum(of_common) / 2 if common == "triplet" else sum(of_common)
    expected = terms["label"] + 0.6 * weighed + 0.3 * terms["distance"]
    assert found.total.item() == pytest.approx(expected, abs=1e-12)


def test_the_papers_weights_are_the_defaults_of_its_loss() -> None:
    paper, field = validate(DscmrSettings, {"common": "likelihood"}), validate(DscmrSettings, {})
    assert (paper.alpha, paper.beta, paper.margin, paper.mining) == (1e-3, 0.1, None, None)
    assert (field.alpha, field.beta, field.margin, field.mining) == (1.0, 0.1, 0.2, "all")
    for made in (paper, field):
        assert validate(DscmrSettings, made.model_dump()) == made


def test_labels_of_nobody_reach_nothing_but_the_distance() -> None:
    method = method_of()
    rows = method.rows(Batch(torch.arange(N), VIEWS, torch.full((N,), UNANNOTATED)), PROGRESS)
    found = method.loss(rows, rows, PROGRESS)
    torch.testing.assert_close(found.total, 0.1 * found.terms["distance"])
    found.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


def test_what_would_be_ignored_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="margin and mining are those of 'triplet'"):
        validate(DscmrSettings, {"common": "likelihood", "margin": 0.1})
    dataset = small_dataset(tmp_path)
    given = build(overrides=["method.name=dscmr", "data.annotation=none"], data={"path": dataset.path})
    with pytest.raises(ValueError, match="dscmr learns classes"):
        resolve(given, dataset.manifest)

from __future__ import annotations

import math

import torch

from raytrain.evaluation.classification import top_1


def test_top_1_is_counted_row_by_row() -> None:
    scores = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 6 - 1
    right = counted = 0
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        if label >= 0:
            counted += 1
            right += all(row[label] > other for c, other in enumerate(row) if c != label)
    assert 0 < right < counted == 33
    assert top_1(scores, labels) == right / counted


def test_a_tie_is_wrong_and_nothing_annotated_is_no_number() -> None:
    assert top_1(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])) == 0
    assert top_1(torch.eye(3), torch.arange(3)) == 1
    assert math.isnan(top_1(torch.eye(3), torch.full((3,), -1)))

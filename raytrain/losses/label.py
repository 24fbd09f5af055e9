"""Loss in the space of labels: how far class logits are from what was annotated."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from raytrain.losses.masks import Marks
from raytrain.types import UNANNOTATED

LabelLoss = Literal["norm", "cross-entropy"]


def is_annotated(marks: Marks) -> Bool[Tensor, " b"]:
    """True for rows with a label, or with any event."""
    if marks.labels is not None:
        return marks.labels != UNANNOTATED
    assert marks.events is not None, "rows are annotated by labels or by event sets"
    return marks.events.ne(0).any(dim=1)


def targets(marks: Marks, num_classes: int, dtype: torch.dtype) -> Float[Tensor, "b {num_classes}"]:
    """One-hot of the label, or the event set; zero for rows that are not annotated."""
    if marks.labels is not None:
        return F.one_hot(marks.labels.clamp(min=0), num_classes).to(dtype) * is_annotated(marks)[:, None]
    assert marks.events is not None, "rows are annotated by labels or by event sets"
    return marks.events.to(dtype)


def label_loss(
    logits: Float[Tensor, "b c"], target: Float[Tensor, "b c"], *, kind: LabelLoss
) -> Float[Tensor, " b"]:
    r"""One value per row; rows whose target is zero count for nothing and are the caller's to leave out.

        norm            ||u - y||_2                                   Zhen et al., CVPR 2019 (DSCMR), label space
        cross-entropy   -sum_c y_c / |y|_1 log softmax(u)_c           of an event set: all events alike

    The norm's gradient at u = y is zero (a subgradient).
    """
    if kind == "norm":
        return torch.linalg.vector_norm(logits - target, dim=1)
    share = target / target.sum(dim=1, keepdim=True).clamp(min=1)
    return -(share * logits.log_softmax(dim=1)).sum(dim=1)

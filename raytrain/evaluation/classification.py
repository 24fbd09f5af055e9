"""How often a classifier is right."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from raytrain.types import UNANNOTATED


def top_1(scores: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> float:
    """Share of the annotated rows whose own class has the highest score; NaN where nothing is annotated.

    Ties count against us: a class that shares the highest score is not the highest.
    """
    annotated = labels != UNANNOTATED
    scores, labels = scores[annotated], labels[annotated]
    if not len(labels):
        return float("nan")
    own = labels[:, None] == torch.arange(scores.shape[1], device=labels.device)[None, :]
    rivals = scores.masked_fill(own, -torch.inf).amax(dim=1)
    return float((scores.gather(1, labels[:, None]).squeeze(1) > rivals).double().mean())

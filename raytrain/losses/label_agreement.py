"""Soft labels of two views that fit the annotated class and agree with each other, and their calibration."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from raytrain.types import UNANNOTATED

LabelError = Literal["bce", "l2"]
Calibration = Literal["none", "temperature", "platt"]

SCALES = (1e-2, 1e2)
"""Between which a calibration's scale is sought: held-out rows that are all right would make it infinite."""
_NEWTON_STEPS, _HALVINGS = 60, 30


def label_error(
    logits: Float[Tensor, "b c"], labels: Int[Tensor, " b"], *, kind: LabelError, smoothing: float
) -> Float[Tensor, " b"]:
    r"""How far the independent sigmoids s = sigmoid(u) are from the annotated class; 0 where none is annotated.

        bce  -1/c sum_k y_k log s_k + (1 - y_k) log(1 - s_k),   y = (1 - eps) onehot + eps / 2
        l2   || s - y ||_2

    The first two terms of AV-SAL, Zeng et al. (ILI).  Smoothing draws each of the c binary targets to 1/2.
    """
    annotated = labels != UNANNOTATED
    one_hot = F.one_hot(labels.clamp(min=0), logits.shape[1]).to(logits.dtype)  # [b c]
    target = (1 - smoothing) * one_hot + smoothing / 2
    if kind == "bce":
        error = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(dim=1)
    else:
        error = torch.linalg.vector_norm(torch.sigmoid(logits) - target, dim=1)
    return error * annotated


def jensen_shannon(
    first: Float[Tensor, "b c"], second: Float[Tensor, "b c"], *, temperature: float
) -> Float[Tensor, " b"]:
    r"""JS(p, q) = KL(p || m) / 2 + KL(q || m) / 2,  m = (p + q) / 2,  p = softmax(u / T); in [0, log 2].

    Lin 1991; the last term of AV-SAL.  Symmetric, and finite where a probability vanishes.
    """
    log_p, log_q = (F.log_softmax(u / temperature, dim=1) for u in (first, second))
    log_m = torch.logaddexp(log_p, log_q) - torch.log(
        torch.tensor(2.0, dtype=log_p.dtype, device=log_p.device)
    )
    kl = log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)
    return kl.sum(dim=1) / 2


class Calibrated(NamedTuple):
    """s = sigmoid(scale u + offset)."""

    scale: float
    offset: float


def fit_calibration(
    logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"], *, kind: Calibration
) -> Calibrated:
    r"""Scale (and offset) of one view's logits with the least binary cross-entropy on held-out rows.

        min over a, b of  - mean_{n, k}  y_nk log sigmoid(a u_nk + b) + (1 - y_nk) log(1 - sigmoid(a u_nk + b))

    temperature  a = 1 / T, b = 0 (Guo et al., ICML 2017, for sigmoids);  platt  a and b (Platt 1999)

    Convex; Newton's method with halved steps in float64 from a = 1, b = 0, so a function of the rows alone.
    Raises ValueError where no held-out row is annotated.
    """
    if kind == "none":
        return Calibrated(1.0, 0.0)
    known = labels != UNANNOTATED
    u = logits[known].double()
    if not len(u):
        raise ValueError(
            f"calibration {kind!r} needs held-out rows with a class, got none of {len(labels)}; "
            "set method.calibration = 'none'"
        )
    y = F.one_hot(labels[known], u.shape[1]).double()
    inputs = torch.stack([u.flatten(), torch.ones(u.numel(), dtype=u.dtype, device=u.device)])  # [2 n*c]
    inputs = inputs[:1] if kind == "temperature" else inputs
    theta = torch.tensor([1.0, 0.0], dtype=u.dtype, device=u.device)[: len(inputs)]

    def error(at: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(at @ inputs, y.flatten())

    for _ in range(_NEWTON_STEPS):
        s = torch.sigmoid(theta @ inputs)
        gradient = inputs @ (s - y.flatten()) / s.numel()
        curvature = (inputs * (s * (1 - s))) @ inputs.T / s.numel()
        curvature += 1e-12 * torch.eye(len(theta), dtype=u.dtype, device=u.device)
        step = torch.linalg.solve(curvature, gradient)
        size, now = 1.0, error(theta)
        for _ in range(_HALVINGS):
            moved = theta - size * step
            moved[0] = moved[0].clamp(*SCALES)
            if error(moved) <= now:
                break
            size /= 2
        else:
            break
        theta = moved
    values = theta.tolist()
    return Calibrated(values[0], values[1] if len(values) > 1 else 0.0)

"""Soft labels of two views that fit the annotated class and agree with each other, and their calibration."""

from __future__ import annotations

import math
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


def label_error(
    logits: Float[Tensor, "b c"],
    labels: Int[Tensor, " b"],
    *,
    kind: LabelError,
    smoothing: float,
    annotated: float,
) -> Float[Tensor, " b"]:
    r"""How far the independent sigmoids s = sigmoid(u) are from the annotated class; 0 where none is annotated.

        bce  -1/c sum_k y_k log r s_k + (1 - y_k) log(1 - r s_k),   y = (1 - eps) onehot + eps / 2
        l2   || r s - y ||_2

    The first two terms of AV-SAL, Zeng et al. (ILI), are those with r = 1.  r is `annotated`, the probability that
    an event that happens is the annotated one (Elkan and Noto, KDD 2008): with r = 1 an event that nobody annotated
    counts as absent; with less the soft label of a hidden event may be 1.  Smoothing draws the c binary targets to 1/2.
    """
    known = labels != UNANNOTATED
    one_hot = F.one_hot(labels.clamp(min=0), logits.shape[1]).to(logits.dtype)  # [b c]
    target = (1 - smoothing) * one_hot + smoothing / 2
    if kind == "bce":
        return _cross_entropy(logits, target, annotated).mean(dim=1) * known
    return torch.linalg.vector_norm(annotated * torch.sigmoid(logits) - target, dim=1) * known


def _cross_entropy(
    logits: Float[Tensor, "b c"], target: Float[Tensor, "b c"], annotated: float
) -> Float[Tensor, "b c"]:
    """-y log(r s) - (1 - y) log(1 - r s), element by element."""
    if annotated == 1:
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    log_positive = F.logsigmoid(logits) + math.log(annotated)
    return -target * log_positive - (1 - target) * torch.log1p(-annotated * torch.sigmoid(logits))


def either(first: Float[Tensor, "b c"], second: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
    r"""The logit of s = 1 - (1 - s_1)(1 - s_2): the event is in one of two views, or in both (noisy or).

        log(s / (1 - s)) = log(e^u_1 + e^u_2 + e^(u_1 + u_2)),    s_i = sigmoid(u_i)

    A class annotates the clip, not a view of it: fitted to s, what is heard need not answer for what is only seen.
    """
    return torch.logsumexp(torch.stack([first, second, first + second]), dim=0)


def one_of(logits: Float[Tensor, "b c"], labels: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    r"""How unlikely it is that the annotation is the annotated one of a clip's events; 0 where none is annotated.

        -log  o_y / sum_k o_k,    o_k = s_k / (1 - s_k) = e^u_k

    Luce's choice rule (1959), an event being chosen in proportion to its odds.  Of `either`'s logits the odds are
    (1 + o_1k)(1 + o_2k) - 1: an event that is heard and seen outweighs one that is only heard, and of two events the
    fainter one need not be told absent for the other to be annotated, as it need in BCE.
    """
    return F.cross_entropy(logits, labels.clamp(min=0), reduction="none") * (labels != UNANNOTATED)


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
    logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"], *, kind: Calibration, annotated: float
) -> Calibrated:
    r"""Scale (and offset) of one view's logits with the least `label_error` on held-out rows.

        min over a > 0, b of  - mean_{n, k}  y_nk log r s_nk + (1 - y_nk) log(1 - r s_nk),    s = sigmoid(a u + b)

    temperature  a = 1 / T, b = 0 (Guo et al., ICML 2017, for sigmoids);  platt  a and b (Platt 1999)

    L-BFGS in float64 on log a and b from a = 1, b = 0: a function of the rows alone.
    Raises ValueError where no held-out row is annotated.
    """
    if kind == "none":
        return Calibrated(1.0, 0.0)
    known = labels != UNANNOTATED
    u = logits[known].double().cpu()
    if not len(u):
        raise ValueError(
            f"calibration {kind!r} needs held-out rows with a class, got none of {len(labels)}; "
            "set method.calibration = 'none'"
        )
    y = F.one_hot(labels[known].cpu(), u.shape[1]).double()
    log_scale = torch.zeros((), dtype=u.dtype, requires_grad=True)
    offset = torch.zeros((), dtype=u.dtype, requires_grad=kind == "platt")
    low, high = (math.log(bound) for bound in SCALES)
    fitted = [log_scale, offset] if kind == "platt" else [log_scale]
    search = torch.optim.LBFGS(fitted, max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-15,
                               line_search_fn="strong_wolfe")  # fmt: skip

    def error() -> Tensor:
        search.zero_grad()
        scaled = log_scale.clamp(low, high).exp() * u + offset
        value = _cross_entropy(scaled, y, annotated).mean()
        value.backward()
        return value

    with torch.enable_grad():
        search.step(error)
    return Calibrated(log_scale.detach().clamp(low, high).exp().item(), offset.item())

"""What of HSC-MAE can be set, and what weighs how much when: see `methods.hsc_mae`."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from raytrain.config import Section


class HscMaeSettings(Section):
    dcca: Literal["trace", "trace-norm", "eckart-young"] | None = Field(
        "trace",
        description="global level: squared correlations, correlations, or the unbiased objective; off",
    )
    dcca_ridge: float = Field(1e-4, ge=0, description="on the moments' diagonal, for trace and trace-norm")
    dcca_input: Literal["masked", "unmasked"] = Field(
        "masked", description="the pass of the student that DCCA reads; unmasked is a second one"
    )
    dcca_weight: float = Field(1.0, gt=0, description="of the global level, beside the schedule")
    contrast: Literal["soft top-k", "pair"] | None = Field(
        "soft top-k",
        description="local level: the teacher's neighbours are positives, or the pair alone; off",
    )
    neighbours: int = Field(5, ge=1, description="k")
    affinity_temperature: float = Field(0.05, gt=0)
    temperature: float = Field(0.05, gt=0)
    include_pair: bool = Field(True, description="the true pair is a positive beside the neighbours")
    reconstruction: Literal["intra and cross", "intra", "cross"] | None = Field(
        "intra and cross", description="sample level: which views a code is decoded into; off"
    )
    reconstruction_weight: float = Field(
        1.0, ge=0, description="of the sample level after the warm-up; 0: it is the warm-up's alone"
    )
    reconstructed: Literal["all", "masked"] = Field(
        "all", description="the elements of the own view that count; of the other view all do"
    )
    mask_ratio: float = Field(0.2, ge=0, lt=1, description="share of input values that the student misses")
    decoder_width: int = Field(256, ge=1)
    decoder_dropout: float = Field(0.5, ge=0, description="as a share of model.dropout")
    distillation: bool = Field(True, description="draw the student's embedding to the teacher's")
    teacher: Literal["ema", "student"] = Field(
        "ema", description="who finds neighbours and is evaluated: the moving average, or the student"
    )
    ema_decay: float = Field(0.95, ge=0, lt=1, description="at the start; it rises linearly towards 1")
    ema_decay_max: float = Field(0.999, ge=0, lt=1)
    weights: Literal["learnt", "equal"] = Field("learnt", description="of the terms, after the warm-up")
    weights_rate: float = Field(1e-3 / 3e-4, gt=0, description="learning rate of s as a multiple of optim.lr")
    mix: Literal["cosine", "constant"] = Field("cosine", description="from DCCA to the rest, or half each")
    warmup: float = Field(0.25, ge=0, lt=1, description="share of the run with fixed weights and no DCCA")
    warmup_contrast: float = Field(0.05, ge=0, description="weight of the local level in the warm-up")
    warmup_distillation: float = Field(0.1, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> HscMaeSettings:
        if self.dcca is None and not self.terms:
            raise ValueError("dcca, contrast, reconstruction and distillation are all off; keep one")
        if self.teacher == "student" and self.distillation:
            raise ValueError("teacher = 'student' has nothing to distil; set distillation = false")
        if self.contrast == "pair" and not self.include_pair:
            raise ValueError("contrast = 'pair' has no other positive; set include_pair = true")
        return self

    @property
    def terms(self) -> list[str]:
        """The terms that the weights balance, in the order of s."""
        used = {
            "reconstruction": self.reconstruction in ("intra and cross", "intra"),
            "cross": self.reconstruction in ("intra and cross", "cross"),
            "distillation": self.distillation,
            "contrast": self.contrast is not None,
        }
        return [name for name, present in used.items() if present]

    @property
    def needs_teacher(self) -> bool:
        return self.distillation or self.contrast == "soft top-k"


class Schedule:
    """What weighs how much at progress t."""

    def __init__(self, settings: HscMaeSettings):
        self.settings = settings

    def warming_up(self, t: float) -> bool:
        return bool(self.settings.terms) and t < self.settings.warmup

    def in_warmup(self, term: str, t: float) -> float:
        """The fixed weight of a term during the warm-up."""
        fixed = {
            "reconstruction": 1.0,
            "cross": t / self.settings.warmup,
            "distillation": self.settings.warmup_distillation,
            "contrast": self.settings.warmup_contrast,
        }
        return fixed[term]

    def after_warmup(self, term: str) -> float:
        """The given weight of a term after it."""
        return self.settings.reconstruction_weight if term in ("reconstruction", "cross") else 1.0

    def mix(self, t: float) -> tuple[float, float]:
        """The weights of DCCA and of the rest."""
        if not self.settings.terms:
            return 1.0, 0.0
        if self.settings.dcca is None or self.warming_up(t):
            return 0.0, 1.0
        c = (1 - math.cos(math.pi * t)) / 2 if self.settings.mix == "cosine" else 0.5
        return 1 - c, c

    def ema_decay(self, t: float) -> float:
        start = self.settings.ema_decay
        return min(start + (1 - start) * t, self.settings.ema_decay_max)

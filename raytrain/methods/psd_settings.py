"""The settings of PSD and its schedule."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from raytrain.config import Section
from raytrain.losses.label import LabelLoss
from raytrain.losses.soft_softmax import SoftSoftmax
from raytrain.losses.soft_triplet import SoftMining

SELF_CONFIRMATION = 0.2
"""Least share of annotated rows for a teacher that learns from its own pupil."""


class PsdSettings(Section):
    teacher: Literal["ema", "self", "separate"] = Field(
        "ema", description="who aligns: the student's average, the student, or a network of its own"
    )
    ema_decay: float | None = Field(
        None, ge=0, lt=1, description="of teacher 'ema', after every step (0.95); off elsewhere"
    )
    alignment: Literal["similarity", "classes"] = Field(
        "similarity", description="P from the teacher's embeddings, or from its class probabilities"
    )
    temperature: float = Field(0.1, gt=0, description="tau of P: of cosines, or of class logits")
    pair: Literal["aligned", "positive"] = Field(
        "aligned",
        description="w of a clip's own pair: as the teacher aligns it, or 1: that it belongs is no annotation",
    )
    gate: float | None = Field(
        2.0, ge=1, description="rows with max P below gate / n are left out of soft; off: none are"
    )
    metric: Literal["triplet"] | SoftSoftmax = Field("triplet", description="of which kind hard and soft are")
    mining: SoftMining | None = Field(
        None, description="of triplet: all, or the hardest of each row, hard and soft (all); off elsewhere"
    )
    margin: float | None = Field(None, ge=0, description="of triplet (0.2); off elsewhere")
    metric_temperature: float | None = Field(
        None, gt=0, description="of the student's softmax in info-nce and supcon (0.1); off for triplet"
    )
    label: LabelLoss = Field("norm", description="l_lab")
    dis: Literal["decorrelation", "distance"] | None = Field(
        "decorrelation", description="l_dis: between columns of the views, or ||z_a - z_v||_2 of a clip; off"
    )
    lambda_dis: float | None = Field(None, ge=0, description="weight of l_dis (0.1); off where dis is off")
    r_schedule: Literal["cosine", "linear", "step", "constant"] = "cosine"
    r_0: float = Field(1.0, gt=0, le=1, description="share of annotated rows at the start")
    r_end: float | None = Field(None, gt=0, le=1, description="and at the end (0.3); off for 'constant'")
    r_levels: int | None = Field(None, ge=2, description="levels of schedule 'step' (2); off elsewhere")
    class_share: float = Field(
        0.0, ge=0, le=1, description="share of the class probabilities in the similarity that is evaluated"
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_what_is_used(cls, values: dict[str, Any]) -> dict[str, Any]:
        used = {
            "ema_decay": values.get("teacher", "ema") == "ema",
            "lambda_dis": values.get("dis", "decorrelation") is not None,
            "r_end": values.get("r_schedule", "cosine") != "constant",
            "r_levels": values.get("r_schedule") == "step",
            "mining": values.get("metric", "triplet") == "triplet",
            "margin": values.get("metric", "triplet") == "triplet",
            "metric_temperature": values.get("metric", "triplet") != "triplet",
        }
        defaults: dict[str, Any] = {"ema_decay": 0.95, "lambda_dis": 0.1, "r_end": 0.3, "r_levels": 2}
        defaults |= {"mining": "all", "margin": 0.2, "metric_temperature": 0.1}
        for key, is_used in used.items():
            if is_used and values.get(key) is None:
                values = {**values, key: defaults[key]}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> PsdSettings:
        if self.ema_decay is not None and self.teacher != "ema":
            raise ValueError(f"ema_decay is set, but teacher is {self.teacher!r}; remove it")
        if self.lambda_dis is not None and self.dis is None:
            raise ValueError("lambda_dis is set, but dis is off; remove it")
        if self.r_end is not None and self.r_schedule == "constant":
            raise ValueError("r_end is set, but r_schedule is 'constant' and stays at r_0; remove it")
        if self.r_levels is not None and self.r_schedule != "step":
            raise ValueError(f"r_levels is set, but r_schedule is {self.r_schedule!r}; remove it")
        if self.metric != "triplet" and (self.margin is not None or self.mining is not None):
            raise ValueError(
                f"margin and mining are those of triplets, but metric is {self.metric!r}; remove them"
            )
        if self.metric == "triplet" and self.metric_temperature is not None:
            raise ValueError(
                "metric_temperature is set, but metric is 'triplet', which has a margin; remove it"
            )
        least = self.r_0 if self.r_end is None else self.r_end
        if least > self.r_0:
            raise ValueError(
                f"r_end is {self.r_end}, above r_0 = {self.r_0}; the share of annotated rows shrinks"
            )
        if least < SELF_CONFIRMATION and self.teacher != "separate":
            raise ValueError(
                f"the share of annotated rows ends at {least}, and a teacher {self.teacher!r} would confirm itself; "
                f"it is at least {SELF_CONFIRMATION}, or set teacher = 'separate'"
            )
        return self


def annotated_share(settings: PsdSettings, t: float) -> float:
    """r at progress t.  'step' stands at `r_levels` equally distant levels for equally long, r_0 first, r_end last."""
    if settings.r_end is None:
        return settings.r_0
    if settings.r_schedule == "step":
        assert settings.r_levels is not None, "it has a default"
        done = min(math.floor(t * settings.r_levels), settings.r_levels - 1) / (settings.r_levels - 1)
    else:
        done = t if settings.r_schedule == "linear" else (1 - math.cos(math.pi * t)) / 2
    return settings.r_0 + (settings.r_end - settings.r_0) * done

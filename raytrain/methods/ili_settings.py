"""Settings of ILI; what they mean stands in `raytrain.methods.ili`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from raytrain.config import Model, Section
from raytrain.graph.dependency import Orientation, Sign
from raytrain.losses.label_agreement import Calibration, LabelError
from raytrain.losses.triplet import Mining
from raytrain.methods.psd_settings import PsdSettings

MetricLoss = Literal["proxy-triplet", "triplet", "info-nce", "supcon", "psd"]
SETTINGS_OF = {
    "proxy-triplet": "hinge",
    "triplet": "hinge",
    "info-nce": "softmax",
    "supcon": "softmax",
    "psd": "psd",
}
"""By L_metric: the section that it is set in."""


RETIRED = {"min_rise": 0.0, "less_mirror": False}
"""Keys of a search that are no more, and the values that turned them off."""


MIN_EFFECT_ALONE = 0.03
"""Of a search without `told`, where none is given."""


def without_retired(values: dict[str, Any]) -> dict[str, Any]:
    """The search of a run from before `told`, as it was; other searches as they are.

    Raises ValueError where a retired key was on.
    """
    used = [name for name, off in RETIRED.items() if values.get(name, off) != off]
    if used:
        raise ValueError(
            f"search has no {' and no '.join(used)} any more; set told and min_effect (docs/ili.md)"
        )
    kept = {name: value for name, value in values.items() if name not in RETIRED}
    return kept if len(kept) == len(values) else {"told": 0.0, **kept}


class Hinge(Section):
    margin: float = Field(0.2, ge=0)
    mining: Mining = "all"


class Softmax(Section):
    temperature: float = Field(0.1, gt=0)
    gradient_above: float = Field(1e-3, gt=0, description="an anchor is active when its gradient is larger")


class Search(Section):
    """Keywords of `graph.dependency.class_dependency`."""

    penalty: float = Field(0.5, gt=0, description="lambda of the BIC; 0.5 is the standard one")
    lift_threshold: float | None = Field(
        0.0,
        description="a learnt teacher's soft labels are fainter than the 4 of class_dependency wants; off: no mask",
    )
    sign: Sign = Field(
        "positive", description="edges with a negative partial effect are competition, not company"
    )
    min_effect: float = Field(
        0.28,
        ge=0,
        lt=1,
        description="pairs whose effect and what is told of them are below it are no dependency; .03 where told is 0",
    )
    told: float = Field(
        0.4,
        ge=0,
        description="weight, beside the partial effect, of what clips say whose class is told in one view alone",
    )
    orientation: Orientation = Field(
        "annotation", description="what gives an edge its direction; search: where v-structures tell"
    )
    bootstraps: int = Field(50, ge=2)
    weight_frequency: float = Field(0.5, gt=0, le=1, description="edges found less often have no weight")
    frequency: float = Field(0.75, gt=0.5, le=1, description="of a stable edge, for the verdict")

    @model_validator(mode="before")
    @classmethod
    def _as_meant(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Without keys that are no more; a partial effect alone is never as large as with what is told beside it."""
        values = without_retired(values)
        alone = values.get("told") == 0 and "min_effect" not in values
        return {**values, "min_effect": MIN_EFFECT_ALONE} if alone else values


class IliSettings(Section):
    loss: MetricLoss = Field(
        "proxy-triplet",
        description="L_metric; the paper's is against proxies; psd: all of that method, LIR beside it",
    )
    hinge: Hinge | None = None
    softmax: Softmax | None = None
    psd: PsdSettings | None = None
    label_error: LabelError = "bce"
    smoothing: float = Field(0.0, ge=0, lt=1, description="of the binary targets, towards 1/2")
    annotated: float = Field(
        0.3,
        gt=0,
        le=1,
        description="probability that an event that happens is the annotated one; 1: the paper's",
    )
    each_view: float = Field(0.3, ge=0, description="weight of BCE(s_a, y) + BCE(s_v, y); 1: the paper's")
    either_view: float = Field(
        1.0,
        ge=0,
        description="weight of BCE(1 - (1 - s_a)(1 - s_v), y): the event is heard or seen; 0: the paper's",
    )
    contrast: float = Field(
        0.02,
        ge=0,
        description="weight of InfoNCE of the teacher's embeddings at the start; 0: the paper's",
    )
    contrast_until: float = Field(0.6, gt=0, le=1, description="share of t_teach in which it falls to 0")
    contrast_temperature: float = Field(0.2, gt=0)
    one_of: float = Field(
        0.1,
        ge=0,
        description="weight of the softmax over the events: the annotation is one of them; 0: the paper's",
    )
    reconstruction: float = Field(
        0.1,
        ge=0,
        description="weight of the features' mean squared error, decoded from the soft labels; 0: the paper's",
    )
    alignment: float = Field(0.1, ge=0, description="lambda_al")
    alignment_temperature: float = Field(1.0, gt=0, description="T of the softmax in JS")
    teacher_hidden: tuple[int, ...] | None = Field(
        None, description="widths of the teacher's hidden layers; off: model.hidden, as the student"
    )
    teacher_dropout: float | None = Field(
        None, ge=0, lt=1, description="of the teacher's hidden layers; off: model.dropout, as the student"
    )
    teacher_input_dropout: float | None = Field(
        None, ge=0, lt=1, description="of the teacher's features; off: model.input_dropout, as the student"
    )
    teacher_average: float = Field(0.99, ge=0, lt=1, description="decay of the slow teacher; 0: a copy")
    t_teach: float = Field(0.4, gt=0, lt=1, description="share of the run; rounded to an epoch")
    after_teaching: Literal["frozen", "training"] = Field("frozen", description="the teacher, after t_teach")
    calibration: Calibration = "temperature"
    logit_bounds: tuple[float, float] | None = Field(
        (-2.0, 1.0),
        description="for the graph logits are cut here: beyond, they tell loud from soft; off: never",
    )
    one_view: float | None = Field(
        1.0,
        ge=0,
        description="the graph is made of clips whose annotated class is told in one view (logit above 0) and not in "
        "the other (below minus this); off: of all clips",
    )
    graph: Literal["found", "permuted", "none", "lift"] = Field(
        "found", description="permuted, none, lift: the controls of a study"
    )
    permutation: int = Field(0, ge=0, description="seed of the permuted graph's classes")
    search: Search = Search()
    top_k: int = Field(3, ge=1, description="edges of a class")
    lag: int = Field(2, ge=0, description="steps from the asking for a graph to its adoption")
    refresh_every: int | None = Field(None, ge=1, description="epochs between two graphs; off: one graph")
    weight: float = Field(0.05, ge=0, description="lambda")
    ramp: float = Field(0.05, ge=0, description="share of the run in which lambda rises")
    threshold: float = Field(
        0.5, ge=0, lt=1, description="tau: pairs of S_ij hold both events more likely than not"
    )
    pairs: int | Literal["all"] = Field(64, description="sampled pairs of an edge and step")
    negatives: Literal["leave", "weigh", "stay"] = Field(
        "stay", description="pairs of S_ij among the negatives of L_metric; weigh: stay with 1 - s s"
    )

    @model_validator(mode="before")
    @classmethod
    def _only_the_chosen_loss(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Settings of a loss that is not trained with would be ignored: they are refused."""
        loss = values.get("loss", "proxy-triplet")
        if loss not in SETTINGS_OF:
            return values  # refused by its type
        used = SETTINGS_OF[loss]
        for unused in sorted({*SETTINGS_OF.values()} - {used}):
            if values.get(unused) is not None:
                raise ValueError(f"{unused} is set, but loss {loss!r} has none; set {used} instead")
        return values if values.get(used) is not None else {**values, used: {}}

    @model_validator(mode="after")
    def _consistent(self) -> IliSettings:
        if isinstance(self.pairs, int) and self.pairs < 1:
            raise ValueError(f"pairs is {self.pairs}; at least 1, or 'all'")
        if self.each_view + self.either_view == 0:
            raise ValueError(
                "each_view and either_view are both 0: the teacher would learn nothing; raise one"
            )
        if self.logit_bounds is not None and not self.logit_bounds[0] < self.logit_bounds[1]:
            raise ValueError(f"logit_bounds is {self.logit_bounds}; the lower one comes first, e.g. [-2, 1]")
        if self.psd is not None and self.negatives != "stay":
            raise ValueError(
                f"negatives is {self.negatives!r}, but loss 'psd' has a teacher of its own that says which pairs are "
                "negatives; set negatives = 'stay'"
            )
        if self.graph == "none" and self.refresh_every is not None:
            raise ValueError("graph = 'none' makes no graph, so refresh_every has no meaning; remove it")
        if self.after_teaching == "frozen" and self.refresh_every is not None:
            raise ValueError(
                "refresh_every: a frozen teacher gives the same graph again; set after_teaching = 'training'"
            )
        if self.permutation and self.graph != "permuted":
            raise ValueError(f"permutation is set, but graph is {self.graph!r}; set graph = 'permuted'")
        return self

    def of_teacher(self, model: Model) -> Model:
        """The teacher's towers: the student's, but for what is set here."""
        own = {
            "hidden": self.teacher_hidden,
            "dropout": self.teacher_dropout,
            "input_dropout": self.teacher_input_dropout,
        }
        return model.model_copy(update={name: value for name, value in own.items() if value is not None})

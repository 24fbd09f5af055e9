"""Plain metric learning: one of seven losses between two towers.

The losses are those that Liu et al. 2026 (arXiv:2601.21450) compare; each is an equation of `raytrain.losses`, where
its source is cited.

    L = 1/2 (l(audio -> visual) + l(visual -> audio)) + within * 1/2 (l(audio -> audio) + l(visual -> visual))

Departs from the paper: there the seven losses are compared within one modality; here across two, and `within` adds
the terms within each.  Losses against classes (ArcFace, and triplet against proxies) share one set of class
vectors between the views and have no within term; center contrastive compares with the centres of the other view,
and `within` adds those of the own view.

`pairs = "within"` is the paper's setting: the terms within each view alone, so that the views share nothing.  Losses
against classes then have a set of class vectors for each view.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from raytrain.config import Model, Section
from raytrain.data.reading import Annotation
from raytrain.losses.classes import arc_face, center_contrastive, update_centers
from raytrain.losses.contrastive import contrastive
from raytrain.losses.masks import Known, Marks, Relation
from raytrain.losses.reduction import PerRow, world_means
from raytrain.losses.softmax import info_nce, n_pair, supervised_contrastive
from raytrain.losses.triplet import triplet
from raytrain.methods.base import Method
from raytrain.models.towers import Towers, ViewInput
from raytrain.types import Loss, Progress, Rows

LossName = Literal["contrastive", "triplet", "n-pair", "info-nce", "arcface", "supcon", "center-contrastive"]

LOSSES: dict[str, Callable[..., PerRow]] = {
    "contrastive": contrastive,
    "triplet": triplet,
    "n-pair": n_pair,
    "info-nce": info_nce,
    "arcface": arc_face,
    "supcon": supervised_contrastive,
    "center-contrastive": center_contrastive,
}


class Compared(NamedTuple):
    """What a term of the loss compares: rows of this rank, and rows of the world or classes."""

    query: Tensor
    keys: Tensor
    relation: Relation


Terms = dict[str, Compared]
"""By direction."""

Distance = Literal["cosine", "euclidean"]
_GRADIENT_ABOVE = Field(1e-3, gt=0, description="an anchor is active when its gradient's norm is larger")


class Contrastive(Section):
    positive_margin: float = Field(0.0, ge=0)
    negative_margin: float = Field(0.5, ge=0)
    power: Literal[1, 2] = 2
    distance: Distance = "cosine"


class Triplet(Section):
    margin: float = Field(0.2, ge=0)
    mining: Literal["all", "semi-hard", "hard"] = "all"
    distance: Distance = "cosine"
    against: Literal["rows", "proxies"] = Field(
        "rows", description="other rows, or a learnt vector per class"
    )


class NPair(Section):
    scale: float = Field(16.0, gt=0)
    negatives: Literal["all", "one per class"] = "all"
    gradient_above: float = _GRADIENT_ABOVE


class InfoNce(Section):
    temperature: float = Field(0.1, gt=0)
    gradient_above: float = _GRADIENT_ABOVE


class ArcFace(Section):
    margin: float = Field(0.2, ge=0, description="radians")
    scale: float = Field(16.0, gt=0)
    gradient_above: float = _GRADIENT_ABOVE


class SupCon(Section):
    temperature: float = Field(0.1, gt=0)
    gradient_above: float = _GRADIENT_ABOVE


class CenterContrastive(Section):
    temperature: float = Field(0.1, gt=0)
    margin: float = Field(0.1, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1, description="of the bank of centres")
    gradient_above: float = _GRADIENT_ABOVE


class MetricSettings(Section):
    loss: LossName = "triplet"
    pairs: Literal["across", "within"] = Field(
        "across",
        description="what is compared: the two views, or rows of one view with rows of the same alone",
    )
    within: float = Field(0.0, ge=0, description="weight of the terms within each view, beside those across")
    contrastive: Contrastive | None = None
    triplet: Triplet | None = None
    n_pair: NPair | None = None
    info_nce: InfoNce | None = None
    arcface: ArcFace | None = None
    supcon: SupCon | None = None
    center_contrastive: CenterContrastive | None = None

    @model_validator(mode="before")
    @classmethod
    def _only_the_chosen_loss(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Settings of a loss that is not trained with would be ignored: they are refused."""
        chosen = str(values.get("loss", "triplet"))
        section = chosen.replace("-", "_")
        for name in LOSSES:
            key = name.replace("-", "_")
            if key != section and values.get(key) is not None:
                raise ValueError(
                    f"{key} is set, but the loss is {chosen!r}; remove it or set method.loss = {name!r}"
                )
        if chosen in LOSSES and values.get(section) is None:
            values = {**values, section: {}}
        return values

    @property
    def chosen(self) -> Any:
        return getattr(self, self.loss.replace("-", "_"))

    @property
    def needs_classes(self) -> bool:
        against_proxies = self.triplet is not None and self.triplet.against == "proxies"
        return self.loss in {"arcface", "center-contrastive"} or against_proxies


class Metric(Method):
    """One of seven metric losses between the towers: the plain baseline of every other method."""

    Settings = MetricSettings
    centers: Tensor
    """Banks of center contrastive, of audio and of visual."""

    def __init__(
        self, settings: MetricSettings, views: Mapping[str, ViewInput], model: Model, num_classes: int | None
    ):
        super().__init__()
        self.settings = settings
        self.towers = Towers(views, model, num_classes=None)
        self.views = tuple(views)
        if settings.needs_classes:
            assert num_classes is not None, "check() has refused data without classes"
            if settings.loss == "center-contrastive":
                self.register_buffer("centers", torch.zeros(2, num_classes, model.embedding))
            else:
                sets = (len(views),) if settings.pairs == "within" else ()
                self.class_vectors = nn.Parameter(torch.randn(*sets, num_classes, model.embedding))

    @classmethod
    def build(
        cls, settings: MetricSettings, views: Mapping[str, ViewInput], model: Model, num_classes: int | None
    ) -> Metric:
        return cls(settings, views, model, num_classes)

    @classmethod
    def check(cls, settings: MetricSettings, annotation: Annotation) -> None:
        if settings.needs_classes and annotation == "none":
            raise ValueError(
                f"method.loss {settings.loss!r} compares rows with classes, but nothing is annotated; use info-nce, "
                "n-pair, supcon, contrastive, or triplet against rows"
            )
        if settings.pairs == "within" and settings.within:
            raise ValueError(
                "method.within weighs terms beside those across the views, and method.pairs = 'within' has none; "
                "set method.within to 0"
            )
        if settings.pairs == "within" and annotation == "none":
            raise ValueError(
                "method.pairs = 'within': where nothing is annotated a clip has no positive within its view; "
                "set it to 'across'"
            )
        if settings.within and annotation == "none":
            raise ValueError(
                "method.within: where nothing is annotated a clip has no positive within its view; set it to 0"
            )
        if settings.within and settings.needs_classes and settings.loss != "center-contrastive":
            raise ValueError("method.within has no meaning for a loss against class vectors; set it to 0")

    def loss(self, here: Rows, world: Rows, progress: Progress) -> Loss:
        cross, within = self.compared(here, world)
        parts = {name: (self.per_row(*of), of.relation) for name, of in {**cross, **within}.items()}
        values, active = world_means(parts)
        total = torch.stack([values[name] for name in cross or within]).mean()
        if cross and within:
            total = total + self.settings.within * torch.stack([values[name] for name in within]).mean()
        return Loss(total, values, active)

    def compared(self, here: Rows, world: Rows) -> tuple[Terms, Terms]:
        """(across, within) the views: what each term of the loss compares.  Moves the banks of center contrastive."""
        return (self._with_classes if self.settings.needs_classes else self._with_rows)(here, world)

    def per_row(self, query: Tensor, keys: Tensor, relation: Relation) -> PerRow:
        """The chosen loss with its settings."""
        hyper = self.settings.chosen.model_dump(exclude={"against", "momentum"})
        return LOSSES[self.settings.loss](query, keys, relation, **hyper)

    def _with_rows(self, here: Rows, world: Rows) -> tuple[Terms, Terms]:
        """Queries of one view against the rows of the other, and of the same."""
        audio, visual = self.views
        by = known_of(here)
        cross, within = {}, {}
        if self.settings.pairs == "across":
            across = Relation.between(here, world, views="cross", by=by)
            cross = {
                f"{q}_to_{k}": Compared(here.embeddings[q], world.embeddings[k], across)
                for q, k in ((audio, visual), (visual, audio))
            }
        if self.settings.pairs == "within" or self.settings.within:
            inside = Relation.between(here, world, views="within", by=by)
            within = {
                f"{v}_to_{v}": Compared(here.embeddings[v], world.embeddings[v], inside) for v in self.views
            }
        return cross, within

    def _with_classes(self, here: Rows, world: Rows) -> tuple[Terms, Terms]:
        """Queries of each view against one vector per class."""
        by = known_of(here)
        assert by != "pairs", "check() has refused data without classes"
        first, second = self.views
        if self.settings.loss == "center-contrastive":
            banks = self._moved_centers(world, by)
            num_classes = self.centers.shape[1]
        else:
            vectors = self.class_vectors
            sets = vectors.unbind(0) if self.settings.pairs == "within" else [vectors] * len(self.views)
            banks = dict(zip(self.views, sets, strict=True))
            num_classes = vectors.shape[-2]
        relation = Relation.to_classes(here, world, num_classes=num_classes, by=by)
        cross, within = {}, {}
        if self.settings.pairs == "across":
            cross = {
                f"{q}_to_classes": Compared(here.embeddings[q], banks[k], relation)
                for q, k in ((first, second), (second, first))
            }
        if self.settings.pairs == "within" or self.settings.within:
            within = {
                f"{v}_to_own_classes": Compared(here.embeddings[v], banks[v], relation) for v in self.views
            }
        return cross, within

    def _moved_centers(self, world: Rows, by: Known) -> dict[str, Tensor]:
        """The banks after this batch; the step that reads them is the step that moves them."""
        assert isinstance(self.settings.chosen, CenterContrastive)
        for bank, view in zip(self.centers, self.views, strict=True):
            moved = update_centers(
                bank, world.embeddings[view], Marks.of(world, by), momentum=self.settings.chosen.momentum
            )
            bank.copy_(moved)
        return {view: bank.clone() for view, bank in zip(self.views, self.centers, strict=True)}


def known_of(rows: Rows) -> Known:
    """What is known of the rows: the annotated class, else event sets, else the pairs alone."""
    return "labels" if rows.labels is not None else "events" if rows.events is not None else "pairs"

r"""Label, common space and distance: the DSCMR family, after Zhen et al., CVPR 2019 ("Deep supervised cross-modal
retrieval"), the predecessors of PSD without soft alignments.

    L = l_lab + alpha l_common + beta l_distance
    l_lab       = mean (||u_a - y||_2 + ||u_v - y||_2)                                     losses.label
    l_common    = triplet       1/2 (a -> v + v -> a) of [m + d_ij - d_ik]_+               losses.triplet
                  likelihood    (a, v) + (a, a) + (v, v) of log(1 + e^{G_ij}) - S_ij G_ij    losses.likelihood
    l_distance  = mean ||z_a - z_v||_2

'likelihood' with alpha = 1e-3 and beta = 0.1 is the paper's, as its authors released it.  'triplet' with alpha = 1 is
what later work of the field puts there (label + triplet + distance), and the default.

Departs from the paper:
- Embeddings are unit-norm in l_distance and in l_common; the head reads them before their norm is taken.
- The towers are those of [model], of which the views share the head, not the last layers.
- Rows without annotation have no part in l_lab and l_common; their own pair has one in l_distance.
- A clip is not its own pair within a view.
- With class_share above 0 the similarity that is evaluated holds class probabilities too (models.class_space).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from raytrain.config import Model, Section
from raytrain.data.reading import Annotation
from raytrain.losses.label import LabelLoss, is_annotated, label_loss, targets
from raytrain.losses.likelihood import pair_likelihood
from raytrain.losses.masks import Known, Marks, Relation
from raytrain.losses.reduction import world_means
from raytrain.losses.triplet import triplet
from raytrain.methods.base import Method
from raytrain.models.class_space import beside_classes
from raytrain.models.towers import Towers, ViewInput
from raytrain.types import Loss, Progress, Rows, mean_over_world


class DscmrSettings(Section):
    common: Literal["triplet", "likelihood"] = "triplet"
    label: LabelLoss = Field("norm", description="l_lab")
    alpha: float | None = Field(
        None, ge=0, description="weight of the common space (1 for triplet, 0.001 for likelihood)"
    )
    beta: float = Field(0.1, ge=0, description="weight of the distance between the views of a clip")
    margin: float | None = Field(None, ge=0, description="of triplet (0.2); off elsewhere")
    mining: Literal["all", "semi-hard", "hard"] | None = Field(
        None, description="of triplet (all); off elsewhere"
    )
    class_share: float = Field(
        0.0, ge=0, le=1, description="share of the class probabilities in the similarity that is evaluated"
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_what_is_used(cls, values: dict[str, Any]) -> dict[str, Any]:
        defaults: dict[str, Any] = {"alpha": 1e-3}
        if values.get("common", "triplet") == "triplet":
            defaults = {"alpha": 1.0, "margin": 0.2, "mining": "all"}
        return {**values, **{key: of for key, of in defaults.items() if values.get(key) is None}}

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> DscmrSettings:
        if self.common == "likelihood" and (self.margin is not None or self.mining is not None):
            raise ValueError(
                "margin and mining are those of 'triplet', and common is 'likelihood'; remove them"
            )
        return self


class Dscmr(Method):
    """Two towers with a head that they share."""

    Settings = DscmrSettings

    def __init__(
        self, settings: DscmrSettings, views: Mapping[str, ViewInput], model: Model, num_classes: int
    ):
        super().__init__()
        self.settings, self.views, self.num_classes = settings, tuple(views), num_classes
        self.towers = Towers(views, model, num_classes=num_classes)

    @classmethod
    def build(
        cls, settings: DscmrSettings, views: Mapping[str, ViewInput], model: Model, num_classes: int | None
    ) -> Dscmr:
        assert num_classes is not None, "check() has refused data without annotation"
        return cls(settings, views, model, num_classes)

    @classmethod
    def check(cls, settings: DscmrSettings, annotation: Annotation) -> None:
        if annotation == "none":
            raise ValueError(
                "dscmr learns classes, but data.annotation is 'none'; use data with labels or event sets, or a method "
                "that needs none (hsc-mae, or metric with info-nce)"
            )

    def loss(self, here: Rows, world: Rows, progress: Progress) -> Loss:
        by: Known = "labels" if here.labels is not None else "events"
        audio, visual = (here.embeddings[view] for view in self.views)
        terms = {"label": self._label(here, world, by)}
        common, active = (self._triplet if self.settings.common == "triplet" else self._likelihood)(
            here, world, by
        )
        terms |= common
        distance = torch.linalg.vector_norm(audio - visual, dim=1)
        terms["distance"] = mean_over_world(distance, world)
        weighed = torch.stack(list(common.values()))
        weighed = weighed.mean() if self.settings.common == "triplet" else weighed.sum()
        assert self.settings.alpha is not None, "it has a default"
        total = terms["label"] + self.settings.alpha * weighed + self.settings.beta * terms["distance"]
        return Loss(total, terms, active)

    def embed(self, views: Mapping[str, Float[Tensor, "b _"]]) -> dict[str, Float[Tensor, "b d"]]:
        """Unit-norm embeddings by view, with the class probabilities beside them where class_share is above 0."""
        embeddings, logits = self.towers(views)
        share = self.settings.class_share
        return {view: beside_classes(z, logits[view], share=share) for view, z in embeddings.items()}

    def _label(self, here: Rows, world: Rows, by: Known) -> Float[Tensor, ""]:
        """The sum of both views' mean over the annotated rows."""
        logits = torch.stack([here.logits[view] for view in self.views])
        of_here, of_world = (Marks.of(rows, by) for rows in (here, world))
        target = targets(of_here, self.num_classes, logits.dtype)
        error = torch.stack([label_loss(u, target, kind=self.settings.label) for u in logits]).sum(dim=0)
        total = torch.where(is_annotated(of_here), error, 0).sum()
        return total * world.num_ranks / is_annotated(of_world).sum().clamp(min=1)

    def _triplet(
        self, here: Rows, world: Rows, by: Known
    ) -> tuple[dict[str, Float[Tensor, ""]], Float[Tensor, ""]]:
        margin, mining = self.settings.margin, self.settings.mining
        assert margin is not None and mining is not None, "they have defaults"
        relation = Relation.between(here, world, views="cross", by=by)
        loss = partial(triplet, margin=margin, mining=mining, distance="cosine")
        parts = {
            f"{query}_to_{key}": (loss(here.embeddings[query], world.embeddings[key], relation), relation)
            for query, key in (self.views, self.views[::-1])
        }
        return world_means(parts)

    def _likelihood(
        self, here: Rows, world: Rows, by: Known
    ) -> tuple[dict[str, Float[Tensor, ""]], Float[Tensor, ""]]:
        cross = Relation.between(here, world, views="cross", by=by)
        within = Relation.between(here, world, views="within", by=by)
        first, second = self.views
        parts = {}
        for query, key in ((first, second), (first, first), (second, second)):
            relation = cross if query != key else within
            rows = pair_likelihood(here.embeddings[query], world.embeddings[key], relation)
            parts[f"{query}_to_{key}"] = rows, relation
        return world_means(parts)

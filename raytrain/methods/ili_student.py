"""ILI's student by labels: its towers, L_metric, and which pairs leave the negatives of L_metric.

The other student that ILI knows is that of `raytrain.methods.psd`, whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from raytrain.config import Model
from raytrain.losses.latent_interaction import activated
from raytrain.losses.masks import Relation
from raytrain.losses.reduction import PerRow, world_means
from raytrain.losses.softmax import info_nce, supervised_contrastive
from raytrain.losses.triplet import triplet
from raytrain.methods.ili_settings import IliSettings
from raytrain.models.towers import Towers, ViewInput
from raytrain.types import Batch, Loss, Progress, Rows


@dataclass(frozen=True)
class Linked:
    """What dependencies say of the pairs of a step."""

    edges: Float[Tensor, "c c"]
    """[heard, seen]: 1 where an edge goes either way."""
    draws: Float[Tensor, "2 n"] | None
    """By view, of every row of the world: a pair of S_ij stays with probability 1 - s s; None: it leaves."""


class LabelStudent(nn.Module):
    """Towers, and proxies where the metric loss is against them."""

    def __init__(self, settings: IliSettings, views: Mapping[str, ViewInput], model: Model) -> None:
        super().__init__()
        self.settings, self.views = settings, tuple(views)
        self.towers = Towers(views, model, num_classes=None)
        self.proxies: nn.Parameter | None = None

    def draw_proxies(self, num_classes: int, size: int) -> None:
        """Where L_metric is against proxies; apart from the towers, for a teacher's weights are drawn in between."""
        if self.settings.loss == "proxy-triplet":
            self.proxies = nn.Parameter(torch.randn(num_classes, size))

    def rows(self, batch: Batch, progress: Progress) -> Rows:
        return Rows(batch.row, self.towers(batch.views)[0], labels=batch.labels)

    def embed(self, views: Mapping[str, Float[Tensor, "b _"]]) -> dict[str, Float[Tensor, "b d"]]:
        return self.towers(views)[0]

    def after_step(self, progress: Progress) -> None:
        """It has no average of its own."""

    def loss(self, here: Rows, world: Rows, linked: Linked | None) -> Loss:
        """L_metric, the mean of both directions; linked pairs are no negatives, where they are given."""
        parts: dict[str, tuple[PerRow, Relation]] = {}
        keys: Tensor
        for query, key in (self.views, self.views[::-1]):
            if self.proxies is not None:
                classes = self.proxies.shape[0]
                relation = Relation.to_classes(here, world, num_classes=classes, by="labels")
                keys, name = self.proxies, f"{query}_to_proxies"
            else:
                relation = Relation.between(here, world, views="cross", by="labels")
                keys, name = world.embeddings[key], f"{query}_to_{key}"
            if linked is not None:
                relation = self._without_linked(relation, here, world, query, key, linked)
            parts[name] = self._per_row(here.embeddings[query], keys, relation), relation
        values, active = world_means(parts)
        return Loss(torch.stack(list(values.values())).mean(), values, active)

    def _per_row(self, query: Tensor, keys: Tensor, relation: Relation) -> PerRow:
        s = self.settings
        if s.hinge is not None:
            return triplet(query, keys, relation, **s.hinge.model_dump(), distance="cosine")
        assert s.softmax is not None, "the only other kind of loss by labels"
        loss = info_nce if s.loss == "info-nce" else supervised_contrastive
        return loss(query, keys, relation, **s.softmax.model_dump())

    def _without_linked(
        self, relation: Relation, here: Rows, world: Rows, query: str, key: str, linked: Linked
    ) -> Relation:
        """The pairs of S_ij, whichever way i -> j goes, are no negatives."""
        heard = query == self.views[0]
        edges = linked.edges if heard else linked.edges.T
        threshold = self.settings.threshold
        sent = activated(world.extras[f"soft {query}"], threshold=threshold) @ edges  # [n c]
        own = slice(here.first, here.first + len(here))
        if self.proxies is not None:
            received = torch.eye(len(edges), dtype=sent.dtype, device=sent.device)
        else:
            received = activated(world.extras[f"soft {key}"], threshold=threshold)
        draw = key_draw = None
        if linked.draws is not None:
            draw, key_draw = linked.draws.to(sent) if heard else linked.draws.to(sent).flip(0)
            if self.proxies is not None:
                key_draw = torch.zeros_like(received[0])
        return replace(
            relation,
            query=replace(relation.query, link=sent[own], draw=None if draw is None else draw[own]),
            world=replace(relation.world, link=sent, draw=draw),
            key=replace(relation.key, link=received, draw=key_draw),
        )

"""PSD's student and its teacher: what `raytrain.methods.psd` trains, and ILI where its L_metric is PSD's loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from raytrain.config import Model
from raytrain.losses.alignment import Alignment, confident
from raytrain.losses.decorrelation import decorrelation
from raytrain.losses.label import is_annotated, label_loss, targets
from raytrain.losses.masks import Known, Marks, Relation
from raytrain.losses.reduction import PerRow, world_means
from raytrain.losses.soft_rows import SoftRows
from raytrain.losses.soft_softmax import GRADIENT_ABOVE, soft_softmax, soft_softmax_weight
from raytrain.losses.soft_triplet import soft_triplet, soft_weight
from raytrain.losses.softmax import info_nce, supervised_contrastive
from raytrain.losses.triplet import triplet
from raytrain.methods.psd_settings import PsdSettings, annotated_share
from raytrain.models.class_space import beside_classes
from raytrain.models.ema import Follower, slow_copy
from raytrain.models.towers import Towers, ViewInput
from raytrain.types import UNANNOTATED, Batch, Loss, Progress, Rows, mean_over_world


@dataclass(frozen=True)
class Drawn:
    """Which rows of the world may be used with their annotation."""

    annotated: Bool[Tensor, " n"]
    """A."""
    share: float
    """round(r n) / n, what the hard part weighs."""


def draw(world: Rows, share: float, *, seed: tuple[int, int]) -> Drawn:
    """A: round(share n) of the annotated rows of the world, or all where there are fewer; by the seed alone."""
    n = len(world)
    wanted = round(share * n)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(n)).to(world.row.device)
    has = is_annotated(Marks.of(world, known_of(world)))
    first = has[order] & (has[order].cumsum(dim=0) <= wanted)
    return Drawn(torch.zeros_like(has).index_put((order,), first), wanted / n)


def hidden(rows: Rows, annotated: Bool[Tensor, " b"]) -> Rows:
    """The rows with the annotation of all others taken away: what reads these cannot read U's."""
    if rows.labels is not None:
        return replace(rows, labels=torch.where(annotated, rows.labels, UNANNOTATED), events=None)
    assert rows.events is not None, "check() has refused data without annotation"
    return replace(rows, events=rows.events * annotated[:, None])


def known_of(rows: Rows) -> Known:
    return "labels" if rows.labels is not None else "events"


class PsdStudent(nn.Module):
    """Towers, their teacher, and the loss; its equations stand in `raytrain.methods.psd`."""

    def __init__(self, settings: PsdSettings, views: Mapping[str, ViewInput], model: Model, num_classes: int):
        super().__init__()
        self.settings, self.views, self.num_classes = settings, tuple(views), num_classes
        self.towers = Towers(views, model, num_classes=num_classes)
        self.teacher: Towers | None = None
        self.follower: Follower | None = None
        if settings.teacher == "ema":
            self.teacher = slow_copy(self.towers)
            self.follower = Follower(self.teacher, self.towers, buffers="averaged")
        elif settings.teacher == "separate":
            self.teacher = Towers(views, model, num_classes=num_classes)

    def train(self, mode: bool = True) -> PsdStudent:
        super().train(mode)
        if self.settings.teacher == "ema":
            assert self.teacher is not None
            self.teacher.eval()
        return self

    def rows(self, batch: Batch, progress: Progress) -> Rows:
        """Embeddings and class logits of the student; as extras those of a teacher of its own."""
        embeddings, logits = self.towers(batch.views)
        extras = {}
        if self.teacher is not None:
            with torch.set_grad_enabled(self.settings.teacher == "separate" and torch.is_grad_enabled()):
                taught, classes = self.teacher(batch.views)
            for view in self.views:
                extras[f"teacher {view}"], extras[f"classes {view}"] = taught[view], classes[view]
        return Rows(batch.row, embeddings, logits, batch.labels, batch.events, extras)

    def loss(self, here: Rows, world: Rows, progress: Progress) -> Loss:
        drawn = draw(world, annotated_share(self.settings, progress.t), seed=(progress.seed, progress.step))
        own = slice(here.first, here.first + len(here))
        here, world = hidden(here, drawn.annotated[own]), hidden(world, drawn.annotated)

        terms = {"label": self._label(here, world)}
        hard, active_hard = self._hard(here, world)
        soft, active_soft = self._soft(here, world, drawn)
        terms |= {f"hard_{name}": value for name, value in hard.items()}
        terms |= {f"soft_{name}": value for name, value in soft.items()}
        total = terms["label"] + drawn.share * _mean(hard) + (1 - drawn.share) * _mean(soft)
        active = drawn.share * active_hard + (1 - drawn.share) * active_soft
        if self.settings.lambda_dis is not None:
            terms["dis"] = self._dis(here, world)
            total = total + self.settings.lambda_dis * terms["dis"]
        if self.settings.teacher == "separate":
            own_here, own_world = self._taught(here), self._taught(world)
            terms["teacher_label"] = self._label(own_here, own_world)
            terms["teacher_hard"] = _mean(self._hard(own_here, own_world)[0])
            total = total + terms["teacher_label"] + terms["teacher_hard"]
        return Loss(total, terms, active)

    def _taught(self, rows: Rows) -> Rows:
        """The rows as the teacher embeds them."""
        if self.teacher is None:
            return rows
        return replace(
            rows,
            embeddings={view: rows.extras[f"teacher {view}"] for view in self.views},
            logits={view: rows.extras[f"classes {view}"] for view in self.views},
        )

    def _label(self, here: Rows, world: Rows) -> Float[Tensor, ""]:
        """The sum of both views' mean over A."""
        logits = torch.stack([here.logits[view] for view in self.views])
        of_here, of_world = (Marks.of(rows, known_of(rows)) for rows in (here, world))
        target = targets(of_here, self.num_classes, logits.dtype)
        error = torch.stack([label_loss(u, target, kind=self.settings.label) for u in logits]).sum(dim=0)
        total = torch.where(is_annotated(of_here), error, 0).sum()
        return total * world.num_ranks / is_annotated(of_world).sum().clamp(min=1)

    def _hard(self, here: Rows, world: Rows) -> tuple[dict[str, Float[Tensor, ""]], Float[Tensor, ""]]:
        """Both directions, and their mean active share."""
        relation = Relation.between(here, world, views="cross", by=known_of(here))
        by_label = self._metric[0]
        parts = {
            f"{query}_to_{key}": (by_label(here.embeddings[query], world.embeddings[key], relation), relation)
            for query, key in (self.views, self.views[::-1])
        }
        return world_means(parts)

    def _soft(
        self, here: Rows, world: Rows, drawn: Drawn
    ) -> tuple[dict[str, Float[Tensor, ""]], Float[Tensor, ""]]:
        """Both directions, and their mean active share."""
        n, own = len(world), slice(here.first, here.first + len(here))
        _, by_degree, weight_of = self._metric
        values, active = {}, []
        for query, key in (self.views, self.views[::-1]):
            of_world = self._alignment(world, query, key)
            extent = of_world.extent()
            counted = ~drawn.annotated & confident(extent, n, gate=self.settings.gate)
            weight = torch.where(counted, weight_of(extent, n), 0).sum()
            of_mean = world.num_ranks / torch.where(weight > 0, weight, 1)
            rows = by_degree(here.embeddings[query], world.embeddings[key], of_world.of(own), counted[own])
            values[f"{query}_to_{key}"] = rows.value.sum() * of_mean
            active.append(rows.active.sum() * of_mean)
        return values, torch.stack(active).mean()

    @property
    def _metric(self) -> tuple[Callable[..., PerRow], Callable[..., SoftRows], Callable[..., Tensor]]:
        """By labels, by degree, and what a query weighs in the latter's mean."""
        of = self.settings
        if of.metric == "triplet":
            assert of.margin is not None and of.mining is not None, "they have defaults"
            return (
                partial(triplet, margin=of.margin, mining=of.mining, distance="cosine"),
                partial(soft_triplet, margin=of.margin, mining=of.mining),
                partial(soft_weight, mining=of.mining),
            )
        labelled = info_nce if of.metric == "info-nce" else supervised_contrastive
        hyper: dict[str, Any] = {"temperature": of.metric_temperature, "gradient_above": GRADIENT_ABOVE}
        by_degree = partial(soft_softmax, kind=of.metric, **hyper)
        return partial(labelled, **hyper), by_degree, partial(soft_softmax_weight, kind=of.metric)

    @torch.no_grad()
    def _alignment(self, world: Rows, query: str, key: str) -> Alignment:
        """P of every row of the world, as the teacher has it."""
        taught, of = self._taught(world), self.settings
        pair = torch.arange(len(world), device=world.row.device) if of.pair == "positive" else None
        if of.alignment == "similarity":
            z = {view: taught.embeddings[view].detach() for view in (query, key)}
            return Alignment(z[query], z[key], "similarity", of.temperature, pair)
        q = {view: (taught.logits[view].detach() / of.temperature).softmax(dim=1) for view in (query, key)}
        return Alignment(q[query], q[key], "classes", None, pair)

    def _dis(self, here: Rows, world: Rows) -> Float[Tensor, ""]:
        if self.settings.dis == "decorrelation":
            return decorrelation(*(world.embeddings[view] for view in self.views))
        audio, visual = (here.embeddings[view] for view in self.views)
        return mean_over_world(torch.linalg.vector_norm(audio - visual, dim=1), world)

    def after_step(self, progress: Progress) -> None:
        if self.follower is not None:
            assert self.settings.ema_decay is not None
            self.follower.move(self.settings.ema_decay)

    def embed(self, views: Mapping[str, Float[Tensor, "b _"]]) -> dict[str, Float[Tensor, "b d"]]:
        """Unit-norm embeddings by view, with the class probabilities beside them where class_share is above 0."""
        embeddings, logits = self.towers(views)
        share = self.settings.class_share
        return {view: beside_classes(z, logits[view], share=share) for view, z in embeddings.items()}


def _mean(of: Mapping[str, Float[Tensor, ""]]) -> Float[Tensor, ""]:
    return torch.stack(list(of.values())).mean()

r"""AV-SAL, what ILI's teacher learns by: the paper's two terms and ours.

    label error     w_each (BCE(s_a, y) + BCE(s_v, y)) + w_either BCE(e, y),  e = 1 - (1 - s_a)(1 - s_v)
    divergence      JS(softmax(u_a / T), softmax(u_v / T))                                losses.label_agreement
    one of          -log o_y / sum_k o_k,  o = e / (1 - e): the odds of the event being heard or seen
    reconstruction  ||D_a(softplus u_a) - a||^2 + ||D_v(softplus u_v) - v||^2, mean over features
    contrast        InfoNCE(h_a, h_v), h the unit-norm embeddings                          losses.softmax

Departures from the paper stand in `raytrain.methods.ili`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from raytrain.losses.label_agreement import either, jensen_shannon, label_error, one_of
from raytrain.losses.masks import Relation
from raytrain.losses.reduction import world_mean
from raytrain.losses.softmax import info_nce
from raytrain.methods.ili_settings import IliSettings
from raytrain.models.autoencoder import Decoders
from raytrain.models.towers import Towers
from raytrain.types import UNANNOTATED, Batch, Progress, Rows, mean_over_world


class AvSal(nn.Module):
    """The terms of a teacher, and the decoders that belong to one of them."""

    def __init__(self, settings: IliSettings, sizes: Mapping[str, int], *, num_classes: int, width: int):
        super().__init__()
        self.settings, self.views = settings, tuple(sizes)
        self.decoders: Decoders | None = None
        if settings.reconstruction > 0:
            pairs = [(view, view) for view in sizes]
            self.decoders = Decoders(pairs, sizes, code=num_classes, width=width, dropout=0.0)

    def contrast(self, progress: Progress) -> float:
        """The weight of InfoNCE."""
        s = self.settings
        return s.contrast * max(0.0, 1 - progress.t / (s.contrast_until * s.t_teach))

    def extras(self, teacher: Towers, batch: Batch, progress: Progress) -> dict[str, Float[Tensor, "b _"]]:
        """By row of this rank, what `loss` needs."""
        assert batch.labels is not None
        s = self.settings
        embeddings, logits = teacher(batch.views)
        first, second = logits.values()
        heard_or_seen = either(first, second)
        extras = {
            "label error": self._label_error(first, second, heard_or_seen, batch.labels)[:, None],
            "divergence": jensen_shannon(first, second, temperature=s.alignment_temperature)[:, None],
        }
        if s.one_of > 0:
            extras["one of"] = one_of(heard_or_seen, batch.labels)[:, None]
        if self.decoders is not None:
            extras["reconstruction"] = self._reconstruction_error(teacher, batch, logits)[:, None]
        if self.contrast(progress) > 0:
            extras |= {f"av-sal {view}": h for view, h in embeddings.items()}
        return extras

    def _label_error(
        self,
        first: Float[Tensor, "b c"],
        second: Float[Tensor, "b c"],
        heard_or_seen: Float[Tensor, "b c"],
        labels: Int[Tensor, " b"],
    ) -> Float[Tensor, " b"]:
        """What each view says of the annotation, and both together, by their weights."""
        s = self.settings
        fitted = ((s.each_view, first), (s.each_view, second), (s.either_view, heard_or_seen))
        errors = [
            weight
            * label_error(logits, labels, kind=s.label_error, smoothing=s.smoothing, annotated=s.annotated)
            for weight, logits in fitted
        ]
        return torch.stack(errors).sum(dim=0)

    def _reconstruction_error(
        self, teacher: Towers, batch: Batch, logits: Mapping[str, Float[Tensor, "b c"]]
    ) -> Float[Tensor, " b"]:
        """Of the scaled features of both views, from nothing but how much of each event is heard and seen."""
        assert self.decoders is not None
        decoded = self.decoders({view: F.softplus(logits[view]) for view in self.views})
        errors = []
        for view in self.views:
            features = teacher.scaled(view, batch.views[view])
            told = decoded[view, view].to(features.dtype)
            errors.append(F.mse_loss(told, features, reduction="none").mean(dim=1))
        return torch.stack(errors).sum(dim=0)

    def loss(self, here: Rows, world: Rows, progress: Progress) -> tuple[Tensor, dict[str, Tensor]]:
        """This rank's summand of AV-SAL, and its terms before their weights."""
        assert world.labels is not None
        s = self.settings
        annotated = (world.labels != UNANNOTATED).sum().clamp(min=1)
        terms = {
            "label_error": here.extras["label error"].sum() * world.num_ranks / annotated,
            "divergence": mean_over_world(here.extras["divergence"].squeeze(1), world),
        }
        total = terms["label_error"] + s.alignment * terms["divergence"]
        if s.one_of > 0:
            terms["one_of"] = here.extras["one of"].sum() * world.num_ranks / annotated
            total = total + s.one_of * terms["one_of"]
        if self.decoders is not None:
            terms["reconstruction"] = mean_over_world(here.extras["reconstruction"].squeeze(1), world)
            total = total + s.reconstruction * terms["reconstruction"]
        if (weight := self.contrast(progress)) > 0:
            terms["contrast"] = self._agreement_of_pairs(here, world)
            total = total + weight * terms["contrast"]
        return total, terms

    def _agreement_of_pairs(self, here: Rows, world: Rows) -> Tensor:
        """InfoNCE between the teacher's embeddings, a clip's other view against that of all clips; both directions."""
        relation = Relation.between(here, world, views="cross", by="pairs")
        parts = [
            world_mean(
                info_nce(
                    here.extras[f"av-sal {query}"],
                    world.extras[f"av-sal {key}"],
                    relation,
                    temperature=self.settings.contrast_temperature,
                    gradient_above=0.0,
                ),
                relation,
            )
            for query, key in (self.views, self.views[::-1])
        ]
        return torch.stack(parts).mean()

r"""HSC-MAE, the hierarchical semantic correlation-aware masked autoencoder: Zeng, Niu and Taya 2026 (arXiv:2604.04229).

No label is read.  The student sees inputs of which values are masked; a teacher, its moving average, sees all.

    global    audio and visual embeddings are linearly dependent      losses.dcca
    local     rows that the teacher finds near are positives          losses.affinity
    sample    a code can be decoded into its own view and the other   squared_error
    distil    the student's embedding is near the teacher's           squared_error
    weights   sum_i e^{-s_i} L_i + s_i, and a schedule                balanced, hsc_mae_settings.Schedule

    L = w_dcca g DCCA + w_rest sum_i g_i (e^{-s_i} L_i + s_i)                     after the warm-up
    L = reconstruction + w_cross cross + 0.05 contrast + 0.1 distillation        in the warm-up

Departs from the paper ([code]: the authors' code, where it and the text differ or the text is silent):
- w_dcca = 1 - c, w_rest = c = (1 - cos pi t)/2 [code].  With DCCA off the rest has weight 1; alone, DCCA has weight 1
  and no warm-up.
- g: dcca_weight, and reconstruction_weight of the sample level's terms, 1 of the others; all are 1 in the paper.
- DCCA reads the masked student's embeddings [code]; dcca_input = "unmasked" gives it a pass of its own, as in the
  text.  It is written as 1 - ..., which is not negative.  trace-norm and eckart-young are ours.
- The input's batch norm comes before the mask: a hidden value is then the mean, and the teacher, who sees no mask, is
  normalised by the statistics of what it sees.
- The released cross-modal attention reads one token per clip, so its weight is always one: it is left out.
- The true pair is a positive of its row (include_pair); in the authors' code it is in neither sum.
- A row without neighbours of non-negative similarity has no soft positive; there, it is given arbitrary ones.
- The warm-up is a quarter of the run (5 of 20 epochs), and w_cross rises in every step from 0 to 1.
- s is projected back into [-3, 3] after every step: behind a clamp its gradient would stay zero.
- Decoders are narrower than the code (decoder_width; 1024 in the authors' code).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from raytrain.config import Model
from raytrain.losses.affinity import affinity_info_nce, soft_top_k
from raytrain.losses.dcca import eckart_young, squared_correlations, summed_correlations
from raytrain.methods.base import Method
from raytrain.methods.hsc_mae_settings import HscMaeSettings, Schedule
from raytrain.models.autoencoder import Decoders, Encoders
from raytrain.models.ema import Follower, slow_copy
from raytrain.models.masking import kept_features
from raytrain.models.towers import ViewInput, wide
from raytrain.types import Batch, Loss, Progress, Rows, mean_over_world

LOG_VARIANCE_BOUND = 3.0


def squared_error(estimate: Float[Tensor, "b f"], target: Float[Tensor, "b f"]) -> Float[Tensor, " b"]:
    """Row by row, the mean over features of the squared error."""
    return F.mse_loss(estimate, target, reduction="none").mean(dim=1)


def hidden_squared_error(
    estimate: Float[Tensor, "b f"], target: Float[Tensor, "b f"], kept: Bool[Tensor, "b f"]
) -> Float[Tensor, " b"]:
    """Row by row, the sum over the features that were hidden of the squared error."""
    return (F.mse_loss(estimate, target, reduction="none") * ~kept).sum(dim=1)


def balanced(
    losses: Float[Tensor, " t"], log_variance: Float[Tensor, " t"], weights: Float[Tensor, " t"]
) -> Float[Tensor, ""]:
    """sum_i w_i (e^{-s_i} L_i + s_i)  (Kendall, Gal and Cipolla, CVPR 2018), for losses that are not negative.

    Given weights w are outside, where s cannot undo them: s_i = log L_i is a minimum for any w_i.
    """
    return (weights * (torch.exp(-log_variance) * losses + log_variance)).sum()


class HscMae(Method):
    """The student, its teacher and the decoders."""

    Settings = HscMaeSettings
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "data": {"batch_size": 512, "annotation": "none"},
        "model": {
            "hidden": (1024, 1024, 1024),
            "embedding": 32,
            "norm": "layer",
            "activation": "tanh",
            "dropout": 0.2,
        },
        "optim": {"lr": 3e-4, "weight_decay": 1e-4, "warmup": 0.0, "schedule": "cosine", "clip": 1.0},
        "train": {"epochs": 20, "ema_decay": None},
    }
    towers: Encoders

    def __init__(self, settings: HscMaeSettings, views: Mapping[str, ViewInput], model: Model):
        super().__init__()
        if not model.hidden or model.input_dropout:
            raise ValueError(
                f"hsc-mae got model.hidden = {list(model.hidden)} and model.input_dropout = "
                f"{model.input_dropout}; it needs the width of a code, and masks its inputs itself: set "
                "method.mask_ratio instead of model.input_dropout"
            )
        self.settings, self.schedule, self.views = settings, Schedule(settings), tuple(views)
        self.towers = Encoders(views, model)
        pairs = [(a, v) for a in views for v in views]
        self.decoders = Decoders(
            [(a, v) for a, v in pairs if ("reconstruction" if a == v else "cross") in settings.terms],
            {name: view.size for name, view in views.items()},
            code=model.hidden[-1],
            width=settings.decoder_width,
            dropout=settings.decoder_dropout * model.dropout,
        )
        if settings.dcca is None and set(settings.terms) <= {"reconstruction", "cross"}:
            for view in views:  # nothing trains them: embeddings are a random projection of the codes
                self.towers[view].projector.requires_grad_(False)
        self.teacher: Encoders | None = None
        self.follower: Follower | None = None
        if settings.teacher == "ema":
            self.teacher = slow_copy(self.towers)
            self.follower = Follower(self.teacher, self.towers, buffers="averaged")
        self.log_variance: nn.Parameter | None = None
        if settings.weights == "learnt" and settings.terms:
            self.log_variance = nn.Parameter(torch.zeros(len(settings.terms)))

    @classmethod
    def build(
        cls, settings: HscMaeSettings, views: Mapping[str, ViewInput], model: Model, num_classes: int | None
    ) -> HscMae:
        return cls(settings, views, model)

    def train(self, mode: bool = True) -> HscMae:
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def rates(self) -> Mapping[nn.Parameter, float]:
        return {} if self.log_variance is None else {self.log_variance: self.settings.weights_rate}

    def rows(self, batch: Batch, progress: Progress) -> Rows:
        """Embeddings of masked rows, and as extras what the terms need: one column per error of a row."""
        inputs, clean, kept, codes = {}, {}, {}, {}
        for number, view in enumerate(self.views):
            encoder = self.towers[view]
            inputs[view] = encoder.scaling(batch.views[view])
            clean[view] = encoder.norm(inputs[view])
            kept[view] = kept_features(
                batch.row,
                inputs[view].shape[1],
                ratio=self.settings.mask_ratio,
                seed=(progress.seed, progress.step, number),
            )
            codes[view] = encoder.code(clean[view], kept[view])
        projected = {view: self.towers[view].projector(code) for view, code in codes.items()}
        embeddings = {view: F.normalize(wide(z), dim=1) for view, z in projected.items()}
        extras = self._dcca_rows(clean, projected)
        for (source, target), decoded in self.decoders(codes).items():
            name, estimate = f"{source} to {target}", wide(decoded)
            if source == target and self.settings.reconstructed == "masked":
                extras[name] = hidden_squared_error(estimate, inputs[target], kept[target])
                extras[f"hidden {target}"] = (~kept[target]).sum(dim=1).to(estimate.dtype)
            else:
                extras[name] = squared_error(estimate, inputs[target])
        if self.settings.needs_teacher:
            with torch.no_grad():
                taught = embeddings if self.teacher is None else self.teacher(batch.views)[0]
                fused = torch.stack([taught[view] for view in self.views]).mean(0)
            if self.settings.contrast == "soft top-k":
                extras["fused"] = F.normalize(fused, dim=1)
            if self.settings.distillation:
                for view in self.views:
                    extras[f"distil {view}"] = squared_error(embeddings[view], taught[view])
        extras = {name: x if x.dim() > 1 else x.unsqueeze(1) for name, x in extras.items()}
        return Rows(batch.row, embeddings, extras=extras)

    def _dcca_rows(self, clean: dict[str, Tensor], projected: dict[str, Tensor]) -> dict[str, Tensor]:
        """What DCCA reads, where that is not the embeddings."""
        objective, unmasked = self.settings.dcca, self.settings.dcca_input == "unmasked"
        if objective is None or not (unmasked or objective == "eckart-young"):
            return {}
        read = {}
        for view in self.views:
            encoder = self.towers[view]
            z = wide(encoder.projector(encoder.code(clean[view])) if unmasked else projected[view])
            read[f"dcca {view}"] = z if objective == "eckart-young" else F.normalize(z, dim=1)
        return read

    def loss(self, here: Rows, world: Rows, progress: Progress) -> Loss:
        t = progress.t
        terms = self._terms(here, world)
        logged = dict(terms)
        w_dcca, w_rest = self.schedule.mix(t)
        total = here.embeddings[self.views[0]].new_zeros(())
        if terms:
            total = total + w_rest * self._rest(terms, t)
        if self.settings.dcca is not None:
            logged["dcca"] = self._dcca(world)
            total = total + w_dcca * self.settings.dcca_weight * logged["dcca"]
        if self.log_variance is not None:
            weights = torch.exp(-self.log_variance.detach())
            logged.update({f"weight_{name}": w for name, w in zip(terms, weights, strict=True)})
        return Loss(total, logged)

    def _rest(self, terms: dict[str, Float[Tensor, ""]], t: float) -> Float[Tensor, ""]:
        """All terms but DCCA, weighted."""
        losses = torch.stack(list(terms.values()))
        if not self.schedule.warming_up(t):
            given = losses.new_tensor([self.schedule.after_warmup(name) for name in terms])
            if self.log_variance is None:
                return (given * losses).sum()
            return balanced(losses, self.log_variance, given)
        fixed = losses.new_tensor([self.schedule.in_warmup(name, t) for name in terms])
        unused = 0.0 if self.log_variance is None else 0 * self.log_variance.sum()
        return (
            losses * fixed
        ).sum() + unused  # data-parallel training waits for the gradient of every parameter

    def _terms(self, here: Rows, world: Rows) -> dict[str, Float[Tensor, ""]]:
        """This rank's summands of the terms, in the order of s."""
        terms = {name: here.embeddings[self.views[0]].new_zeros(()) for name in self.settings.terms}
        for source, target in self.decoders.pairs:
            error = here.extras[f"{source} to {target}"].squeeze(1)
            if source != target:
                terms["cross"] = terms["cross"] + mean_over_world(error, world)
            elif self.settings.reconstructed == "masked":
                hidden = world.extras[f"hidden {target}"].sum().clamp_min(1)
                terms["reconstruction"] = terms["reconstruction"] + error.sum() * world.num_ranks / hidden
            else:
                terms["reconstruction"] = terms["reconstruction"] + mean_over_world(error, world)
        if self.settings.distillation:
            errors = [here.extras[f"distil {view}"].squeeze(1) for view in self.views]
            terms["distillation"] = mean_over_world(torch.stack(errors).sum(0), world)
        if self.settings.contrast is not None:
            terms["contrast"] = mean_over_world(self._contrast(here, world), world)
        return terms

    def _contrast(self, here: Rows, world: Rows) -> Float[Tensor, " b"]:
        """The mean of both directions, row by row."""
        own = here.row[:, None] == world.row[None, :]  # [b n]
        weights = torch.zeros_like(own, dtype=here.embeddings[self.views[0]].dtype)
        if self.settings.contrast == "soft top-k":
            weights = soft_top_k(
                here.extras["fused"],
                world.extras["fused"],
                own,
                neighbours=self.settings.neighbours,
                temperature=self.settings.affinity_temperature,
            )
        directions = [
            affinity_info_nce(
                here.embeddings[query],
                world.embeddings[key],
                weights,
                own,
                temperature=self.settings.temperature,
                include_pair=self.settings.include_pair,
            )
            for query, key in (self.views, self.views[::-1])
        ]
        return (directions[0] + directions[1]) / 2

    def _dcca(self, world: Rows) -> Float[Tensor, ""]:
        """One number of the whole world, the same on every rank."""
        audio, visual = (world.extras.get(f"dcca {view}", world.embeddings[view]) for view in self.views)
        if self.settings.dcca == "eckart-young":
            return eckart_young(audio, visual)
        objective = squared_correlations if self.settings.dcca == "trace" else summed_correlations
        return objective(audio, visual, ridge=self.settings.dcca_ridge)

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        if self.follower is not None:
            self.follower.move(self.schedule.ema_decay(progress.t))
        if self.log_variance is not None:
            self.log_variance.clamp_(-LOG_VARIANCE_BOUND, LOG_VARIANCE_BOUND)

    def embed(self, views: Mapping[str, Float[Tensor, "b _"]]) -> dict[str, Float[Tensor, "b d"]]:
        """The teacher's embeddings of unmasked rows; the student's where it is its own teacher."""
        return (self.towers if self.teacher is None else self.teacher)(views)[0]

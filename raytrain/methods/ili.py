r"""ILI, inferred latent interactions: a teacher of agreeing soft labels, the graph of its classes, and a student.

Zeng et al., *Inferred latent interactions* (AV-SAL, ILI, LIR).  One event of a clip is annotated, others happen.

    AV-SAL   BCE(s_a, y) + BCE(s_v, y) + lambda_al JS(softmax(u_a/T), softmax(u_v/T))     methods.ili_teacher
    s        sigmoid(a u + b), calibrated on the held-out rows                              fit_calibration
    A^       dependencies of the classes heard and seen, from moments of the teacher's u   graph.dependency
    LIR      sum_{i->j} A^_ij mean_{S_ij} s_n[i] s_m[j] D(z_n, z_m),
             S_ij = {s_n[i] > tau, s_m[j] > tau, y_n != y_m}                               losses.latent_interaction
    L        L_metric + lambda ramp(t - t_teach) LIR                                       Ili.loss

Stages of a run: until t_teach the teacher trains by AV-SAL and the student by L_metric, their parameters disjoint;
then the soft labels are calibrated, the graph is made of the moments of an epoch (the first one of a frozen teacher;
the last one before t_teach of one that trains on), and from its adoption on LIR joins.

Departs from the paper ([code]: the authors' code; the rest is ours where both are silent):
- Sigmoid heads, T or Platt scaling, top-K edges, sampled pairs [code].  Dependencies are weighed by how often and how
  strongly they are found, as the paper says; the released weight is 0.4 for every class and falls with an edge.
- A pair that LIR draws together may leave the negatives of L_metric (`negatives`); against proxies, the proxy of class
  j leaves those of a row with s_n[i] > tau where i -> j is an edge.  By default they stay (docs/ili.md says why).
- An event that happens is annotated with probability r only (`annotated`; 1 is the paper's BCE): otherwise a teacher of
  one annotation in several events learns which event is the loudest, and hidden events count as absent.
- A class annotates the clip, not a view: most of BCE is on the event being heard or seen (`either_view`, a noisy or),
  so that what is heard does not answer for what is only seen; `each_view` is the weight of the paper's.
- The teacher's embeddings h of a clip's two views are contrasted with those of other clips at first (`contrast`), which
  teaches it events that nobody annotated; not to the end, for what is heard would then tell what is seen with it.
- The annotation is one of the clip's events, the likelier the more odds the event has (`one_of`, Luce's choice rule,
  1959): an event that is fainter than the annotated one loses nothing by not being annotated.
- Features are decoded from the soft labels alone (`reconstruction`): what is heard and seen has to be told by events,
  those that always come with a louder one included, which no annotation teaches.
- The graph takes logits cut at `logit_bounds`, with the annotated class as context (docs/graph.md), from the run's own
  moments; edges with a negative or a small partial effect are left out (`search.sign`, `search.min_effect`), what clips
  say whose class is told in one view alone weighs beside the effect (`search.told`), and an edge goes to where the
  annotation of the other raises more (`search.orientation`).
- The graph is made of the clips whose annotated class is told in one view only (`one_view`): a class that is heard
  and seen is louder than its effects, which are then never annotated beside it and learnt to be absent there.
- tau is .5 and lambda .05 (the design's: .2 and .1): pairs that hold both events more likely than not draw embeddings
  nearer for the same loss of distance between classes.
- The teacher may be larger than the student (`teacher_hidden`), and learn with less dropout (`teacher_dropout`,
  `teacher_input_dropout`): with many clips it is what is hidden from it that it does not learn.
- Soft labels come from a moving average of the teacher (`teacher_average`).  With `after_teaching = "frozen"` the
  average stands still and the teacher's own weights, which then have gradients of zero, are read by nobody.
- "all" pairs of S_ij instead of a sample of them.
- L_metric may be the whole loss of PSD (`loss = "psd"`): LIR links unlike classes, soft alignments find clips that have
  a hidden event in common.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from raytrain.config import Model
from raytrain.data.reading import Annotation
from raytrain.graph.dependency import ClassDependency
from raytrain.losses.label_agreement import fit_calibration
from raytrain.losses.latent_interaction import (
    Latent,
    latent_interaction,
    sampled_latent_interaction,
)
from raytrain.methods.base import GraphPlan, Method
from raytrain.methods.ili_settings import IliSettings
from raytrain.methods.ili_student import LabelStudent, Linked
from raytrain.methods.ili_teacher import AvSal
from raytrain.methods.psd_student import PsdStudent
from raytrain.models.ema import Follower, slow_copy
from raytrain.models.towers import Towers, ViewInput
from raytrain.types import Batch, Loss, Progress, Rows

TEACHER, STUDENT, GIVEN = 0, 1, 2
"""Phases: the teacher trains; it has trained; it came from another run."""


class Ili(Method):
    """The student's towers, the teacher and its slow copy, and the graph in buffers."""

    Settings = IliSettings
    audio_to_visual: Tensor
    """A^ [c c], row i: of what is seen on hearing class i."""
    visual_to_audio: Tensor
    calibration: Tensor
    """Scale and offset of the logits, by view."""
    phase: Tensor

    def __init__(self, settings: IliSettings, views: Mapping[str, ViewInput], model: Model, num_classes: int):
        super().__init__()
        self.settings, self.views = settings, tuple(views)
        self.student: LabelStudent | PsdStudent
        if settings.psd is not None:
            self.student = PsdStudent(settings.psd, views, model, num_classes)
        else:
            self.student = LabelStudent(settings, views, model)
        own = settings.of_teacher(model)
        self.teacher = Towers(views, own, num_classes=num_classes)
        self.slow = slow_copy(self.teacher)
        self.follower = Follower(self.slow, self.teacher, buffers="averaged")
        sizes = {name: view.size for name, view in views.items()}
        width = own.hidden[-1] if own.hidden else own.embedding
        self.av_sal = AvSal(settings, sizes, num_classes=num_classes, width=width)
        if isinstance(self.student, LabelStudent):
            self.student.draw_proxies(num_classes, model.embedding)
        for name in ("audio_to_visual", "visual_to_audio"):
            self.register_buffer(name, torch.zeros(num_classes, num_classes))
        self.register_buffer("calibration", torch.tensor([[1.0, 0.0]] * len(views)))
        self.register_buffer("phase", torch.tensor(TEACHER))
        self._phase, self._has_graph, self._most_edges = TEACHER, False, 0
        self.register_load_state_dict_pre_hook(_student_by_name)
        self.register_load_state_dict_post_hook(lambda module, _: module._read_buffers())

    @classmethod
    def build(
        cls, settings: IliSettings, views: Mapping[str, ViewInput], model: Model, num_classes: int | None
    ) -> Ili:
        assert num_classes is not None, "check() has refused data without labels"
        return cls(settings, views, model, num_classes)

    @classmethod
    def check(cls, settings: IliSettings, annotation: Annotation) -> None:
        if annotation != "label":
            raise ValueError(
                f"ili needs one annotated class per clip, and data.annotation is {annotation!r}; use data with labels"
            )

    def _read_buffers(self) -> None:
        """What a step asks of the buffers, as plain values: a step does not wait for the device."""
        self._phase = int(self.phase)
        edges = torch.cat([self.audio_to_visual, self.visual_to_audio]) > 0
        self._most_edges = int(edges.sum(dim=1).max())
        self._has_graph = self._most_edges > 0

    def train(self, mode: bool = True) -> Ili:
        super().train(mode)
        self.slow.eval()
        return self

    # stages

    def stages(self, num_steps: int, steps_per_epoch: int) -> Mapping[int, str]:
        """The student's stage, at the epoch nearest to t_teach.  Raises ValueError for a run of one epoch."""
        epochs = num_steps // steps_per_epoch
        if epochs < 2:
            raise ValueError(
                f"train.epochs is {epochs}; ili trains a teacher before it uses its labels, so at least 2 are needed"
            )
        return {min(max(1, round(self.settings.t_teach * epochs)), epochs - 1) * steps_per_epoch: "student"}

    @torch.no_grad()
    def begin(self, stage: str, held_out: Batch) -> None:
        """Calibrates the soft labels and ends AV-SAL.  A teacher that was given keeps its calibration."""
        assert stage == "student", f"ili has no stage {stage!r}"
        if self._phase == GIVEN:
            return
        assert held_out.labels is not None, "check() has refused data without labels"
        logits = self.slow(held_out.views)[1]
        for fitted, view in zip(self.calibration, self.views, strict=True):
            found = fit_calibration(
                logits[view],
                held_out.labels,
                kind=self.settings.calibration,
                annotated=self.settings.annotated,
            )
            fitted.copy_(torch.tensor(found))
        self.phase.fill_(STUDENT)
        self._read_buffers()

    def graph_plan(self, num_steps: int, steps_per_epoch: int) -> GraphPlan | None:
        if self.settings.graph == "none":
            return None
        (start,) = self.stages(num_steps, steps_per_epoch)
        lag, frozen = self.settings.lag, self.settings.after_teaching == "frozen"
        if frozen and start + steps_per_epoch + lag < num_steps:
            start += steps_per_epoch  # of one teacher, which is calibrated
        every = (
            num_steps
            if self.settings.refresh_every is None
            else self.settings.refresh_every * steps_per_epoch
        )
        refreshes = tuple(step for step in range(start, num_steps, every) if step + lag < num_steps)
        weights = "lift" if self.settings.graph == "lift" else "search"
        search = {**self.settings.search.model_dump(), "top_k": self.settings.top_k, "weights": weights}
        return GraphPlan(
            refreshes,
            window=steps_per_epoch,
            lag=lag,
            search=search,
            moments={
                "bounds": self.settings.logit_bounds,
                "one_view": self.settings.one_view,
                "told": self.settings.search.told > 0,
            },
        )

    def adopt(self, graph: ClassDependency) -> None:
        """The weights of the graph; none where its verdict is `unlinked` (lift has no verdict)."""
        found = [graph.audio_to_visual, graph.visual_to_audio]
        if self.settings.graph == "permuted":
            cycle = np.random.default_rng(self.settings.permutation).permutation(len(found[0]))
            order = np.empty_like(cycle)
            order[cycle] = np.roll(cycle, 1)  # one cycle: no class keeps its place
            found = [weights[order][:, order] for weights in found]
        known = self.settings.graph == "lift" or graph.verdict == "linked"
        for buffer, weights in zip((self.audio_to_visual, self.visual_to_audio), found, strict=True):
            buffer.copy_(torch.from_numpy(weights * known))
        self._read_buffers()

    # the teacher

    @property
    def _teaching(self) -> bool:
        trains_on = self._phase == STUDENT and self.settings.after_teaching == "training"
        return self._phase == TEACHER or trains_on

    @torch.no_grad()
    def soft_labels(self, views: Mapping[str, Float[Tensor, "b _"]]) -> dict[str, Float[Tensor, "b c"]]:
        """Calibrated logits of the slow teacher: soft labels are their sigmoids."""
        found = {}
        logits = self.slow(views)[1]
        for view, (scale, offset) in zip(self.views, self.calibration, strict=True):
            if view in logits:
                found[view] = scale * logits[view] + offset
        return found

    def teacher_state(self) -> Mapping[str, Tensor]:
        return {**self.slow.state_dict(), "calibration": self.calibration}

    def load_teacher(self, state: Mapping[str, Tensor]) -> None:
        """From then on AV-SAL is not trained, and LIR begins with the graph.

        Raises ValueError for a teacher of other shapes.
        """
        mine = self.teacher_state()
        wrong = [
            n for n in {*mine, *state} if n not in mine or n not in state or mine[n].shape != state[n].shape
        ]
        if wrong:
            raise ValueError(
                f"this teacher does not fit: {', '.join(sorted(wrong)[:3])} differ; train with the [model], "
                "method.teacher_hidden, method.teacher_input_dropout, views and classes of the run that it comes from"
            )
        weights = {name: value for name, value in state.items() if name != "calibration"}
        self.slow.load_state_dict(weights)
        self.teacher.load_state_dict(weights)
        self.calibration.copy_(state["calibration"])
        self.phase.fill_(GIVEN)
        self._read_buffers()

    def after_step(self, progress: Progress) -> None:
        self.student.after_step(progress)
        if self._teaching:
            self.follower.move(self.settings.teacher_average)

    # the student

    @property
    def towers(self) -> Towers:  # type: ignore[override]
        return self.student.towers

    def embed(self, views: Mapping[str, Float[Tensor, "b _"]]) -> dict[str, Float[Tensor, "b d"]]:
        return self.student.embed(views)

    # a step

    def rows(self, batch: Batch, progress: Progress) -> Rows:
        """What the student needs; of the teacher, AV-SAL by row, its embeddings and its soft labels as extras."""
        extras: dict[str, Tensor] = {}
        if self._teaching:
            extras |= self.av_sal.extras(self.teacher, batch, progress)
        if self._has_graph:
            for view, logit in self.soft_labels(batch.views).items():
                extras[f"soft {view}"] = torch.sigmoid(logit)
        rows = self.student.rows(batch, progress)
        return replace(rows, extras={**rows.extras, **extras})

    def loss(self, here: Rows, world: Rows, progress: Progress) -> Loss:
        found = self._metric(here, world, progress)
        total, terms = found.total, dict(found.terms)
        if self._has_graph:
            weight = self.settings.weight * self._ramp(progress.t)
            terms["lir"] = self._latent_interaction(here, world, progress)
            total = total + weight * terms["lir"]
        if self._teaching:
            taught, of_teacher = self.av_sal.loss(here, world, progress)
            total, terms = total + taught, terms | of_teacher
        else:  # data-parallel training waits for the gradient of every parameter
            unused = [*self.teacher.parameters(), *self.av_sal.parameters()]
            total = total + 0 * torch.stack([p.sum() for p in unused]).sum()
        return Loss(total, terms, found.active)

    def _ramp(self, t: float) -> float:
        since = t - (0.0 if self._phase == GIVEN else self.settings.t_teach)
        return 1.0 if self.settings.ramp == 0 else min(max(since / self.settings.ramp, 0.0), 1.0)

    def _metric(self, here: Rows, world: Rows, progress: Progress) -> Loss:
        """L_metric, or PSD's loss."""
        if isinstance(self.student, PsdStudent):
            return self.student.loss(here, world, progress)
        linked = None
        if self._has_graph and self.settings.negatives != "stay":
            weigh = self.settings.negatives == "weigh"
            linked = Linked(
                edges=((self.audio_to_visual > 0) | (self.visual_to_audio.T > 0)).to(self.audio_to_visual),
                draws=torch.rand(2, len(world), generator=_generator(progress, 1)) if weigh else None,
            )
        return self.student.loss(here, world, linked)

    def _latent_interaction(self, here: Rows, world: Rows, progress: Progress) -> Float[Tensor, ""]:
        """This rank's summand of LIR over both directions of A^."""
        assert world.labels is not None
        audio, visual = self.views
        graphs = {(audio, visual): self.audio_to_visual, (visual, audio): self.visual_to_audio}
        parts = []
        for number, ((source, target), weights) in enumerate(graphs.items()):
            soft = world.extras[f"soft {source}"], world.extras[f"soft {target}"]
            latent = Latent(*soft, labels=world.labels, row=world.row)
            first, threshold = here.first, self.settings.threshold
            query, keys = here.embeddings[source], world.embeddings[target]
            if self.settings.pairs == "all":
                parts.append(
                    latent_interaction(
                        query, keys, latent, weights.to(query), first=first, threshold=threshold
                    ).sum()
                )
            else:
                shape = (2, len(weights), self._most_edges, self.settings.pairs)
                draws = torch.rand(*shape, generator=_generator(progress, 2 + number)).to(query)
                found = sampled_latent_interaction(
                    query, keys, latent, weights.to(query), draws, first=first, threshold=threshold
                )
                parts.append(found)
        return torch.stack(parts).sum() * world.num_ranks


def _generator(progress: Progress, stream: int) -> torch.Generator:
    """A function of seed and step, so that every rank draws the same."""
    words = np.random.SeedSequence([progress.seed, progress.step, stream]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))


def _student_by_name(module: nn.Module, state: dict[str, Tensor], *_: object) -> None:
    """Weights of runs from before the student was a module of its own, under the names of today."""
    for name in [name for name in state if name == "proxies" or name.startswith("towers.")]:
        state[f"student.{name}"] = state.pop(name)

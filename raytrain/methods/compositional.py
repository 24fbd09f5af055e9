r"""Compositional contrastive distillation: Chen et al., CVPR 2021 (arXiv:2104.10955), and its comparators.

A student of one view (video) learns its classes from labels and from teachers of other views (audio, image) whose
features are frozen.  What is distilled from one teacher is a file of `methods/distillation`: the paper's own
(`composition`) or a comparator's.

    L = CE(student) + sum over teachers m of CE(m) + 1/M (what is distilled from m)

Departs from the paper:
- A teacher is a linear head on frozen features, of the student's embedding size, trained by its own cross-entropy
  alone (teacher_hidden gives it hidden layers); theirs are features of networks trained elsewhere.  No distillation
  moves a teacher, and the teachers' heads are trained in the baseline too.
- One optimiser, AdamW, for the student, the compositions and the teachers' heads; each objective moves its own.
- A clip without a label has its own pair as its only positive, no negatives, and no part in a cross-entropy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from raytrain.config import Model, Section
from raytrain.losses import distances
from raytrain.losses.masks import Relation
from raytrain.methods.base import Annotation, Method
from raytrain.methods.distillation import DISTILLATIONS
from raytrain.methods.distillation.base import (
    Distillation,
    Pair,
    Signals,
    Sizes,
    annotated_mean,
    cross_entropy,
)
from raytrain.methods.distillation.baseline import BaselineSettings
from raytrain.methods.distillation.cmc import CmcSettings
from raytrain.methods.distillation.composition import CompositionSettings
from raytrain.methods.distillation.correlation import CorrelationSettings
from raytrain.methods.distillation.crd import CrdSettings
from raytrain.methods.distillation.fitnet import FitNetSettings
from raytrain.methods.distillation.information_flow import InformationFlowSettings
from raytrain.methods.distillation.pkt import PktSettings
from raytrain.methods.distillation.rkd import RkdSettings
from raytrain.models.towers import ACTIVATIONS, Towers, ViewInput, tower, wide
from raytrain.types import Batch, Loss, Progress, Rows

DistillationName = Literal[
    "compositional", "baseline", "fitnet", "pkt", "correlation", "rkd", "crd", "information-flow", "cmc"
]


class CompositionalSettings(Section):
    distillation: DistillationName = "compositional"
    student: str | None = Field(None, description="the view that learns; off: the last of data.views")
    teacher_hidden: tuple[int, ...] = Field((), description="widths of hidden layers of a teacher's head")
    compositional: CompositionSettings | None = None
    baseline: BaselineSettings | None = None
    fitnet: FitNetSettings | None = None
    pkt: PktSettings | None = None
    correlation: CorrelationSettings | None = None
    rkd: RkdSettings | None = None
    crd: CrdSettings | None = None
    information_flow: InformationFlowSettings | None = None
    cmc: CmcSettings | None = None

    @model_validator(mode="before")
    @classmethod
    def _only_the_chosen_one(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Settings of a distillation that is not trained with would be ignored: they are refused."""
        chosen = str(values.get("distillation", "compositional"))
        for name in DISTILLATIONS:
            key = name.replace("-", "_")
            if name != chosen and values.get(key) is not None:
                raise ValueError(
                    f"{key} is set, but distillation is {chosen!r}; remove it or set "
                    f"method.distillation = {name!r}"
                )
        if chosen in DISTILLATIONS:
            section = chosen.replace("-", "_")
            values = {**values, section: {} if values.get(section) is None else values[section]}
        return values

    @property
    def chosen(self) -> Any:
        return getattr(self, self.distillation.replace("-", "_"))


class Compositional(Method):
    """The student, the teachers' heads, and what is distilled from each teacher."""

    Settings = CompositionalSettings
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {"data": {"batch_size": 128}}
    num_views: ClassVar[tuple[int, int | None]] = (2, None)
    """The student's view and at least one teacher's."""
    selected_by = "top-1"

    def __init__(
        self, settings: CompositionalSettings, views: Mapping[str, ViewInput], model: Model, num_classes: int
    ):
        super().__init__()
        names = list(views)
        if settings.student is not None and settings.student not in names:
            raise ValueError(
                f"method.student is {settings.student!r}, which is not one of data.views: {', '.join(names)}"
            )
        self.settings = settings
        self.student = names[-1] if settings.student is None else settings.student
        self.teachers = tuple(name for name in names if name != self.student)
        self.towers = Towers({self.student: views[self.student]}, model, num_classes=num_classes)
        head = model.model_copy(update={"hidden": settings.teacher_hidden})
        for name in self.teachers:
            self.towers.towers[name] = tower(views[name], head)
        self.heads = nn.ModuleDict({name: nn.Linear(model.embedding, num_classes) for name in self.teachers})
        self.distillations = nn.ModuleDict()
        for name in self.teachers:
            sizes = Sizes(
                teacher=name,
                embedding=model.embedding,
                num_classes=num_classes,
                student_layers=model.hidden,
                teacher_layers=(views[name].size, *settings.teacher_hidden),
            )
            self.distillations[name] = DISTILLATIONS[settings.distillation](settings.chosen, sizes)

    @classmethod
    def build(
        cls,
        settings: CompositionalSettings,
        views: Mapping[str, ViewInput],
        model: Model,
        num_classes: int | None,
    ) -> Compositional:
        assert num_classes is not None, "check() has refused data without labels"
        return cls(settings, views, model, num_classes)

    @classmethod
    def check(cls, settings: CompositionalSettings, annotation: Annotation) -> None:
        if annotation != "label":
            raise ValueError(
                f"compositional distillation learns one class per clip, but data.annotation is {annotation!r}; "
                "use data with labels, or a method that needs none (hsc-mae)"
            )

    def rows(self, batch: Batch, progress: Progress) -> Rows:
        assert batch.labels is not None, "check() has refused data without labels"
        student, layers, logits = self._forward(self.student, batch)
        embeddings = {self.student: distances.unit(student)}
        extras = {"ce": cross_entropy(logits, batch.labels).unsqueeze(1)}
        for name in self.teachers:
            teacher, hidden, classes = self._forward(name, batch)
            teacher = teacher.detach()
            embeddings[name] = distances.unit(teacher)
            extras[f"ce {name}"] = cross_entropy(classes, batch.labels).unsqueeze(1)
            signals = Signals(
                student=student,
                teacher=teacher,
                student_logits=logits,
                student_layers=layers[1:],
                teacher_layers=tuple(layer.detach() for layer in hidden),
                labels=batch.labels,
            )
            made = self._distillation(name).rows(signals)
            extras.update({f"{name} {key}": value for key, value in made.items()})
        return Rows(batch.row, embeddings, labels=batch.labels, extras=extras)

    def _forward(self, view: str, batch: Batch) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """(embedding, scaled input and hidden layers, class logits)."""
        x, layers = batch.views[view], []
        for number, layer in enumerate(self.towers.towers[view].children()):
            x = layer(x)
            if number == 0 or isinstance(layer, tuple(ACTIVATIONS.values())):
                layers.append(wide(x))
        return wide(x), tuple(layers), wide(self._head(view)(x))

    def _head(self, view: str) -> nn.Module:
        head = self.towers.head if view == self.student else self.heads[view]
        assert head is not None
        return head

    def _distillation(self, teacher: str) -> Distillation:
        found = self.distillations[teacher]
        assert isinstance(found, Distillation)
        return found

    def loss(self, here: Rows, world: Rows, progress: Progress) -> Loss:
        relation = Relation.between(here, world, views="cross", by="labels")
        terms = {"ce": annotated_mean(here.extras["ce"].squeeze(1), relation)}
        total = terms["ce"]
        for name in self.teachers:
            terms[f"ce_{name}"] = annotated_mean(here.extras[f"ce {name}"].squeeze(1), relation)
            total = total + terms[f"ce_{name}"]
            own, every = self._pair(here, name), self._pair(world, name)
            for key, term in self._distillation(name).loss(own, every, relation, progress).items():
                terms[f"{key}_{name}"] = term.value
                total = total + term.weight / len(self.teachers) * term.value
        return Loss(total, terms)

    def _pair(self, rows: Rows, teacher: str) -> Pair:
        mine = f"{teacher} "
        extras = {k.removeprefix(mine): x for k, x in rows.extras.items() if k.startswith(mine)}
        return Pair(rows.embeddings[self.student], rows.embeddings[teacher], extras)

    def logits(self, views: Mapping[str, Float[Tensor, "b _"]]) -> dict[str, Float[Tensor, "b c"]]:
        """Class logits by view: the student's from the student's view alone, the teachers' from theirs."""
        features = self.towers.features(views)
        return {name: self._head(name)(x) for name, x in features.items()}

    def class_scores(self, views: Mapping[str, Float[Tensor, "b _"]]) -> dict[str, Float[Tensor, "b c"]]:
        """The student's alone: what distillation is for."""
        return self.logits({self.student: views[self.student]})

    def embed(self, views: Mapping[str, Float[Tensor, "b _"]]) -> dict[str, Float[Tensor, "b d"]]:
        """Unit-norm embeddings by view."""
        return {name: F.normalize(wide(x), dim=1) for name, x in self.towers.features(views).items()}

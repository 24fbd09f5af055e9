"""The one contract between the step and every method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn

from raytrain.config import Model, Section
from raytrain.data.reading import Annotation
from raytrain.graph.dependency import ClassDependency
from raytrain.models.towers import Towers, ViewInput
from raytrain.types import Batch, Loss, Progress, Rows


@dataclass(frozen=True)
class GraphPlan:
    """When the class graph of a run is made, and of which soft labels."""

    refreshes: tuple[int, ...]
    """Numbers of steps done at which a graph is asked for."""
    window: int
    """Steps before a refresh whose soft labels are counted; never from before the refresh before it."""
    lag: int
    """Steps from the asking to the first step that uses the graph: all ranks adopt it there, and only there."""
    search: Mapping[str, Any]
    """Keywords of `graph.dependency.class_dependency`."""
    moments: Mapping[str, Any] = field(default_factory=dict)
    """Keywords of `graph.accumulator.MomentAccumulator`: of which soft labels it is made."""


class Method(nn.Module, ABC):
    """A paper: what it makes of a batch, and its loss.  It never gathers and never asks for its rank."""

    Settings: ClassVar[type[Section]]
    """The keys of [method] and their defaults."""
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """What the paper trains with: values for keys of [data], [model], [optim], [train] that the user leaves open."""
    num_views: ClassVar[tuple[int, int | None]] = (2, 2)
    """Fewest and most views that it trains on; None: any number."""
    selected_by: ClassVar[Literal["retrieval", "top-1"]] = "retrieval"
    """What selects weights on the validation split: retrieval across views, or how often `class_scores` are right."""
    towers: Towers

    @classmethod
    @abstractmethod
    def build(
        cls, settings: Any, views: Mapping[str, ViewInput], model: Model, num_classes: int | None
    ) -> Method:
        """The method with weights drawn from torch's generator; num_classes is None where nothing is annotated."""

    @classmethod
    def check(cls, settings: Any, annotation: Annotation) -> None:
        """Raises ValueError where the settings and what the data offers do not go together."""

    def rates(self) -> Mapping[nn.Parameter, float]:
        """Parameters with a learning rate of their own, as a multiple of optim.lr."""
        return {}

    def rows(self, batch: Batch, progress: Progress) -> Rows:
        """The forward pass over the rows of this rank; the float tensors of it are gathered with gradient."""
        embeddings, logits = self.towers(batch.views)
        return Rows(batch.row, embeddings, logits, batch.labels, batch.events)

    @abstractmethod
    def loss(self, here: Rows, world: Rows, progress: Progress) -> Loss:
        """The summand of this rank: its mean over ranks is the loss of the world, whatever their number."""

    def after_step(self, progress: Progress) -> None:
        """After the optimiser's step: where a method moves an averaged teacher of its own."""

    def stages(self, num_steps: int, steps_per_epoch: int) -> Mapping[int, str]:
        """Stages of the run by the number of steps done where they begin; a checkpoint is written before each."""
        return {}

    def begin(self, stage: str, held_out: Batch) -> None:
        """Before the first step of a stage: a function of the weights and the validation rows, so that it can be
        repeated.  Labels of `held_out` are those that training may see."""

    def graph_plan(self, num_steps: int, steps_per_epoch: int) -> GraphPlan | None:
        """When the run makes class graphs of the teacher's soft labels; None: it makes none."""
        return None

    def adopt(self, graph: ClassDependency) -> None:
        """Before the first step that uses the graph, on every rank: into buffers, so that checkpoints hold it."""

    def soft_labels(self, views: Mapping[str, Float[Tensor, "b _"]]) -> dict[str, Float[Tensor, "b c"]]:
        """The teacher's class logits by view: no gradient, no dropout, each row by itself.

        Raises ValueError where the method has no teacher.
        """
        raise ValueError(f"{type(self).__name__} has no teacher, so there are no soft labels; use psd or ili")

    def teacher_state(self) -> Mapping[str, Tensor]:
        """The slow weights that soft labels are made of, as other runs and the teacher actor take them."""
        return {}

    def load_teacher(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `teacher_state`, for a teacher that another run has trained.

        Raises ValueError where the method has no teacher, or one of other shapes.
        """
        raise ValueError(f"{type(self).__name__} has no teacher to load; use psd or ili")

    def embed(self, views: Mapping[str, Float[Tensor, "b _"]]) -> dict[str, Float[Tensor, "b d"]]:
        """Unit-norm embeddings by view, for evaluation and search."""
        return self.towers(views)[0]

    def class_scores(self, views: Mapping[str, Float[Tensor, "b _"]]) -> dict[str, Float[Tensor, "b c"]]:
        """By view, scores of the classes from that view alone: what a classifier is measured by.

        Nothing where the method is no classifier.
        """
        return {}

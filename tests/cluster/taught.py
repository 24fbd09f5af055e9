"""A small method with stages, a teacher and class graphs, for tests of the loop; its loss depends on all of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from raytrain.config import Model, Section
from raytrain.graph.dependency import ClassDependency
from raytrain.methods.base import GraphPlan, Method
from raytrain.models.towers import Towers, ViewInput
from raytrain.types import Batch, Loss, Progress, Rows, mean_over_world


class TaughtSettings(Section):
    refreshes: tuple[int, ...] = (6, 14)
    window: int = 4
    lag: int = 3
    stage_at: int = 8
    penalty: float = 0.3


class Taught(Method):
    """Cross-entropy of both views, pulled apart by the graph, plus agreement with the slow towers."""

    Settings = TaughtSettings

    def __init__(self, settings: TaughtSettings, towers: Towers, num_classes: int):
        super().__init__()
        self.settings, self.towers = settings, towers
        self.slow = copy.deepcopy(towers).requires_grad_(False)
        self.register_buffer("links", torch.zeros(num_classes, num_classes))
        self.register_buffer("temperature", torch.ones(()))

    @classmethod
    def build(
        cls, settings: Any, views: Mapping[str, ViewInput], model: Model, num_classes: int | None
    ) -> Taught:
        assert num_classes is not None
        return cls(settings, Towers(views, model, num_classes=num_classes), num_classes)

    def train(self, mode: bool = True) -> Taught:
        super().train(mode)
        self.slow.eval()
        return self

    def rows(self, batch: Batch, progress: Progress) -> Rows:
        embeddings, logits = self.towers(batch.views)
        slow = self.slow(batch.views)[1]
        extras = {f"slow {view}": u / self.temperature for view, u in slow.items()}
        return Rows(batch.row, embeddings, logits, batch.labels, batch.events, extras)

    def loss(self, here: Rows, world: Rows, progress: Progress) -> Loss:
        assert here.labels is not None
        audio, visual = here.logits.values()
        each = F.cross_entropy(audio, here.labels, reduction="none")
        each = each + F.cross_entropy(visual, here.labels, reduction="none")
        p, q = audio.softmax(dim=1), visual.softmax(dim=1)
        linked = -((p @ self.links) * q).sum(dim=1)
        taught = sum(
            (here.logits[view] - here.extras[f"slow {view}"]).square().mean(dim=1) for view in here.logits
        )
        total = mean_over_world(each + linked + 0.1 * taught, world)
        return Loss(total, {"linked": mean_over_world(linked, world)})

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        slow, fast = list(self.slow.parameters()), list(self.towers.parameters())
        torch._foreach_lerp_(slow, fast, 0.1)
        for old, new in zip(self.slow.buffers(), self.towers.buffers(), strict=True):
            old.copy_(new)

    def stages(self, num_steps: int, steps_per_epoch: int) -> Mapping[int, str]:
        return {self.settings.stage_at: "student"}

    @torch.no_grad()
    def begin(self, stage: str, held_out: Batch) -> None:
        assert stage == "student" and not self.training
        assert held_out.labels is not None
        logits = self.slow(held_out.views)[1]
        self.temperature.copy_(sum(u.std() for u in logits.values()) / 2 + 0.5)

    def graph_plan(self, num_steps: int, steps_per_epoch: int) -> GraphPlan | None:
        s = self.settings
        search = {"penalty": s.penalty, "bootstraps": 4, "lift_threshold": None}
        return GraphPlan(s.refreshes, s.window, s.lag, search)

    def adopt(self, graph: ClassDependency) -> None:
        c = len(self.links)
        self.links.copy_(
            torch.from_numpy(graph.edge_frequency[:c, c:] - graph.direction_frequency[:c, c:] / 2)
        )

    def soft_labels(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert not self.training
        return self.slow(views)[1]

    def teacher_state(self) -> Mapping[str, Tensor]:
        return self.slow.state_dict()

    def load_teacher(self, state: Mapping[str, Tensor]) -> None:
        try:
            self.slow.load_state_dict(dict(state))
        except RuntimeError as error:
            raise ValueError(f"the teacher does not fit: {error}") from None

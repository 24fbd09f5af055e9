"""The teacher in the loop of one rank: stages, moments of soft labels, and graphs that all ranks adopt at one step.

Before step s, in this order: a graph that is due is adopted; a graph is asked for; the batch is counted.  All three
are functions of s alone, so every rank does them at the same step however fast a graph is made, and a run that goes
on from a checkpoint of s steps does them as it would have.

    steps in [R - window, R)   the soft labels of this rank's rows are added to its own moments; labels and row ids
                               of the world are gathered, so that permuted labels do not depend on the ranks
    R                          moments are summed over ranks; rank 0 asks its `GraphMaker`
    R + lag                    rank 0 waits for the graph, if it must; it is broadcast; `method.adopt`

A checkpoint holds the moments of every rank, the newest graph, and the request that is not answered yet.
"""

from __future__ import annotations

import io
import logging
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from raytrain.cluster.run_folder import MOMENTS, write_bytes
from raytrain.cluster.schedule import step_seed
from raytrain.collectives import gather_rows, num_ranks, rank
from raytrain.config import Config
from raytrain.data.order import SampleOrder
from raytrain.graph.accumulator import MomentAccumulator, permuted_labels
from raytrain.graph.dependency import ClassDependency
from raytrain.methods.base import GraphPlan, Method
from raytrain.teacher import (
    GraphFailed,
    GraphMaker,
    GraphRequest,
    LocalMaker,
    graph_facts,
    graph_of,
    graph_tensors,
)
from raytrain.types import Batch

log = logging.getLogger(__name__)

Adopted = Callable[[int, ClassDependency, dict[str, float]], None]
"""Told by rank 0 of a graph that was adopted: the step, the graph, numbers about it."""


class Teaching:
    """What a method with stages or a teacher needs of the loop, on one rank.

    maker   of rank 0; the other ranks have none.  By default one in this process whose graphs nobody keeps
    graph   that the method has adopted before the run
    """

    def __init__(
        self,
        config: Config,
        method: Method,
        order: SampleOrder,
        folder: Path,
        device: torch.device,
        *,
        precision: torch.dtype,
        maker: GraphMaker | None,
        graph: ClassDependency | None = None,
    ):
        self._method, self._order, self._folder, self._device = method, order, folder, device
        self._precision, self._seed = precision, config.train.seed
        self._maker: GraphMaker | None = None
        if rank() == 0:
            self._maker = LocalMaker() if maker is None else maker
        self._publish_every = config.train.publish_every
        self._views = config.data.views
        num_steps = config.train.epochs * order.num_batches
        self.stages = method.stages(num_steps, order.num_batches)
        plan = method.graph_plan(num_steps, order.num_batches)
        self._plan = None if plan is None else checked(plan, num_steps)
        self.classes: Sequence[str] = ()
        """Names, for what is written."""
        self.graph = graph
        self._graph_step: int | None = None  # of its request
        self._asked: int | None = None  # the request that is not adopted yet, on every rank
        self._pending: GraphRequest | None = None  # the same, on rank 0
        self._sums: MomentAccumulator | None = None
        self._num_classes = 0

    def before_step(
        self, step: int, batch: Batch, sizes: Sequence[int], adopted: Adopted | None = None
    ) -> None:
        """Adopts, asks and counts, where step `step` is one for it; `sizes` are the rows of each rank."""
        plan = self._plan
        if plan is None:
            return
        self._adopt_if_due(plan, step, adopted)
        if step in plan.refreshes and self._asked is None:
            self._ask(plan, step)
            self._adopt_if_due(plan, step, adopted)
        if window_of(plan, step) is not None:
            self._count(batch, tuple(sizes))

    def after_step(self, steps_done: int) -> None:
        if steps_done % self._publish_every == 0:
            self._publish(steps_done, last=False)

    def finish(self, steps_done: int) -> None:
        """At the end of a run: the last weights are published, and are durable when this returns."""
        self._publish(steps_done, last=True)

    def _publish(self, steps_done: int, *, last: bool) -> None:
        if self._maker is None or not self._method.teacher_state():
            return

        def weights() -> dict[str, Tensor]:
            return {name: w.detach().cpu().clone() for name, w in self._method.teacher_state().items()}

        self._maker.publish(steps_done, weights, last=last)

    def log_values(self) -> dict[str, float]:
        """Of the maker, on rank 0, where there is a teacher."""
        if self._maker is None or not self._method.teacher_state():
            return {}
        return {f"teacher/{name}": value for name, value in self._maker.state().items()}

    def _count(self, batch: Batch, sizes: tuple[int, ...]) -> None:
        if batch.labels is None:
            raise ValueError(
                "a graph of classes needs the annotated class of each clip, and data.annotation is not 'label'; "
                "set it, or turn the graph off in [method]"
            )
        first = [0, *accumulate(sizes)][rank()]
        known = torch.stack([batch.labels.long(), batch.row.long()], dim=1)
        labels, clips = gather_rows(known, sizes).cpu().numpy().T
        own = slice(first, first + sizes[rank()])
        found = soft_labels(self._method, batch.views, self._precision)
        audio, visual = (found[view].double().cpu().numpy() for view in self._views)
        if self._sums is None:
            self._num_classes = audio.shape[1]
            self._sums = self._empty()
        permuted = permuted_labels(labels, clips, self._sums.seed)
        self._sums.update(audio, visual, labels[own], clips[own], permuted[own])

    def _empty(self) -> MomentAccumulator:
        assert self._plan is not None, "moments are counted for a graph"
        return MomentAccumulator(
            self._num_classes,
            num_clips=self._order.num_rows,
            seed=self._seed,
            **self._plan.moments,
        )

    def _ask(self, plan: GraphPlan, step: int) -> None:
        assert self._sums is not None, "a window has at least one step"
        flat = torch.from_numpy(self._sums.flat()).to(self._device)
        if num_ranks() > 1:
            dist.reduce(flat, dst=0)
        self._asked = step
        if self._maker is not None:
            moments = self._sums.with_flat(flat.cpu().numpy())
            moments.num_clips = self._clips_with_a_class(plan, step, float(moments.weight.sum()))
            write_bytes(self._folder / MOMENTS, _npz(moments, self.classes))
            self._pending = GraphRequest(
                step=step,
                seed=step_seed(self._seed, step, 0) % 2**31,
                moments=moments.to_arrays(),
                search=plan.search,
                init_order=None if self.graph is None else self.graph.order,
            )
            self._maker.submit(self._pending)
        self._sums = None

    def _clips_with_a_class(self, plan: GraphPlan, step: int, counted: float) -> int:
        """About as many clips of the split have a class as of the rows that were counted."""
        first = window_of(plan, step - 1)
        assert first is not None
        sizes = np.diff(self._order.bounds)
        seen = sum(int(sizes[s % self._order.num_batches]) for s in range(first, step))
        return max(2, round(self._order.num_rows * counted / seen))

    def _adopt_if_due(self, plan: GraphPlan, step: int, adopted: Adopted | None) -> None:
        if self._asked is None or step != self._asked + plan.lag:
            return
        before, began = self.graph, time.perf_counter()
        graph, made = before, False
        if self._maker is not None:
            try:
                graph, made = self._maker.result(self._asked), True
            except GraphFailed as error:
                log.warning(
                    "no class graph was made of the soft labels before step %d (%s); the run goes on with %s",
                    self._asked,
                    error,
                    "no graph" if before is None else f"that of step {self._graph_step}",
                )
        waited = time.perf_counter() - began
        self.graph = graph = broadcast(graph, self._num_classes, self._device)
        if graph is not None:
            self._method.adopt(graph)
        if made:
            self._graph_step = self._asked
        if graph is not None and made and adopted is not None:
            adopted(step, graph, {**numbers(graph, before), "version": self._asked, "wait_s": waited})
        self._asked, self._pending = None, None

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and facts for a checkpoint, on rank 0; every rank must ask."""
        tensors: dict[str, Tensor] = {}
        if self._sums is not None:
            sums = gather_sums(torch.from_numpy(self._sums.flat()).to(self._device))
            if sums is not None:
                tensors["sums"] = sums
        if self._pending is not None:
            tensors |= {f"pending.{k}": torch.from_numpy(v) for k, v in self._pending.moments.items()}
            if self._pending.init_order is not None:
                tensors["pending.init_order"] = torch.from_numpy(self._pending.init_order)
        if self.graph is not None:
            tensors |= {f"graph.{name}": value for name, value in graph_tensors(self.graph).items()}
        facts = {
            "num_classes": self._num_classes,
            "asked": self._asked,
            "seed": None if self._pending is None else self._pending.seed,
            "graph": None if self.graph is None else graph_facts(self.graph),
            "graph_step": self._graph_step,
        }
        return tensors, facts

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint; rank 0 asks again for the graph that was not adopted yet.

        With as many ranks as wrote it, bit for bit; with others rank 0 takes the sums of all.
        """
        self._num_classes, self._asked = facts["num_classes"], facts["asked"]
        self._graph_step = facts["graph_step"]
        if facts["graph"] is not None:
            self.graph = graph_of(_part(tensors, "graph."), facts["graph"])
        if "sums" in tensors:
            of_ranks = tensors["sums"]
            if len(of_ranks) == num_ranks():
                own = of_ranks[rank()]
            else:
                own = of_ranks.sum(dim=0) * float(rank() == 0)
            self._sums = self._empty().with_flat(own.numpy())
        if self._asked is not None and self._maker is not None:
            assert self._plan is not None
            arrays = {name: value.numpy() for name, value in _part(tensors, "pending.").items()}
            order = arrays.pop("init_order", None)
            self._pending = GraphRequest(self._asked, facts["seed"], arrays, self._plan.search, order)
            self._maker.submit(self._pending)


def checked(plan: GraphPlan, num_steps: int) -> GraphPlan:
    """The plan without graphs that no step would use.  Raises ValueError where a step would need two at once."""
    if plan.window < 1 or plan.lag < 0 or any(r < 1 for r in plan.refreshes):
        raise ValueError(
            f"a graph plan has window {plan.window}, lag {plan.lag} and refreshes {plan.refreshes}; allowed are a "
            "window of at least 1 step, a lag of at least 0 and refreshes from step 1 on"
        )
    for first, second in pairwise(plan.refreshes):
        if second < first + max(plan.lag, 1):
            raise ValueError(
                f"class graphs are asked for at steps {first} and {second}, and adopted {plan.lag} steps later: the "
                "first would still be made; refresh less often, or lower the lag"
            )
    return replace(plan, refreshes=tuple(r for r in plan.refreshes if r + plan.lag < num_steps))


def window_of(plan: GraphPlan, step: int) -> int | None:
    """The first step of the window that `step` is counted in; None where it is counted in none."""
    i = bisect_right(plan.refreshes, step)
    if i == len(plan.refreshes):
        return None
    first = max(plan.refreshes[i] - plan.window, plan.refreshes[i - 1] if i else 0)
    return first if step >= first else None


@torch.no_grad()
def soft_labels(
    method: Method, views: Mapping[str, Float[Tensor, "b _"]], precision: torch.dtype
) -> dict[str, Float[Tensor, "b c"]]:
    """The teacher's class logits in the precision of training; the method is left in the mode that it was in."""
    training = method.training
    method.eval()
    device = next(iter(views.values())).device.type
    with torch.autocast(device, precision, enabled=precision != torch.float32):
        found = method.soft_labels(views)
    method.train(training)
    return found


def numbers(graph: ClassDependency, before: ClassDependency | None) -> dict[str, float]:
    """Of a graph, and how far it is from the one before it, for the log."""
    found = {
        "edges": float(graph.stable.sum() / 2),
        "weights": float((graph.audio_to_visual > 0).sum() + (graph.visual_to_audio > 0).sum()),
        "false_bound": float(graph.false_bound),
        "permuted_edges": float(graph.permuted_edges),
        "frobenius": float(graph.frobenius),
        "linked": float(graph.verdict == "linked"),
        "complete": float(graph.complete),
    }
    if before is not None:
        found["distance"] = float(np.linalg.norm(graph.direction_frequency - before.direction_frequency))
    return found


def gather_sums(own: Float[Tensor, " m"]) -> Float[Tensor, "ranks m"] | None:
    """The vectors of all ranks on rank 0, None on the others."""
    if num_ranks() == 1:
        return own.unsqueeze(0)
    parts = [torch.empty_like(own) for _ in range(num_ranks())] if rank() == 0 else None
    dist.gather(own, parts, dst=0)
    return None if parts is None else torch.stack(parts)


def broadcast(
    graph: ClassDependency | None, num_classes: int, device: torch.device
) -> ClassDependency | None:
    """The graph of rank 0 on every rank, bit for bit, as one vector of float64."""
    if num_ranks() == 1:
        return graph
    c, v, p = num_classes, 2 * num_classes, 3 * num_classes
    shapes = {
        "audio_to_visual": (c, c), "visual_to_audio": (c, c), "edge_frequency": (v, v),
        "direction_frequency": (v, v), "effects": (v, v), "stable": (v, v), "order": (p,),
    }  # fmt: skip
    facts = ("complete", "permuted_edges", "false_bound", "frobenius", "num_samples")
    size = 2 + len(facts) + sum(int(np.prod(shape)) for shape in shapes.values())
    flat = np.zeros(size)
    if rank() == 0 and graph is not None:
        told = graph_facts(graph)
        head = [1.0, float(told["verdict"] == "linked"), *(float(told[name]) for name in facts)]
        flat = np.concatenate([head, *(getattr(graph, name).astype(float).ravel() for name in shapes)])
    tensor = torch.from_numpy(flat).to(device)
    dist.broadcast(tensor, src=0)
    flat = tensor.cpu().numpy()
    if rank() == 0 or not flat[0]:
        return graph if rank() == 0 else None
    arrays, first = {}, 2 + len(facts)
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        arrays[name] = flat[first : first + size].reshape(shape).copy()
        first += size
    told = dict(zip(facts, flat[2:].tolist(), strict=False))
    return ClassDependency(
        **{**arrays, "stable": arrays["stable"] > 0, "order": arrays["order"].astype(np.int64)},
        verdict="linked" if flat[1] else "unlinked",
        complete=bool(told["complete"]),
        permuted_edges=int(told["permuted_edges"]),
        false_bound=told["false_bound"],
        frobenius=told["frobenius"],
        num_samples=told["num_samples"],
    )


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _npz(moments: MomentAccumulator, classes: Sequence[str]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **moments.to_arrays(), **({"classes": np.array(classes)} if classes else {}))  # type: ignore[arg-type]
    return file.getvalue()

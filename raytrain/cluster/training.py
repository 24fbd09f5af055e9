"""One rank of a run: from a position in it to its end.  Knows nothing of Ray, so that one process can train too."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raytrain.cluster import checkpoint
from raytrain.cluster.checkpoint import Checkpoint, load_optimizer, optimizer_tensors
from raytrain.cluster.diagnostics import Watch
from raytrain.cluster.meter import Meter
from raytrain.cluster.precision import choose_precision
from raytrain.cluster.preemption import Agreement, Heard, Listen, Preempted, nothing
from raytrain.cluster.row_stream import RowStream
from raytrain.cluster.schedule import learning_rate, step_seed
from raytrain.cluster.sources import Source, to_device
from raytrain.cluster.step import WorldLoss, update
from raytrain.cluster.teacher_store import TrainedTeacher
from raytrain.cluster.teaching import Teaching
from raytrain.cluster.validation import Validation
from raytrain.collectives import num_ranks, rank
from raytrain.config import Config, Optim
from raytrain.data.order import SampleOrder, share
from raytrain.graph.dependency import ClassDependency
from raytrain.methods.base import Method
from raytrain.models.ema import Ema
from raytrain.teacher import GraphMaker
from raytrain.types import Progress

CHECKPOINTS = "checkpoints"
BEST = "best"


@runtime_checkable
class Reporter(Protocol):
    """Who is told how the run goes, by rank 0; the other ranks have none."""

    def step(self, step: int, values: dict[str, float]) -> None: ...
    def validated(self, record: dict[str, Any], values: dict[str, float], method: Method) -> None: ...
    def adopted(self, step: int, graph: ClassDependency, values: dict[str, float]) -> None: ...
    def close(self, best: dict[str, Any]) -> None: ...


@dataclass
class State:
    """What a checkpoint holds beside tensors, and all that decides how the run goes on."""

    step: int = 0
    """Steps done."""
    best_score: float = -math.inf
    best_step: int = 0
    stale: int = 0
    """Validations since the best one."""
    stopped: bool = False
    precision: str = ""
    rows: str = "0:0"
    """Fingerprint of the row ids that all steps saw, in order; see `RowStream`."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One record per validation; no timing in it, so that equal runs have equal histories."""


class Training:
    """The tensors and the state of a run on one rank, and the loop over its steps."""

    def __init__(
        self,
        config: Config,
        method: Method,
        order: SampleOrder,
        folder: Path,
        device: torch.device,
        *,
        maker: GraphMaker | None = None,
        given: TrainedTeacher | None = None,
    ):
        """`maker` makes the class graphs and holds the teacher, for rank 0; by default in this process, and nothing
        of it outlives the run.  `given` is the teacher of another run."""
        self.config, self.folder, self.device, self.order = config, folder, device, order
        if given is not None:
            given.give(method)
        self.method = method.to(device)
        if config.train.compile:
            if config.train.diagnose_every is not None:  # one graph is gone through once for every term
                torch._functorch.config.donated_buffer = False
            self.method.towers.compile()
        self.optimizer = make_optimizer(self.method, config.optim)
        decay = config.train.ema_decay
        self.ema = None if decay is None else Ema(self.method, decay)
        self.state = State()
        self.watch = Watch(self.method.parameters(), sample_every=config.train.diagnose_every)
        self._best: dict[str, Tensor] | None = None  # weights with the best score, not yet written
        self._saved_at = time.monotonic()
        self.num_steps = config.train.epochs * order.num_batches
        self.stream = RowStream()
        self._settle()
        found = self._restore()
        if not self.state.precision:
            self.state.precision = choose_precision(config, device)
        self.teaching = Teaching(
            config,
            self.method,
            order,
            folder,
            device,
            precision=getattr(torch, self.state.precision),
            maker=maker,
            graph=None if given is None else given.graph,
        )
        if found is not None:
            self.teaching.restore(found.tensors.get("teaching", {}), found.state["teaching"])
        world_loss = WorldLoss(self.method, getattr(torch, self.state.precision))
        world_loss.watch, world_loss.stream = self.watch, self.stream
        self.world_loss: nn.Module = world_loss
        if num_ranks() > 1:
            self.world_loss = DistributedDataParallel(
                world_loss, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    def run(
        self,
        source: Source,
        validation: Validation,
        reporter: Reporter | None,
        *,
        until: int | None = None,
        listen: Listen = nothing,
    ) -> State:
        """Trains to the end, or until validation has not improved for `train.patience` validations.

        Pauses when `until` epochs are done: another call goes on as if there had been no pause.
        `listen` says what this rank has heard of an end (`raytrain.cluster.preemption`); Preempted where it is END.
        """
        train, state = self.config.train, self.state
        if self.finished:
            self.teaching.finish(state.step)
        if self.finished or (until is not None and state.step >= until * self.order.num_batches):
            return state
        self.watch.num_classes = validation.num_classes
        self.teaching.classes = validation.classes
        agreement = Agreement(listen, self.device)
        meter, since = Meter(), time.perf_counter()
        ranks, batches_per_epoch = num_ranks(), self.order.num_batches
        self.world_loss.train()
        for batch in source.batches(state.step):
            epoch, k = divmod(state.step, batches_per_epoch)
            size = int(self.order.bounds[k + 1] - self.order.bounds[k])
            sizes = tuple(part.stop - part.start for part in (share(size, r, ranks) for r in range(ranks)))
            self._begin_stage(validation)
            self.teaching.before_step(
                state.step, batch, sizes, None if reporter is None else reporter.adopted
            )
            progress = Progress(state.step, epoch, state.step / self.num_steps, train.seed)
            torch.manual_seed(step_seed(train.seed, state.step, rank()))
            rate = learning_rate(state.step, self.num_steps, self.config.optim)
            try:
                updated = update(
                    self.world_loss,
                    self.method,
                    batch,
                    sizes,
                    progress,
                    optimizer=self.optimizer,
                    learning_rate=rate,
                    clip=self.config.optim.clip,
                    ema=self.ema,
                    watch=self.watch,
                )
            except RuntimeError as error:
                if "non-finite" not in str(error):
                    raise
                raise FloatingPointError(
                    f"epoch {epoch + 1}, step {state.step}: the gradient is not finite; nothing was updated. Lower "
                    "optim.lr, set optim.clip, or look for extreme feature values with `raytrain inspect`"
                ) from None
            meter.add(updated, size)
            state.step += 1
            self.teaching.after_step(state.step)
            epoch_ends = k + 1 == batches_per_epoch
            if state.step % train.log_every == 0 or epoch_ends:
                now = time.perf_counter()
                values = {**meter.means(), "lr": rate, "rows_per_s": meter.rows / (now - since)}
                if reporter is not None:
                    reporter.step(state.step, {**values, **self.teaching.log_values()})
                meter, since = Meter(), now
            last = state.step == self.num_steps
            if epoch_ends and ((epoch + 1) % train.validate_every == 0 or last):
                self._validate(epoch, values, validation, reporter)
                since = time.perf_counter()
            elif train.checkpoint_every is not None and state.step % train.checkpoint_every == 0:
                self.save()
            paused = epoch_ends and until is not None and epoch + 1 >= until
            if self.finished or paused:
                break
            heard = agreement.after(state.step)
            if heard != Heard.NOTHING:
                self.save()
            if heard >= Heard.END:
                agreement.finish()
                raise Preempted(heard, state.step)
        agreement.finish()
        assert self.finished or paused, "the source ended before the run did"
        if self.finished:
            self.teaching.finish(state.step)
        return state

    @property
    def finished(self) -> bool:
        return self.state.stopped or self.state.step >= self.num_steps

    @property
    def evaluated(self) -> Method:
        """The module whose embeddings are validated and kept."""
        if self.config.train.evaluate == "ema":
            assert self.ema is not None
            averaged = self.ema.module
            assert isinstance(averaged, Method)
            return averaged
        return self.method

    def _begin_stage(self, validation: Validation) -> None:
        """Where a stage begins: a checkpoint of what was before it, then its beginning, which a resumed run repeats."""
        stage = self.teaching.stages.get(self.state.step)
        if stage is None:
            return
        self.save()
        self.method.eval()
        self.method.begin(stage, to_device(validation.rows, self.device))
        self.world_loss.train()

    def _validate(
        self, epoch: int, values: dict[str, float], validation: Validation, reporter: Reporter | None
    ) -> None:
        train, state = self.config.train, self.state
        scores = validation.score(self.evaluated)
        self.world_loss.train()
        score = scores[validation.selects_by(self.evaluated)]
        improved = train.select == "last" or score > state.best_score
        state.stale = 0 if improved else state.stale + 1
        if improved:
            state.best_score, state.best_step = score, state.step
        state.stopped = train.patience is not None and state.stale >= train.patience
        seen = {f"diagnostics/train/{name}": value for name, value in self.watch.read().items()}
        record = {"epoch": epoch + 1, "step": state.step, **scores, **seen}
        state.history.append(record)
        if improved and rank() == 0:
            self._best = {k: v.detach().clone() for k, v in self.evaluated.state_dict().items()}
        if self._save_is_due():
            self.save()
        if reporter is not None:
            reporter.validated(record, values, self.method)

    def _save_is_due(self) -> bool:
        """After a validated epoch: by the count of steps, or by the clock of rank 0, for all ranks."""
        every = self.config.train.checkpoint_every
        if self.finished or (every is not None and self.state.step % every == 0):
            return True
        old = time.monotonic() - self._saved_at >= self.config.train.checkpoint_seconds
        due = torch.tensor([float(old)], device=self.device)
        if num_ranks() > 1:
            torch.distributed.broadcast(due, src=0)
        return bool(due.item())

    def save(self) -> None:
        """The best weights, if there are new ones, then all that a resumed run needs.

        Every rank holds the same tensors, so rank 0 writes for all.
        """
        seen = self.watch.state_dict()
        teaching, facts = self.teaching.state()
        self.state.rows = str(self.stream)
        if rank() != 0:
            return
        if self._best is not None:
            info = {"step": self.state.best_step, "score": self.state.best_score}
            checkpoint.save(self.folder / BEST, {"model": self._best}, info)
            self._best = None
        tensors = {"model": self.method.state_dict(), "optimizer": optimizer_tensors(self.optimizer)}
        if self.ema is not None:
            tensors["ema"] = self.ema.state_dict()
        if seen:
            tensors["diagnostics"] = seen
        if teaching:
            tensors["teaching"] = teaching
        state = {**_plain(self.state), "teaching": facts}
        folder = self.folder / CHECKPOINTS
        path = checkpoint.path_of_step(folder, self.state.step)
        checkpoint.save(path, tensors, state)
        checkpoint.prune(folder, self.config.train.keep_checkpoints, path)
        self._saved_at = time.monotonic()

    def _settle(self) -> None:
        """Ends what a killed run left half done, before any rank reads a checkpoint."""
        if rank() == 0:
            checkpoint.settle(self.folder)
            checkpoint.settle(self.folder / CHECKPOINTS)
        if num_ranks() > 1:
            torch.distributed.barrier()

    def _restore(self) -> Checkpoint | None:
        found = checkpoint.latest(self.folder / CHECKPOINTS)
        if found is None:
            return None
        self.method.load_state_dict(found.tensors["model"])
        load_optimizer(self.optimizer, found.tensors["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(found.tensors["ema"])
        self.watch.load_state_dict(found.tensors.get("diagnostics", {}), self.device)
        best = found.state["best_score"]
        own = {name: value for name, value in found.state.items() if name != "teaching"}
        self.state = State(**{**own, "best_score": -math.inf if best is None else best})
        self.stream.restore(self.state.rows)
        return found


def _plain(state: State) -> dict[str, Any]:
    """As JSON has it: it knows no infinity."""
    best = None if math.isinf(state.best_score) else state.best_score
    return {**vars(state), "best_score": best}


def make_optimizer(method: Method, optim: Optim) -> torch.optim.Optimizer:
    """Matrices decay; biases, norms and other vectors do not.  `rate` is a group's multiple of the learning rate."""
    rates = method.rates()
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in method.parameters():
        if parameter.requires_grad:
            decay = optim.weight_decay if parameter.dim() > 1 else 0.0
            groups.setdefault((decay, rates.get(parameter, 1.0)), []).append(parameter)
    make: Callable[..., torch.optim.Optimizer]
    make = torch.optim.AdamW if optim.name == "adamw" else torch.optim.Adam
    return make(
        [{"params": of, "weight_decay": decay, "rate": rate} for (decay, rate), of in groups.items()],
        lr=optim.lr,
        betas=optim.betas,
        fused=True,
    )

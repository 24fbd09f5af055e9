"""What every Ray Train worker runs."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from ray import train as ray_train
from ray.actor import ActorHandle
from ray.train.torch import get_device

from raytrain.cluster import checkpoint
from raytrain.cluster.actors import ActorMaker, taken_from
from raytrain.cluster.allocator import keep_freed_memory
from raytrain.cluster.alone import local_maker
from raytrain.cluster.listening import Driver, Ear
from raytrain.cluster.logs import logging_into
from raytrain.cluster.preemption import Heard, Preempted
from raytrain.cluster.reporter import FolderReporter
from raytrain.cluster.run_folder import CONFIG
from raytrain.cluster.schedule import step_seed
from raytrain.cluster.sources import Resident, Source, batch_of, to_device
from raytrain.cluster.stream import Streamed
from raytrain.cluster.training import CHECKPOINTS, Reporter, Training
from raytrain.cluster.validation import Validation
from raytrain.collectives import num_ranks, rank
from raytrain.config import Config
from raytrain.data.reading import Reading
from raytrain.data.schedule import Schedule
from raytrain.methods import build

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """A run, as it travels to the workers."""

    config: Config
    folder: Path
    train: Reading
    validation: Reading
    mailbox: ActorHandle
    teacher: ActorHandle | None
    """Of the run's own teacher, where the method has one."""
    given: tuple[ActorHandle, str] | None
    """The shared teacher of train.teacher, and its fingerprint."""


def first_step_of(folder: Path) -> int:
    """The first step that the newest whole checkpoint has not done."""
    found = checkpoint.latest(folder / CHECKPOINTS)
    return 0 if found is None else found.state["step"]


def train_worker(task: Task) -> dict[str, Any]:
    """Trains one rank to the end; what the user can mend comes back as {"error": message}, not as a crash, and the end
    that the driver asked for as {"stopped": step}."""
    try:
        _check_folder(task.folder)
        with logging_into(task.folder, f"rank-{rank()}"):
            return _logged(task)
    except Preempted as told:
        if told.heard < Heard.STOP:
            raise  # Ray starts the group anew where there is room
        return {"stopped": told.step}
    except (ValueError, FloatingPointError) as error:
        return {"error": str(error)}


def _check_folder(folder: Path) -> None:
    """The same on all ranks.  Raises ValueError where a rank does not see the run's folder."""
    sees = torch.tensor([int((folder / CONFIG).is_file())], device=get_device())
    if num_ranks() > 1:
        torch.distributed.all_reduce(sees, torch.distributed.ReduceOp.MIN)
    if not sees.item():
        raise ValueError(
            f"{folder} is not the same folder on all machines of the cluster; give an --out on storage that they "
            "share (docs/cluster.md)"
        )


def _logged(task: Task) -> dict[str, Any]:
    log.info("rank %d of %d begins, process %d", rank(), num_ranks(), os.getpid())
    try:
        result = _train(task)
    except BaseException as error:
        log.warning("rank %d ends: %s: %s", rank(), type(error).__name__, error)
        raise
    log.info("rank %d is done", rank())
    return result


def _train(task: Task) -> dict[str, Any]:
    config, device = task.config, get_device()
    if device.type == "cpu":
        keep_freed_memory()
    if config.train.deterministic:
        torch.use_deterministic_algorithms(True)
    order = task.train.order(config)
    torch.manual_seed(step_seed(config.train.seed, -1, 0))  # every rank starts from the same weights
    method = build(config, task.train.dataset.manifest)
    training = Training(
        config,
        method,
        order,
        task.folder,
        device,
        maker=_maker(task) if rank() == 0 else None,
        given=None if task.given is None else taken_from(*task.given),
    )
    first_step = training.state.step
    reporter: Reporter | None = None
    driver: Driver | None = None
    if rank() == 0:
        driver = Driver(task.mailbox)
        reporter = FolderReporter(
            config,
            task.folder,
            first_step=first_step,
            history=training.state.history,
            tell=driver.post,
            classes=task.train.dataset.manifest.classes,
        )
    source = _source(task, first_step, device)
    validation = Validation(task.validation, device)
    state = training.run(source, validation, reporter, listen=Ear(driver))
    best = next(record for record in state.history if record["step"] == state.best_step)
    if reporter is not None:
        reporter.close(best)
    return {"best": best, "steps": state.step, "precision": state.precision, "stopped_early": state.stopped}


def _maker(task: Task) -> ActorMaker | None:
    if task.teacher is None:
        return None
    return ActorMaker(task.teacher, lambda: local_maker(task.config, task.train.dataset, task.folder))


def _source(task: Task, first_step: int, device: torch.device) -> Source:
    order = task.train.order(task.config)
    if task.config.data.cache == "stream":
        schedule = Schedule(order, first_step, task.config.train.epochs, num_ranks())

        def blocks() -> Iterator[pa.Table]:
            shard = ray_train.get_dataset_shard("train")
            yield from shard.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)

        return Streamed(blocks, schedule, task.train, rank(), device)
    rows = batch_of(task.train.whole())
    if task.config.data.cache == "device":
        rows = to_device(rows, device)
    return Resident(rows, order, rank(), num_ranks(), device)

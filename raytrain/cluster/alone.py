"""A run in this process, without Ray: for many small runs, and for tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from raytrain.cluster.allocator import keep_freed_memory
from raytrain.cluster.schedule import step_seed
from raytrain.cluster.sources import Resident, batch_of, to_device
from raytrain.cluster.teacher_store import FolderStore, TrainedTeacher, about, read_teacher, settle
from raytrain.cluster.training import Reporter, State, Training
from raytrain.cluster.validation import Validation
from raytrain.config import Config
from raytrain.data.manifest import Dataset
from raytrain.data.reading import Reading
from raytrain.methods import build, resolve
from raytrain.methods.base import Method
from raytrain.teacher import GraphMaker, LocalMaker, Teacher
from raytrain.types import Batch


@dataclass(frozen=True)
class Held:
    """The rows of a data set on a device, for any number of runs that read the same columns of it."""

    reading: Reading
    rows: Batch
    validation: Validation
    device: torch.device

    @classmethod
    def of(cls, config: Config, dataset: Dataset, device: torch.device) -> Held:
        """What runs of a resolved configuration train on and are selected by."""
        reading = Reading.of(dataset, "train", config)
        rows = to_device(batch_of(reading.whole()), device)
        return cls(reading, rows, Validation(Reading.of(dataset, "validation", config), device), device)

    def prepare(
        self, config: Config, folder: Path, kind: type[Training] = Training
    ) -> tuple[Training, Resident]:
        """The run of a resolved configuration, where `folder` has it, and its batches."""
        torch.use_deterministic_algorithms(config.train.deterministic)
        torch.manual_seed(step_seed(config.train.seed, -1, 0))
        method = build(config, self.reading.dataset.manifest)
        order = self.reading.order(config)
        maker, given = local_teacher(config, self.reading.dataset, folder, method)
        training = kind(config, method, order, folder, self.device, maker=maker, given=given)
        return training, Resident(self.rows, order, 0, 1, self.device)


def local_teacher(
    config: Config, dataset: Dataset, folder: Path, method: Method
) -> tuple[GraphMaker | None, TrainedTeacher | None]:
    """Who makes the class graphs of a run without Ray and keeps its teacher, and the teacher that it was given."""
    given = None
    if config.train.teacher is not None:
        given = read_teacher(Path(config.train.teacher), config, dataset)
    if not method.teacher_state():
        return None, given
    settle(folder)
    return local_maker(config, dataset, folder), given


def local_maker(config: Config, dataset: Dataset, folder: Path) -> LocalMaker:
    """A teacher in this process, kept in the folder of its run."""
    return LocalMaker(Teacher(FolderStore(folder, about(config, dataset))))


def train_alone(config: Config, dataset: Dataset, folder: Path, reporter: Reporter | None = None) -> State:
    """Trains a resolved or unresolved configuration on this process's CPU; its best weights lie in `folder`.

    Goes on where `folder` already holds a part of the run.
    """
    config = resolve(config, dataset.manifest)
    keep_freed_memory()
    held = Held.of(config, dataset, torch.device("cpu"))
    training, source = held.prepare(config, folder)
    return training.run(source, held.validation, reporter)

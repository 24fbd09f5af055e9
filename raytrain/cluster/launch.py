"""From a configuration to a finished run: Ray, its workers, and the progress bar of the driver."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import train as ray_train
from ray.train import TrainingFailedError
from ray.train.torch import TorchTrainer
from rich.console import Console

from raytrain.cluster import run_folder
from raytrain.cluster.actors import has_teacher, mailbox, shared_teacher, teacher_actor
from raytrain.cluster.listening import GentleTorchConfig
from raytrain.cluster.local_ray import local_ray, on_cluster
from raytrain.cluster.logs import LOGS, logging_into
from raytrain.cluster.progress import ProgressBar
from raytrain.cluster.stream import stream_config
from raytrain.cluster.teacher_store import read_teacher
from raytrain.cluster.worker import Task, first_step_of, train_worker
from raytrain.config import Config
from raytrain.data.manifest import Dataset, open_dataset
from raytrain.data.reading import Reading
from raytrain.data.schedule import Schedule
from raytrain.methods import build, resolve

WINDOWS_IN_STORE = 12
DEVICE_CACHE_BYTES = 2**32
MEMORY_CACHE_SHARE = 0.25
"""Of the machine's memory, that resident rows of all workers together may fill."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came, and the run ended with a checkpoint."""

    exit_code = 128 + signal.SIGTERM


def train(config: Config, folder: Path, *, console: Console, resume: bool = False) -> dict[str, Any]:
    """Trains a run into `folder` and returns its summary.

    Raises ValueError for whatever the user can mend: a wrong key, a data set that is not one, a folder in use.
    """
    dataset = open_dataset(config.data.path)
    config = resolve(config, dataset.manifest)
    absolute = config.data.model_copy(update={"path": dataset.path})  # the run is read from anywhere
    config = config.model_copy(update={"data": absolute})
    if resume:
        run_folder.check_same_data(folder, dataset)
    if config.train.teacher is not None:
        config = _absolute_teacher(config)
    if config.data.verify == "sha256":
        dataset.verify("train")
        dataset.verify("validation")
    given = _given(config, dataset)
    if resume:
        run_folder.check_same_teacher(folder, given)
    readers_too = max(os.cpu_count() or 1, config.train.workers) + 1  # one CPU for two readers of the stream
    with local_ray(readers_too, object_store_bytes(config)):
        config = _placed(config, Reading.of(dataset, "train", config))
        if not resume:
            run_folder.create(folder, config, dataset, teacher=given)
        with run_folder.held(folder, doing="trains"):
            result = _fit(config, folder, console)
    if "error" in result:
        raise ValueError(result["error"])
    if "stopped" in result:
        raise Terminated(f"told to end; the checkpoint of step {result['stopped']} is written")
    return result


def _absolute_teacher(config: Config) -> Config:
    teacher = str(Path(str(config.train.teacher)).resolve())
    return config.model_copy(update={"train": config.train.model_copy(update={"teacher": teacher})})


def _given(config: Config, dataset: Dataset) -> str | None:
    """The fingerprint of the teacher that the run is given.  Raises ValueError where it cannot take it."""
    if config.train.teacher is None:
        return None
    trained = read_teacher(Path(config.train.teacher), config, dataset)
    trained.give(build(config, dataset.manifest))
    return trained.fingerprint


def object_store_bytes(config: Config) -> int:
    """Room for WINDOWS_IN_STORE windows of the stream; half of it is for blocks on their way to the workers."""
    return int(WINDOWS_IN_STORE * max(config.data.window_mb, 16) * 2**20)


def _placed(config: Config, reading: Reading) -> Config:
    """The configuration with device, threads and cache decided, as the run's folder records it.

    Raises ValueError where GPUs are asked for that the cluster does not have.
    """
    train = config.train
    gpus = ray.cluster_resources().get("GPU", 0)
    device = train.device
    if device == "auto":
        device = "gpu" if gpus >= train.workers else "cpu"
    if device == "gpu" and gpus < train.workers and not on_cluster():  # a cluster may start nodes when asked
        raise ValueError(
            f"train.device = 'gpu' with {train.workers} workers needs as many GPUs, Ray has {gpus:g}; "
            "lower train.workers or set train.device = 'cpu'"
        )
    cpus = train.cpus_per_worker
    if cpus is None:
        cpus = max(1, (os.cpu_count() or 1) // train.workers) if device == "cpu" else 1
    cache = config.data.cache
    if cache == "auto":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if device == "gpu" and reading.nbytes <= DEVICE_CACHE_BYTES:
            cache = "device"
        elif reading.nbytes * train.workers <= MEMORY_CACHE_SHARE * memory:
            cache = "memory"
        else:
            cache = "stream"
    return config.model_copy(
        update={
            "train": train.model_copy(update={"device": device, "cpus_per_worker": cpus}),
            "data": config.data.model_copy(update={"cache": cache}),
        }
    )


def _fit(config: Config, folder: Path, console: Console) -> dict[str, Any]:
    folder = folder.resolve()
    dataset = open_dataset(config.data.path)
    reading, validation = (Reading.of(dataset, split, config) for split in ("train", "validation"))
    order = reading.order(config)
    first_step, num_steps = first_step_of(folder), config.train.epochs * order.num_batches
    console.print(
        f"{order.num_rows:,} rows ({reading.nbytes / 2**20:,.1f} MB) by {config.data.cache}, batches of "
        f"{config.data.batch_size} on {config.train.workers} x {config.train.device}, from step {first_step} to "
        f"{num_steps}, into {folder}",
        highlight=False,
    )
    streams: dict[str, Any] = {}
    if config.data.cache == "stream":
        epochs = config.train.epochs
        streams = {
            "datasets": {
                "train": lambda: ray.data.range(1)
            },  # its place; stream_config puts the stream there
            "dataset_config": stream_config(
                lambda ranks: Schedule(order, first_step_of(folder), epochs, ranks),
                reading,
                object_store_bytes(config) // 2,
            ),
        }
    letters, shared = mailbox(), config.train.teacher
    gpu = config.train.device == "gpu"
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=Task(
            config,
            folder,
            reading,
            validation,
            letters,
            teacher=teacher_actor(config, dataset, folder) if has_teacher(config) else None,
            given=None if shared is None else shared_teacher(Path(shared), config, dataset),
        ),
        scaling_config=ray_train.ScalingConfig(
            num_workers=_num_workers(config),
            use_gpu=gpu,
            resources_per_worker={"CPU": config.train.cpus_per_worker, **({"GPU": 1} if gpu else {})},
        ),
        torch_config=GentleTorchConfig(
            backend="nccl" if gpu else "gloo",
            timeout_s=math.ceil(config.train.stuck_seconds),
            one_machine=not on_cluster() and len(ray.nodes()) == 1,
        ),
        run_config=ray_train.RunConfig(
            name="ray",
            storage_path=str(folder),
            failure_config=ray_train.FailureConfig(max_failures=config.train.max_failures),
        ),
        **streams,
    )
    told = threading.Event()
    with (
        logging_into(folder, "driver"),
        ProgressBar(num_steps, first_step, console) as bar,
        _polling(letters, bar, told),
        _sigterm(told),
    ):
        try:
            result = trainer.fit()
        except TrainingFailedError as error:
            raise ValueError(_words(error, config, folder)) from None
        except SystemExit:  # Ray's answer to Ctrl-C, once it has stopped the workers
            raise KeyboardInterrupt from None
    assert isinstance(result.return_value, dict)
    return result.return_value


def _num_workers(config: Config) -> int | tuple[int, int]:
    train = config.train
    return train.workers if train.min_workers is None else (train.min_workers, train.workers)


def _words(error: TrainingFailedError, config: Config, folder: Path) -> str:
    """What the user reads where the workers failed too often: why each rank did, and where the rest of it is."""
    failures = getattr(error, "worker_failures", {None: getattr(error, "controller_failure", error)})
    said = "; ".join(
        f"{'' if of is None else f'rank {of}: '}{next(iter(reversed(str(why).strip().splitlines())), repr(why))}"
        for of, why in failures.items()
    )
    return (
        f"the workers failed more than train.max_failures = {config.train.max_failures} times; the last time: {said}. "
        f"See {folder / LOGS}; go on with `raytrain train --resume {folder}`"
    )


@contextmanager
def _sigterm(told: threading.Event) -> Iterator[None]:
    """Within the block a first SIGTERM asks the ranks for a checkpoint and their end; a second one ends the driver."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: object) -> None:
        del number, frame
        if told.is_set():
            raise SystemExit(Terminated.exit_code)
        told.set()

    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _polling(letters: Any, bar: ProgressBar, told: threading.Event) -> Iterator[None]:
    """Reads the mailbox beside the block, and once more after it; says in it that the driver was told to end."""
    done = threading.Event()

    def poll() -> None:
        while not done.wait(0.3):
            bar.show(*ray.get(letters.drain.remote(told.is_set())))

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    bar.show(*ray.get(letters.drain.remote()))

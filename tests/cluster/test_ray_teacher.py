"""The teacher on real actors: few tests, for Ray's processes start slowly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from torch import Tensor

from raytrain.cluster import checkpoint
from raytrain.cluster.actors import ActorMaker, shared_teacher, soft_labels_from, taken_from, teacher_actor
from raytrain.cluster.alone import local_maker, local_teacher
from raytrain.cluster.local_ray import local_ray
from raytrain.cluster.run_folder import read_config
from raytrain.cluster.schedule import step_seed
from raytrain.cluster.sources import Resident, batch_of
from raytrain.cluster.teacher_store import GRAPHS, TEACHER, read_teacher
from raytrain.cluster.training import CHECKPOINTS, Training
from raytrain.cluster.validation import Validation
from raytrain.collectives import num_ranks
from raytrain.config import build
from raytrain.data.manifest import Dataset
from raytrain.data.reading import Reading
from raytrain.methods import build as build_method
from raytrain.methods import resolve
from raytrain.teacher import make_graph
from tests.cluster.runs import SMALL, finished_run
from tests.datasets import small_dataset
from tests.test_teacher import equal, request
from tests.worlds import run_world

pytestmark = pytest.mark.ray

ILI = (
    "method.name=ili",
    "method.one_view=off",
    "method.search.bootstraps=4",
    "method.t_teach=0.5",
    "train.patience=off",
)
ONLINE = (
    "method.after_teaching=training",
    "method.refresh_every=5",
    "train.epochs=60",
    "train.workers=2",
    "train.cpus_per_worker=1",
    "train.publish_every=7",
    "train.checkpoint_every=10",
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a teacher and a graph."""
    return finished_run(tmp_path_factory.mktemp("trained") / "run", dataset, *ILI)


def newest(folder: Path) -> dict[str, Tensor]:
    found = checkpoint.read(checkpoint.list_steps(folder)[-1])
    return {f"{part} {name}": t for part, group in found.tensors.items() for name, t in group.items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def teachers_of(process: subprocess.Popen[Any]) -> list[psutil.Process]:
    """The processes of the teachers' actors of a run that was started here."""
    try:
        descendants = psutil.Process(process.pid).children(recursive=True)
        return [p for p in descendants if p.cmdline()[:1] and p.cmdline()[0].startswith("ray::TeacherShell")]
    except psutil.NoSuchProcess:
        return []


def test_workers_whose_teachers_are_killed_are_bit_for_bit_two_plain_processes(
    dataset: Dataset, trained: Path, tmp_path: Path
) -> None:
    """With the teacher of another run: its shared actor is killed as well as the run's own."""
    overrides = [*SMALL, *ILI, *ONLINE]
    command = [sys.executable, "-m", "raytrain", "train", dataset.path, "--teacher", str(trained)]
    for text in overrides:
        command += ["--set", text]
    folder = tmp_path / "ray"
    process = subprocess.Popen(
        [*command, "--out", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    killed: set[int] = set()
    try:
        give_up = time.monotonic() + 200
        while process.poll() is None and time.monotonic() < give_up and len(killed) < 2:
            time.sleep(0.2)
            if checkpoint.list_steps(folder / CHECKPOINTS):
                for teacher in teachers_of(process):
                    os.kill(teacher.pid, signal.SIGKILL)
                    killed.add(teacher.pid)
        output, _ = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert len(killed) >= 2, "a teacher of its own and a shared one"
    config = resolve(
        build(overrides=overrides, data={"path": dataset.path}, train={"teacher": str(trained)}),
        dataset.manifest,
    )

    def train(rank: int) -> Tensor:
        torch.use_deterministic_algorithms(True)
        reading = Reading.of(dataset, "train", config)
        torch.manual_seed(step_seed(config.train.seed, -1, 0))
        order, device, plain = reading.order(config), torch.device("cpu"), tmp_path / "plain"
        method = build_method(config, dataset.manifest)
        maker, given = local_teacher(config, dataset, plain, method)
        training = Training(
            config, method, order, plain, device, maker=maker if rank == 0 else None, given=given
        )
        source = Resident(batch_of(reading.whole()), order, rank, num_ranks(), device)
        training.run(source, Validation(Reading.of(dataset, "validation", config), device), None)
        return torch.zeros(1)

    run_world(2, train, tmp_path)
    for part in (CHECKPOINTS, TEACHER, GRAPHS):
        assert same(newest(folder / part), newest(tmp_path / "plain" / part)), part
    graphs = [
        [path.name for path in checkpoint.list_steps(run / GRAPHS)] for run in (folder, tmp_path / "plain")
    ]
    assert graphs[0] == graphs[1] and len(graphs[0]) > 3
    assert (folder / "moments.npz").is_file()


def test_actors_by_handle_and_by_fingerprint(dataset: Dataset, trained: Path, tmp_path: Path) -> None:
    config = read_config(trained)
    mine = read_teacher(trained, config, dataset)
    reading = Reading.of(dataset, "validation", config)
    views = batch_of(reading.whole()).views
    method = build_method(config, dataset.manifest).eval()
    method.load_teacher(mine.weights)
    expected = method.soft_labels(views)
    with local_ray(2, int(2e8)):
        shared, fingerprint = shared_teacher(trained, config, dataset)
        again, _ = shared_teacher(trained, config, dataset)
        pid = ray.get(shared.pid.remote())
        assert ray.get(again.pid.remote()) == pid, "one actor for all who ask for this teacher"
        found = soft_labels_from(shared, views)
        assert all(torch.equal(found[view], expected[view]) for view in expected)
        taken = taken_from(shared, fingerprint)
        assert taken.fingerprint == mine.fingerprint and taken.graph is not None
        with pytest.raises(ValueError, match="its folder has changed since"):
            taken_from(shared, "0" * 64)
        with pytest.raises(ValueError, match="a shared teacher does not change"):
            ray.get(shared.publish.remote(10**9, dict(mine.weights)))
        os.kill(pid, signal.SIGKILL)
        found = soft_labels_from(shared, views)
        assert all(torch.equal(found[view], expected[view]) for view in expected)
        assert ray.get(shared.pid.remote()) != pid

        own = teacher_actor(config, dataset, tmp_path)
        maker = ActorMaker(own, lambda: local_maker(config, dataset, tmp_path))
        maker.publish(10, lambda: dict(mine.weights), last=True)
        maker.submit(request())
        assert equal(maker.result(40), make_graph(request()))
        os.kill(ray.get(own.pid.remote()), signal.SIGKILL)
        state = ray.get(own.state.remote())
        assert state["version"] == 10 and state["graphs"] == 1 and state["graphs_made"] == 0

"""The same runs on real Ray Train workers: few, for each costs a quarter of a minute."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from raytrain.cluster import checkpoint
from raytrain.cluster.run_folder import read_config
from raytrain.cluster.schedule import step_seed
from raytrain.cluster.sources import Resident, batch_of
from raytrain.cluster.training import CHECKPOINTS, Training
from raytrain.cluster.validation import Validation
from raytrain.collectives import num_ranks
from raytrain.config import build
from raytrain.data.manifest import Dataset
from raytrain.data.reading import Reading
from raytrain.methods import build as build_method
from raytrain.methods import resolve
from tests.cluster.runs import SMALL
from tests.datasets import small_dataset
from tests.worlds import run_world

pytestmark = pytest.mark.ray

OPTIONS = [*SMALL, "train.workers=2", "train.patience=off", "train.cpus_per_worker=1", "method.loss=supcon"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data"))


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "raytrain", "train", *arguments]


def settings(*overrides: str) -> list[str]:
    return [text for override in (*OPTIONS, *overrides) for text in ("--set", override)]


def final(folder: Path) -> dict[str, Tensor]:
    found = checkpoint.latest(folder / CHECKPOINTS)
    assert found is not None
    return {f"{part} {name}": t for part, group in found.tensors.items() for name, t in group.items()}


def test_a_stream_on_ray_workers_is_bit_for_bit_the_run_of_two_plain_processes(
    dataset: Dataset, tmp_path: Path
) -> None:
    overrides = ("data.cache=stream", "data.window_mb=0.003", "data.batch_size=45")
    done = subprocess.run(
        command(os.path.relpath(dataset.path), "--out", str(tmp_path / "ray"), *settings(*overrides)),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    path = Path(read_config(tmp_path / "ray").data.path)
    assert path.is_absolute() and path.samefile(dataset.path), "a run must be readable from anywhere"
    config = resolve(build(overrides=[*OPTIONS, *overrides], data={"path": dataset.path}), dataset.manifest)

    def train(rank: int) -> Tensor:
        torch.use_deterministic_algorithms(True)
        reading = Reading.of(dataset, "train", config)
        torch.manual_seed(step_seed(config.train.seed, -1, 0))
        order, device = reading.order(config), torch.device("cpu")
        method = build_method(config, dataset.manifest)
        training = Training(config, method, order, tmp_path / "plain", device)
        source = Resident(batch_of(reading.whole()), order, rank, num_ranks(), device)
        training.run(source, Validation(Reading.of(dataset, "validation", config), device), None)
        return torch.zeros(1)

    run_world(2, train, tmp_path)
    on_ray, plain = final(tmp_path / "ray"), final(tmp_path / "plain")
    assert on_ray.keys() == plain.keys()
    assert all(torch.equal(on_ray[name], plain[name]) for name in plain)
    lines = (tmp_path / "ray" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4]


def test_ctrl_c_leaves_a_run_that_goes_on_to_the_same_end(dataset: Dataset, tmp_path: Path) -> None:
    overrides = (
        "train.epochs=150",
        "train.checkpoint_every=5",
        "train.keep_checkpoints=3",
        "model.dropout=0.3",
    )
    folder = tmp_path / "run"
    process = subprocess.Popen(
        command(dataset.path, "--out", str(folder), *settings(*overrides)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        give_up = time.monotonic() + 120
        while not checkpoint.list_steps(folder / CHECKPOINTS) and time.monotonic() < give_up:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, output
    assert f"raytrain train --resume {folder}" in output.replace("\n", "")
    assert "Traceback" not in output
    interrupted_at = int(checkpoint.list_steps(folder / CHECKPOINTS)[-1].name.removeprefix("step-"))
    num_steps = 150 * 4
    assert 0 < interrupted_at < num_steps
    resumed = subprocess.run(
        command("--resume", str(folder)), capture_output=True, text=True, timeout=300, check=False
    )
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    end = checkpoint.latest(folder / CHECKPOINTS)
    assert end is not None and end.state["step"] == num_steps
    assert os.environ.get("RAY_ADDRESS") is None
    records = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == list(range(1, 151))

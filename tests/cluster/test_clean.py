"""What a verb that starts Ray opens while it runs, and what it leaves when it ends: nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raytrain.cluster import checkpoint
from raytrain.cluster.training import CHECKPOINTS
from tests.cluster.runs import SMALL
from tests.cluster.traces import listening, marked, nothing_left
from tests.datasets import small_dataset

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def settings(*overrides: str) -> list[str]:
    given = (*SMALL, "train.workers=2", "train.patience=off", "train.cpus_per_worker=1", *overrides)
    return [text for override in given for text in ("--set", override)]


def test_sigterm_ends_a_run_with_a_checkpoint_and_nothing_else_stays(tmp_path: Path) -> None:
    """While it runs everything listens on loopback alone, and the session folder of Ray is the run's own."""
    dataset, folder = small_dataset(tmp_path), tmp_path / "run"
    overrides = settings("train.epochs=5000", "train.checkpoint_every=50", "train.log_every=5")
    with nothing_left() as (mark, environment):
        process = subprocess.Popen(
            [sys.executable, "-m", "raytrain", "train", dataset.path, "--out", str(folder), *overrides],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        try:
            give_up = time.monotonic() + 240
            while not checkpoint.list_steps(folder / CHECKPOINTS) and time.monotonic() < give_up:
                time.sleep(0.05)
            assert len(marked(mark)) > 5
            assert listening(mark) == {"127.0.0.1"}
            (session,) = Path("/tmp").glob(f"raytrain-{process.pid}-*")
            assert (session / "session_latest").is_dir()
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=240)
        finally:
            process.kill()
    assert process.returncode == 128 + signal.SIGTERM, output
    said = " ".join(output.split())
    step = int(checkpoint.list_steps(folder / CHECKPOINTS)[-1].name.removeprefix(checkpoint.PREFIX))
    assert f"told to end; the checkpoint of step {step} is written" in said
    assert "raytrain train --resume" in said and "Traceback" not in said
    found = checkpoint.latest(folder / CHECKPOINTS)
    assert found is not None and found.state["step"] == step and step % 50
    assert {path.name for path in (folder / "logs").iterdir()} >= {"driver.log", "rank-0.log", "rank-1.log"}
    assert "rank 1 of 2 begins" in (folder / "logs" / "rank-1.log").read_text()


def test_a_run_that_fails_leaves_nothing(tmp_path: Path) -> None:
    dataset, folder = small_dataset(tmp_path), tmp_path / "run"
    overrides = settings("optim.lr=1e30", "optim.clip=off", "optim.warmup=0.0", "model.norm=none")
    with nothing_left() as (_, environment):
        done = subprocess.run(
            [sys.executable, "-m", "raytrain", "train", dataset.path, "--out", str(folder), *overrides],
            capture_output=True,
            text=True,
            timeout=240,
            env=environment,
            check=False,
        )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "the gradient is not finite; nothing was updated" in done.stderr
    assert "Traceback" not in done.stderr

"""A run is killed again and again; it must end as if it had not been, and lose little time.

    python benchmarks/resume.py [--short] [--kills 20] [--ranks 1 2] [--only forked|ray]

1. Forked ranks on gloo: one run on 1 and one on 2 ranks, killed `--kills` times each (SIGKILL, by turns SIGTERM) at
   steps and ranks drawn by lot.  Goodput is the CPU time of an undisturbed run without checkpoints, from its first
   step on, over that of all processes of the killed one from their first steps on: checkpoints, steps that are done
   again and the step in which the process was killed are counted, starting processes is not.
2. Real Ray Train with two workers, not with --short: SIGKILL of a worker (recovery: from the kill to the
   next step; cold start: from `raytrain train` to the first step), of the driver, of the raylet, then --resume.

`equal` counts the kills of runs that ended with the digests of the undisturbed run (`raytrain.cluster.identity`).
The last line is JSON: kills, equal, recovery_over_cold (null without Ray), goodput (the least of the runs).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import psutil

from raytrain.cluster import checkpoint
from raytrain.cluster.alone import train_alone
from raytrain.cluster.forked import CPU, DONE, EXECUTED, FIRST_CPU, World
from raytrain.cluster.identity import run_digest
from raytrain.cluster.training import CHECKPOINTS
from raytrain.config import build
from raytrain.data.manifest import Dataset
from raytrain.data.scene_config import SceneConfig
from raytrain.data.scenes import generate_scenes

OPTIONS = (
    "model.hidden=[64]",
    "data.batch_size=400",
    "data.cache=memory",
    "train.precision=float32",
    "train.patience=off",
    "train.validate_every=4",
    "train.checkpoint_seconds=1e9",
    "train.ema_decay=0.99",
)


def forked(dataset: Dataset, scratch: Path, ranks: int, kills: int, steps_between: int) -> dict[str, Any]:
    """A run with `kills` kills; steps between two of them are between a half and one and a half of `steps_between`."""
    batches = round(dataset.split("train").rows / 400)
    epochs = -(-(kills + 1) * steps_between // batches)
    config = build(overrides=[*OPTIONS, f"train.epochs={epochs}", "train.checkpoint_every=30"])
    unsaved = build(overrides=[*OPTIONS, f"train.epochs={epochs}"])
    plain = World(unsaved, dataset.path, scratch / f"plain-{ranks}", ranks)
    plain.start()
    code = plain.wait(3600.0)
    assert code == DONE, plain.said().read_text()
    num_steps = epochs * batches
    step_s = float(plain.seen[CPU] - plain.seen[FIRST_CPU]) / (num_steps - 1)
    cold = float(plain.seen[FIRST_CPU])
    draw, world = random.Random(ranks), World(config, dataset.path, scratch / f"killed-{ranks}", ranks)
    spent, recoveries, at = 0.0, [], 0
    for number in range(kills):
        at += draw.randrange(steps_between // 2, steps_between * 3 // 2)
        at = min(at, num_steps - (kills - number) * 2)
        world.start()
        signal_of_turn = signal.SIGTERM if number % 4 == 3 else signal.SIGKILL
        hit = world.kill_at(at, draw.randrange(ranks), signal_of_turn, draw.random() * 0.05)
        assert hit, "the run was over before it could be killed"
        world.wait()
        spent += (
            float(world.seen[CPU] - world.seen[FIRST_CPU]) + step_s
        )  # the last one was begun, and is lost
        recoveries.append(float(world.seen[FIRST_CPU]))
    world.start()
    world.wait(3600.0)
    spent += float(world.seen[CPU] - world.seen[FIRST_CPU]) + step_s
    same = run_digest(plain.folder) == run_digest(world.folder)
    return {
        "ranks": ranks,
        "steps": num_steps,
        "executed": int(world.seen[EXECUTED]),
        "kills": kills,
        "equal": kills if same else 0,
        "goodput": num_steps * step_s / spent,
        "cold_cpu_s": cold,
        "restart_cpu_s": statistics.median(recoveries[1:]),
    }


class RayRun:
    """`raytrain train` on two Ray workers, in a process of its own."""

    def __init__(self, folder: Path, arguments: list[str]):
        self.folder, self.started = folder, time.monotonic()
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "raytrain", "train", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )

    def newest(self) -> int:
        steps = checkpoint.list_steps(self.folder / CHECKPOINTS)
        return int(steps[-1].name.removeprefix(checkpoint.PREFIX)) if steps else 0

    def until_past(self, step: int, seconds: float = 240.0) -> float:
        """Waits for a checkpoint of a later step; the time since the start of the process."""
        give_up = time.monotonic() + seconds
        while self.newest() <= step:
            if time.monotonic() > give_up or self.process.poll() is not None:
                raise RuntimeError(f"no step after {step}: {self.end()}")
            time.sleep(0.02)
        return time.monotonic() - self.started

    def end(self) -> str:
        output, _ = self.process.communicate(timeout=600)
        return output

    def children(self, name: str) -> list[psutil.Process]:
        below = psutil.Process(self.process.pid).children(recursive=True)
        return [process for process in below if name in " ".join(process.cmdline())[:200]]


def on_ray(dataset: Dataset, scratch: Path) -> dict[str, Any]:
    """SIGKILL of a worker, of the driver and of the raylet, in one run; an undisturbed one beside it."""
    common = [
        *OPTIONS,
        "train.epochs=30",
        "train.workers=2",
        "train.cpus_per_worker=1",
        "train.checkpoint_every=2",
    ]
    common += ["train.keep_checkpoints=3"]
    settings = [text for option in common for text in ("--set", option)]

    def start(name: str) -> RayRun:
        return RayRun(scratch / name, [dataset.path, "--out", str(scratch / name), *settings])

    plain = start("ray-plain")
    plain.until_past(0)
    output = plain.end()
    assert plain.process.returncode == 0, output
    run, kills, colds, recoveries = start("ray-killed"), 0, [], []
    colds.append(run.until_past(0))
    for _ in range(2):
        victim = random.Random(kills).choice(run.children("RayTrainWorker"))
        at = time.monotonic()
        victim.kill()
        kills += 1
        victim.wait()
        run.until_past(run.newest() + 2)
        recoveries.append(time.monotonic() - at)
    for what in ("driver", "raylet"):
        below = psutil.Process(run.process.pid).children(recursive=True)
        (run.process if what == "driver" else run.children("raylet/raylet")[0]).kill()
        kills += 1
        output = run.end()
        _, alive = psutil.wait_procs(below, timeout=120)
        assert not alive, f"{alive} outlive the {what}"
        run = RayRun(run.folder, ["--resume", str(run.folder)])
        colds.append(run.until_past(run.newest()))
    output = run.end()
    assert run.process.returncode == 0, output
    same = run_digest(scratch / "ray-plain") == run_digest(run.folder)
    return {
        "kills": kills,
        "equal": kills if same else 0,
        "cold_s": [round(s, 1) for s in colds],
        "recovery_s": [round(s, 1) for s in recoveries],
        "recovery_over_cold": statistics.mean(recoveries) / statistics.mean(colds),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--only", choices=("forked", "ray"))
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
    kills, between = (4, 100) if options.short else (options.kills, 400)
    parts: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="resume-") as folder:
        scratch = Path(folder)
        generate_scenes(scratch / "data", config=SceneConfig(clips=6000), overwrite=False)
        from raytrain.data.manifest import open_dataset

        dataset = open_dataset(scratch / "data")
        warm = build(overrides=[*OPTIONS, "train.epochs=1"])
        train_alone(warm, dataset, scratch / "warm")  # what the forked ranks would import, they inherit
        for ranks in [1] if options.short else options.ranks:
            if options.only != "ray":
                parts.append(forked(dataset, scratch, ranks, kills, between))
                print(json.dumps(parts[-1]), flush=True)
        if options.only == "ray" or not (options.short or options.only):
            parts.append(on_ray(dataset, scratch))
            print(json.dumps(parts[-1]), flush=True)
    goodputs = [part["goodput"] for part in parts if "goodput" in part]
    found = {
        "kills": sum(part["kills"] for part in parts),
        "equal": sum(part["equal"] for part in parts),
        "recovery_over_cold": next(
            (round(p["recovery_over_cold"], 3) for p in parts if "recovery_s" in p), None
        ),
        "goodput": round(min(goodputs), 3) if goodputs else None,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()

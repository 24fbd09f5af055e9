"""The search against plain Ray Tune and against random search, its overhead, and what SIGKILL does to it.

    python benchmarks/search.py [--short] [--data DATA] [--only speed|kills|efficiency]

speed        trials per hour at trials of about one second, against plain Ray Tune with a fresh actor for each trial;
             and the share of a two-second trial that is not training.  The same runs, one at a time, in turns; wall
             time, for what counts is waiting.  Ray is up already in both; the start of our worker is counted.
kills        the driver is killed (SIGKILL) at random moments and goes on with --resume until it is through: the same
             trials in parameters, states and scores as an undisturbed search, one at a time with TPE.
efficiency   epochs until ASHA + TPE reaches the best validation score of a random search of 64 trials, as a share of
             the epochs of that; not in --short.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")

import numpy as np

from raytrain.data.manifest import Dataset, open_dataset
from tune.driver import Base, Search, Trial
from tune.rungs import Rungs
from tune.sampling import Memoryless, SamplerName
from tune.space import SPACES, Real, Space
from tune.storage import Journal, open_study
from tune.workers import Here, Pool, Resources, actors

LEARNING_RATE: Space = {"optim.lr": Real(1e-3, 3e-3, log=True)}
SAMPLER_SEED = 11
SEARCH = Path(__file__).resolve().parent.parent / "tune" / "search.py"


def demo_data(folder: Path) -> str:
    from raytrain.data.scene_config import SceneConfig
    from raytrain.data.scenes import generate_scenes

    generate_scenes(folder, config=SceneConfig(clips=2000, audio_size=64, visual_size=128))
    return str(folder)


def values_of(data: str, epochs: int, **model: Any) -> dict[str, Any]:
    return {
        "data": {"path": data},
        "model": model,
        "method": {"name": "metric"},
        "train": {"epochs": epochs, "precision": "float32", "patience": None},
    }


def search_of(
    folder: Path,
    dataset: Dataset,
    values: dict[str, Any],
    *,
    num_trials: int,
    space: Space = LEARNING_RATE,
    sampler: SamplerName = "tpe",
    rungs: Rungs | None = None,
    seed: int = SAMPLER_SEED,
) -> Search:
    folder.mkdir(parents=True)
    fixed = {"model.hidden": values["model"]["hidden"]}
    common = space.keys() - fixed.keys()
    memoryless = Memoryless(sampler, seed=seed, startup=10, parallel=False, common=common)
    return Search(
        folder=folder,
        journal=Journal(folder / "journal.jsonl"),
        study=open_study(folder, memoryless, ["maximize"]),
        space=space,
        fixed=fixed,
        base=Base(values, dataset.manifest),
        objectives=("map",),
        rungs=rungs,
        epochs=values["train"]["epochs"],
        num_trials=num_trials,
        counts_stopped=False,
    )


def run_ours(search: Search, pool: Pool) -> float:
    """Wall seconds."""
    from tune.board import Board

    search.told = Board(search.folder)
    start = time.perf_counter()
    search.run(pool)
    assert all(trial.state == "complete" for trial in search.trials.values())
    return time.perf_counter() - start


def plain_trial(config: dict[str, Any]) -> None:
    """What a user would write: a function that Tune runs in an actor of its own."""
    import torch
    from ray import tune as ray_tune

    from raytrain.cluster.alone import train_alone
    from raytrain.config import build

    torch.set_num_threads(1)
    values = json.loads(config["values"])
    values["optim"] = {"lr": config["lr"]}
    with TemporaryDirectory() as folder:
        state = train_alone(build(**values), open_dataset(values["data"]["path"]), Path(folder))
    ray_tune.report({"score": state.best_score})


def run_plain(folder: Path, values: dict[str, Any], num_trials: int) -> float:
    """Wall seconds of plain Ray Tune with Optuna, a fresh actor for each trial, one at a time."""
    from ray import tune as ray_tune
    from ray.tune.search.optuna import OptunaSearch

    tuner = ray_tune.Tuner(
        ray_tune.with_resources(plain_trial, {"cpu": 1}),
        param_space={"lr": ray_tune.loguniform(1e-3, 3e-3), "values": json.dumps(values)},
        tune_config=ray_tune.TuneConfig(
            metric="score",
            mode="max",
            num_samples=num_trials,
            max_concurrent_trials=1,
            search_alg=OptunaSearch(seed=SAMPLER_SEED),
            reuse_actors=False,
        ),
        run_config=ray_tune.RunConfig(storage_path=str(folder), verbose=0),
    )
    start = time.perf_counter()
    results = tuner.fit()
    seconds = time.perf_counter() - start
    assert len(results) == num_trials and not results.errors
    return seconds


def epochs_for(seconds: float, data: str, folder: Path, **model: Any) -> int:
    """Epochs that train for about so many seconds here and now."""
    dataset = open_dataset(data)
    pool = Here(data, threads=1, device="cpu")
    for attempt in range(2):  # the first holds what is done once
        search = search_of(
            folder / f"calibration-{attempt}", dataset, values_of(data, 10, **model), num_trials=1
        )
        search.run(pool)
    return max(2, round(10 * seconds / search.trials[0].busy_s))


def speed(data: str, folder: Path, *, rounds: int, ours: int, plain: int) -> dict[str, Any]:
    model = {"hidden": [256]}
    dataset = open_dataset(data)
    one, two = (epochs_for(seconds, data, folder / f"for-{seconds}", **model) for seconds in (1, 2))
    ratios, shares = [], []
    for k in range(rounds):
        values = values_of(data, one, **model)
        with actors(data, 1, Resources(1, 0)) as pool:
            search = search_of(folder / f"ours-{k}", dataset, values, num_trials=ours)
            a = run_ours(search, pool) / ours
            b = run_plain(folder / f"plain-{k}", values, plain) / plain
            longer = search_of(
                folder / f"longer-{k}", dataset, values_of(data, two, **model), num_trials=ours // 2
            )
            c = run_ours(longer, pool)
        busy = sum(trial.busy_s for trial in longer.trials.values())
        ratios.append(b / a)
        shares.append((c - busy) / c)
        print(
            f"round {k}: ours {a:.2f} s a trial ({_busy(search):.2f} s training), plain Tune {b:.2f} s: "
            f"{ratios[-1]:.1f} x;  of a trial with {_busy(longer):.2f} s of training {shares[-1]:.1%} is overhead"
        )
    return {
        "vs_plain_tune": round(float(np.median(ratios)), 2),
        "vs_plain_tune_range": [round(min(ratios), 2), round(max(ratios), 2)],
        "overhead_share": round(float(np.median(shares)), 4),
        "overhead_share_range": [round(min(shares), 4), round(max(shares), 4)],
    }


def _busy(search: Search) -> float:
    return float(np.median([trial.busy_s for trial in search.trials.values()]))


def command(data: str, out: Path, trials: int, way: str) -> list[str]:
    shape = (
        f"--method metric --trials {trials} --way {way} --concurrency 1 --epochs 9 --survivors 1 --seeds 1"
    )
    fixed = "--set model.hidden=[64] --set train.precision=float32 --set train.checkpoint_seconds=0.2"
    return [
        sys.executable, str(SEARCH), data, *shape.split(), *fixed.split(), "--out", str(out), "--resume"
    ]  # fmt: skip


def trials_of(out: Path) -> list[Any]:
    """What Optuna has: parameters, states and values by number."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{out / 'study.db'}")
    return [(t.number, t.state.name, t.params, t.values) for t in study.trials]


def kills(data: str, folder: Path, *, wanted: int, trials: int, way: str) -> dict[str, Any]:
    """SIGKILL at moments spread evenly over the time from the first trial to the end."""
    generator = np.random.default_rng(0)
    start = time.monotonic()
    _watched(command(data, folder / "whole", trials, way), None)
    whole, begins = trials_of(folder / "whole"), _seconds_to_first(folder / "whole", start)
    length = time.monotonic() - start - begins
    assert len(whole) == trials
    done = good = searches = 0
    while done < wanted:
        out, own = folder / f"killed-{searches}", 0
        while own < min(5, wanted - done):
            after = float(generator.uniform(0, 0.5 * length))
            if not _watched(command(data, out, trials, way), (out, after)):
                break  # it was through before
            own += 1
        _watched(command(data, out, trials, way), None)
        same = trials_of(out) == whole
        journal = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
        ended = sorted(found["trial"] for found in journal if found["what"] == "ended")
        same = same and ended == list(range(trials)) and (out / "report.html").exists()
        done, good, searches = done + own, good + own * same, searches + 1
        print(f"search {searches}: {own} kills, {'the same trials' if same else 'OTHER TRIALS'}", flush=True)
    return {"kills": done, "resumed": good, "kills_searches": searches}


def _seconds_to_first(out: Path, start: float) -> float:
    begun = (out / "search.json").stat().st_mtime
    return begun - (time.time() - (time.monotonic() - start))


def _watched(call: list[str], kill: tuple[Path, float] | None) -> bool:
    """Runs a search; kills its driver so many seconds after its journal began to grow.  Whether it was killed."""
    process = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if kill is not None:
        out, after = kill
        journal = out / "journal.jsonl"
        size = journal.stat().st_size if journal.exists() else 0
        while process.poll() is None and (journal.stat().st_size if journal.exists() else 0) == size:
            time.sleep(0.02)
        end = time.monotonic() + after
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            return True
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return False


class _Enough(Exception):
    """The score to be reached is reached, or the epochs are spent."""


def efficiency(data: str, folder: Path, *, seeds: int, trials: int, epochs: int) -> dict[str, Any]:
    dataset, values = open_dataset(data), values_of(data, epochs, hidden=[64])
    pool, space = Here(data, threads=1, device="cpu"), SPACES["metric"]
    shares = []
    for seed in range(seeds):
        random = search_of(
            folder / f"random-{seed}",
            dataset,
            values,
            num_trials=trials,
            space=space,
            sampler="random",
            seed=seed,
        )
        random.run(pool)
        assert random.best is not None
        target, budget = random.best.score, trials * epochs
        ours = search_of(
            folder / f"ours-{seed}",
            dataset,
            values,
            num_trials=10_000,
            space=space,
            rungs=Rungs(1, 3, epochs),
            seed=1000 + seed,  # with the same seed the first ten trials would be those of random search
        )

        def watch(trial: Trial, ours: Search = ours, target: float = target, budget: int = budget) -> None:
            if trial.score >= target or sum(t.epoch for t in ours.trials.values()) > budget:
                raise _Enough

        ours.told = watch
        with contextlib.suppress(_Enough):
            ours.run(pool)
        spent, best = (
            sum(trial.epoch for trial in ours.trials.values()),
            max(t.score for t in ours.trials.values()),
        )
        shares.append(spent / budget if best >= target else float("inf"))
        print(
            f"seed {seed}: random {target:.4f} with {budget} epochs, ASHA + TPE {best:.4f} with {spent} "
            f"({shares[-1]:.3f}, {len(ours.trials)} trials)",
            flush=True,
        )
    return {
        "epochs_share": round(float(np.median(shares)), 3),
        "epochs_share_of_seeds": [round(share, 3) for share in shares],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__
    )
    parser.add_argument("--data", help="a data set; without it a small demo world")
    parser.add_argument("--only", choices=["speed", "kills", "efficiency"])
    parser.add_argument(
        "--way", choices=["workers", "here"], default="workers", help="of the searches that are killed"
    )
    parser.add_argument("--rounds", type=int, default=7, help="of speed")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5, help="of efficiency")
    parser.add_argument("--epochs", type=int, default=27, help="of a whole trial of efficiency")
    parser.add_argument("--short", action="store_true", help="one round of speed, one kill, no efficiency")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = options.data or demo_data(folder / "data")
        parts = (
            [options.only] if options.only else ["speed", "kills", *([] if options.short else ["efficiency"])]
        )
        if "speed" in parts:
            from raytrain.cluster.local_ray import local_ray

            with local_ray(2, 2**27):
                size = (
                    {"rounds": 1, "ours": 6, "plain": 2}
                    if options.short
                    else {"rounds": options.rounds, "ours": 16, "plain": 4}
                )
                found |= speed(data, folder / "speed", **size)
        if "kills" in parts:
            wanted, way = (1, "here") if options.short else (options.kills, options.way)
            found |= kills(data, folder / "kills", wanted=wanted, trials=8, way=way)
        if "efficiency" in parts:
            found |= efficiency(
                data, folder / "efficiency", seeds=options.seeds, trials=64, epochs=options.epochs
            )
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""Full-size trials: Ray Train inside Ray Tune.  The same space, storage and journal as everywhere else.

A trial is a Tune function that starts a run as `raytrain train` does, with its own workers, and reports what the run
writes into its history.  Tune's ASHAScheduler decides; what it had heard before a kill it hears again from the journal.
Tune's own experiment state is written and never read: trials go on from the search's storage and their checkpoints.

The dashboard is on, at loopback: without it a stopped trial keeps its workers' places for ever (Ray 2.60).
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections import Counter, deque
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray import tune as ray_tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import Searcher
from rich.console import Console

from raytrain.cluster import run_folder
from raytrain.config import Config, validate
from tune.driver import ATTEMPTS, Search, Trial
from tune.storage import TRIALS
from tune.trials import Job, Reached
from tune.workers import Failed, one_line

OBJECT_STORE_BYTES = 2**29
TUNE_STATE = "tune"
POLL_S = 0.3


def launched(config: Config, folder: Path) -> dict[str, Any]:
    """A run on Ray Train, begun or gone on with."""
    from raytrain.cluster.launch import train

    resume = (folder / run_folder.CONFIG).is_file()
    if resume:
        config = run_folder.read_config(folder)
    return train(config, folder, console=Console(file=StringIO()), resume=resume)


def scores_of(folder: Path, name: str) -> list[float]:
    """The score of every validation that the run has written."""
    path = folder / run_folder.HISTORY
    text = path.read_text() if path.exists() else ""
    return [json.loads(line)[name] for line in text[: text.rfind("\n") + 1].splitlines()]


def trial(job: dict[str, Any]) -> None:
    """What Tune runs: reports every validation of the run, until it is stopped or the run ends."""
    folder, reported, start = Path(job["folder"]), 0, time.perf_counter()
    ended: list[BaseException | None] = []

    def run() -> None:
        try:
            launched(validate(Config, json.loads(job["config"])), folder)
            ended.append(None)
        except (ValueError, RuntimeError) as error:
            ended.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while True:
        over = bool(ended)  # before the last look
        curve = scores_of(folder, job["score"])
        for epoch in range(reported + 1, len(curve) + (0 if over else 1)):  # the last one is told below
            ray_tune.report(_result(curve[:epoch], time.perf_counter() - start, ended=False))
        reported = len(curve)
        if over:
            break
        thread.join(POLL_S)
    (error,) = ended
    why = {}
    if error is not None:
        why = {"diverged" if "not finite" in str(error) else "failed": one_line(error)}
    ray_tune.report({**_result(curve, time.perf_counter() - start, ended=True), **why})


def _result(curve: list[float], seconds: float, *, ended: bool) -> dict[str, Any]:
    return {
        "epoch": len(curve),
        "score": max(curve, default=-math.inf),
        "curve": curve,
        "busy_s": seconds,
        "ended": ended,
    }


class Asking(Searcher):
    """Tune's side of a search: asks it for trials, tells it how they go."""

    def __init__(self, search: Search, due: deque[int], score: str):
        super().__init__(metric="score", mode="max")
        self._search, self._due, self._score = search, due, score
        self._number: dict[str, int] = {}
        self._failed = Counter(found["trial"] for found in search.journal.of("failed"))

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        search = self._search
        number = search.next_trial(self._due)
        while number is not None:
            of = search.trials[number]
            try:
                config = search.base.config(of.values)
            except ValueError as error:
                search.end(of, "failed", str(error))
                number = search.next_trial(self._due)
                continue
            self._number[trial_id] = number
            folder = (search.folder / TRIALS / f"{number:05d}").resolve()
            folder.parent.mkdir(parents=True, exist_ok=True)
            search.told(of)
            return {"config": config.model_dump_json(), "folder": str(folder), "score": self._score}
        return Searcher.FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        of = self._heard(self._number[trial_id], result)
        self._search.journal.add("rung", trial=of.number, epoch=of.epoch, score=of.score)
        self._search.told(of)

    def _heard(self, number: int, result: dict[str, Any]) -> Trial:
        of = self._search.trials[number]
        of.epoch, of.score, of.curve = result["epoch"], result["score"], list(result["curve"])
        of.busy_s = round(result["busy_s"], 3)
        return of

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        number = self._number.pop(trial_id)
        of = self._search.trials[number]
        if error or result is None or "curve" not in result or "failed" in result:
            why = "its process ended" if result is None else result.get("failed", "its process ended")
            self._search.journal.add("failed", trial=number, error=why)
            self._failed[number] += 1
            if self._failed[number] < ATTEMPTS:
                self._due.append(number)
            else:
                self._search.end(of, "failed", why)
            return
        self._heard(number, result)
        if "diverged" in result:
            of.score = -math.inf
            self._search.end(of, "stopped", result["diverged"])
        elif result["ended"] or of.epoch >= self._search.epochs:
            self._search.end(of, "complete", "")
        else:
            self._search.end(of, "stopped", "not among the best at its rung")

    def __getstate__(self) -> dict[str, Any]:
        """Tune writes its searcher down; this one's state is the search's own."""
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Asking:
        return self

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: the search has its own storage."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing either."""

    def restore(self, checkpoint_path: str) -> None:
        raise ValueError("Tune's state is not read; go on with --resume")


def scheduler_of(search: Search) -> FIFOScheduler:
    """ASHA with what earlier calls have heard of trials that ended; the others report all of theirs again."""
    if search.rungs is None:
        return FIFOScheduler()
    rungs = search.rungs
    scheduler = ASHAScheduler(
        time_attr="epoch",
        metric="score",
        mode="max",
        max_t=rungs.last,
        grace_period=rungs.first,
        reduction_factor=rungs.factor,
    )
    for found in search.journal.events:
        if found["what"] not in ("rung", "ended") or found["score"] is None:
            continue
        if search.trials[found["trial"]].ended:
            heard = SimpleNamespace(trial_id=f"earlier-{found['trial']}")
            scheduler.on_trial_add(None, heard)
            scheduler.on_trial_result(None, heard, {"epoch": found["epoch"], "score": found["score"]})
    return scheduler


class Launched:
    """A pool of one slot, whose jobs are runs on Ray Train: for teachers and for the seeds of the last table."""

    slots = 1

    def __init__(self, score: str):
        self._score = score
        self._due: deque[Job] = deque()

    def submit(self, job: Job, until: int) -> None:
        self._due.append(job)

    def wait(self) -> Reached | Failed:
        job, start = self._due.popleft(), time.perf_counter()
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            launched(job.config, job.folder)
        except (ValueError, RuntimeError) as error:
            return Failed(job.number, one_line(error))
        curve = scores_of(job.folder, self._score)
        return Reached(job.number, len(curve), max(curve), curve, True, time.perf_counter() - start)

    def drop(self, job: Job) -> None:
        raise AssertionError("its jobs train to their end")


def run_nested(search: Search, *, concurrency: int, score: str) -> None:
    """Returns when there are `num_trials`, each ended."""
    due = deque(search.replayed())
    search.on_begin(search.trials)
    left = len(due) + search.num_trials - len(search.trials)
    if left <= 0:
        return
    tuner = ray_tune.Tuner(
        ray_tune.with_resources(trial, {"CPU": 0.01}),
        tune_config=ray_tune.TuneConfig(
            num_samples=-1,
            max_concurrent_trials=concurrency,
            search_alg=Asking(search, due, score),
            scheduler=scheduler_of(search),
            reuse_actors=False,
        ),
        run_config=ray_tune.RunConfig(
            name=f"from-{len(search.trials)}",
            storage_path=str((search.folder / TUNE_STATE).resolve()),
            verbose=0,
        ),
    )
    tuner.fit()

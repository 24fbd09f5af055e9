"""What the nested way does without Ray: it is told and asked as Tune would."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest
from ray.tune.search import Searcher

from raytrain.cluster.run_folder import HISTORY
from raytrain.data.manifest import Dataset
from tests.datasets import small_dataset
from tests.tune.searches import small_search
from tune import nested
from tune.nested import Asking, scheduler_of
from tune.rungs import Rungs


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data"))


def result(curve: list[float], *, ended: bool = False, **more: Any) -> dict[str, Any]:
    return {"epoch": len(curve), "score": max(curve), "curve": curve, "busy_s": 1.0, "ended": ended, **more}


def test_tune_is_told_of_trials_and_tells_how_they_went(dataset: Dataset, tmp_path: Path) -> None:
    search = small_search(tmp_path, dataset, num_trials=4, rungs=Rungs(1, 3, 9))
    asking = Asking(search, deque(), "map")
    given = [asking.suggest(f"t{k}") for k in range(4)]
    assert all(isinstance(of, dict) and json.loads(of["config"])["train"]["epochs"] == 9 for of in given)
    assert asking.suggest("t4") == Searcher.FINISHED
    asking.on_trial_result("t0", result([0.1]))
    asking.on_trial_result("t0", result([0.1, 0.3]))
    asking.on_trial_complete("t0", result([0.1, 0.3]))
    asking.on_trial_complete("t1", result([0.2] * 9))
    asking.on_trial_complete("t2", result([0.2], diverged="the gradient is not finite"))
    asking.on_trial_complete("t3", None, error=True)
    assert isinstance(asking.suggest("t5"), dict), "once more"
    asking.on_trial_complete("t5", result([0.1], failed="OSError: full"))
    assert search.trials[3].why == "OSError: full"
    assert asking.suggest("t6") == Searcher.FINISHED
    assert [search.trials[n].state for n in range(4)] == ["stopped", "complete", "stopped", "failed"]
    assert [search.trials[n].epoch for n in range(3)] == [2, 9, 1]
    assert [trial.state.name for trial in search.study.trials] == ["PRUNED", "COMPLETE", "PRUNED", "FAIL"]
    cloudpickle.loads(cloudpickle.dumps(asking))  # Tune writes it down


def test_asha_goes_on_with_what_it_heard_before(dataset: Dataset, tmp_path: Path) -> None:
    search = small_search(tmp_path, dataset, num_trials=9, rungs=Rungs(1, 3, 9))
    asking = Asking(search, deque(), "map")
    for k, score in enumerate([0.5, 0.6, 0.7]):
        asking.suggest(f"t{k}")
        asking.on_trial_result(f"t{k}", result([score]))
    for k in (0, 1):
        asking.on_trial_complete(f"t{k}", result([0.5 + 0.1 * k]))
    again = small_search(tmp_path, dataset, num_trials=9, rungs=Rungs(1, 3, 9))
    assert again.replayed() == [2]
    scheduler = scheduler_of(again)

    def decided(name: str, score: float) -> str:
        heard = SimpleNamespace(trial_id=name)
        scheduler.on_trial_add(None, heard)
        return str(scheduler.on_trial_result(None, heard, {"epoch": 1, "score": score}))

    assert decided("a", 0.56) == "STOP", "the cut is two thirds between .5 and .6"
    assert decided("b", 0.58) == "CONTINUE"


def test_a_trial_reports_each_validation_of_its_run_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, Any]] = []
    folder = tmp_path / "run"
    folder.mkdir()

    def run(config: Any, at: Path) -> dict[str, Any]:
        (at / HISTORY).write_text("".join(json.dumps({"epoch": k, "map": 0.1 * k}) + "\n" for k in (1, 2)))
        with (at / HISTORY).open("a") as file:
            file.write('{"epoch": 3')  # being written
        return {}

    monkeypatch.setattr(nested, "launched", run)
    monkeypatch.setattr(nested.ray_tune, "report", told.append)
    nested.trial({"config": "{}", "folder": str(folder), "score": "map"})
    assert list(dict.fromkeys(of["epoch"] for of in told)) == [1, 2]
    assert [of["ended"] for of in told] == [False] * (len(told) - 1) + [True] and len(told) <= 3
    assert told[-1]["ended"] and told[-1]["curve"] == [0.1, 0.2] and told[-1]["score"] == 0.2

    def diverges(config: Any, at: Path) -> dict[str, Any]:
        raise ValueError("epoch 3, step 9: the gradient is not finite")

    told.clear()
    monkeypatch.setattr(nested, "launched", diverges)
    nested.trial({"config": "{}", "folder": str(folder), "score": "map"})
    assert told[-1]["diverged"].endswith("not finite") and told[-1]["ended"]

    def fails(config: Any, at: Path) -> dict[str, Any]:
        raise ValueError("no such thing")

    monkeypatch.setattr(nested, "launched", fails)
    nested.trial({"config": "{}", "folder": str(folder), "score": "map"})
    assert told[-1]["failed"] == "ValueError: no such thing"

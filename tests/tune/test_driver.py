from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState

from raytrain.data.manifest import Dataset
from tests.datasets import small_dataset
from tests.tune.searches import Formula, Killed, small_search
from tune import driver, storage
from tune.driver import Search
from tune.rungs import Rungs
from tune.sampling import SAMPLERS
from tune.storage import Journal
from tune.trials import Job


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data"))


def told(search: Search) -> list[tuple[int, TrialState, Any, Any]]:
    """The trials as Optuna has them, without times."""
    found = search.study.get_trials(deepcopy=False)
    return [(t.number, t.state, t.params, t.values) for t in found]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_ends_with_its_trials_and_learns(sampler: Any, dataset: Dataset, tmp_path: Path) -> None:
    search = small_search(tmp_path, dataset, num_trials=12, sampler=sampler, rungs=Rungs(1, 3, 9))
    pool = Formula()
    search.run(pool)
    assert [number for number, *_ in told(search)] == list(range(12))
    states = {trial.state for trial in search.trials.values()}
    assert states == {"complete", "stopped"}
    for number, trial in search.trials.items():
        assert trial.epoch == max(until for job, until in pool.submitted if job == number)
        assert len(trial.curve) == trial.epoch
        assert (trial.epoch == 9) is (trial.state == "complete")
    assert sorted(pool.dropped) == [n for n, trial in search.trials.items() if trial.state == "stopped"]
    assert all(state.is_finished() for _, state, *_ in told(search))


@pytest.mark.parametrize(("sampler", "slots"), [("tpe", 1), ("gp", 1), ("cmaes", 1), ("tpe", 3)])
def test_a_search_that_is_killed_anywhere_goes_on_as_if_it_had_not_been(
    sampler: Any, slots: int, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before and after writes to the journal and to Optuna, in turn, until it gets through.

    One at a time: the same trials as undisturbed, in parameters, states and values.  Several at a time the suggestions
    depend on who was first, so then the number of trials and their journal are asked for.
    """
    num_trials = 7 if sampler == "gp" else 10
    whole = small_search(
        tmp_path / "whole", dataset, num_trials=num_trials, sampler=sampler, rungs=Rungs(1, 3, 9), slots=slots
    )
    whole.run(Formula(slots))
    generator = np.random.default_rng(slots)
    left = [0]

    def deadly(plain: Any) -> Any:
        def called(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            result = plain(*args, **kwargs)
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return result

        return called

    kills = 0
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", deadly(Journal.add))
        patch.setattr(driver.optuna.study.Study, "tell", deadly(driver.optuna.study.Study.tell))
        patch.setattr(driver.optuna.study.Study, "ask", deadly(driver.optuna.study.Study.ask))
        for name in ("suggest_float", "suggest_categorical", "report", "set_user_attr"):
            patch.setattr(driver.optuna.Trial, name, deadly(getattr(driver.optuna.Trial, name)))
        while True:
            left[0] = int(generator.integers(1, 90))
            search = small_search(
                tmp_path / "killed",
                dataset,
                num_trials=num_trials,
                sampler=sampler,
                rungs=Rungs(1, 3, 9),
                slots=slots,
            )
            try:
                search.run(Formula(slots))
                break
            except Killed:
                kills += 1
    assert kills > 3
    ended = [found["trial"] for found in search.journal.of("ended")]
    assert sorted(ended) == list(range(num_trials)), "each once"
    assert [number for number, *_ in told(search)] == list(range(num_trials))
    assert all(state.is_finished() for _, state, *_ in told(search))
    if slots == 1:
        assert told(search) == told(whole)
        assert search.trials == whole.trials


def test_a_trial_that_fails_is_tried_again_and_then_recorded(dataset: Dataset, tmp_path: Path) -> None:
    calls: list[int] = []

    def fails(job: Job) -> str | None:
        calls.append(job.number)
        if job.number == 1:
            return "RuntimeError: always"
        return "RuntimeError: once" if job.number == 2 and calls.count(2) == 1 else None

    search = small_search(tmp_path, dataset, num_trials=4)
    search.run(Formula(fails=fails))
    assert calls.count(1) == 2 and calls.count(2) == 2 and calls.count(3) == 1
    assert [search.trials[n].state for n in range(4)] == ["complete", "failed", "complete", "complete"]
    failed = search.study.trials[1]
    assert failed.state == TrialState.FAIL
    assert failed.user_attrs["why"] == "RuntimeError: always"
    assert failed.params, "with its parameters"
    assert [found["error"] for found in search.journal.of("failed")] == ["RuntimeError: always"] * 2 + [
        "RuntimeError: once"
    ]


def test_two_objectives_train_to_the_end_and_are_told(dataset: Dataset, tmp_path: Path) -> None:
    search = small_search(tmp_path, dataset, num_trials=8, objectives=("map", "size"))
    search.run(Formula())
    for trial in search.study.trials:
        assert trial.values == [search.trials[trial.number].score, float(trial.params["model.embedding"])]
    assert search.study.best_trials


def test_a_cut_off_line_never_happened(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.add("started", trial=0)
    journal.add("ended", trial=0)
    path = tmp_path / "journal.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-5])
    again = Journal(path)
    assert [found["what"] for found in again.events] == ["started"]
    again.add("ended", trial=0)
    assert path.read_text() == whole
    with pytest.raises(ValueError, match="JSON compliant"):
        again.add("ended", score=math.nan)
    assert path.read_text() == whole, "what cannot be written is not written in part"


def plan() -> dict[str, Any]:
    return {"method": "metric", "trials": 3, "space": {"a": [0, 1]}}


def test_a_search_folder_is_one_search_for_one_process(tmp_path: Path) -> None:
    folder = tmp_path / "search"
    with (
        storage.opened(folder, plan(), resume=True),
        pytest.raises(ValueError, match="another process is searching there"),
        storage.opened(folder, plan(), resume=True),
    ):
        raise AssertionError("two at once")
    with (
        pytest.raises(ValueError, match="go on with --resume or give another --out"),
        storage.opened(folder, plan(), resume=False),
    ):
        raise AssertionError("begun twice")
    for change, message in (
        ({"method": "psd"}, "another method .it was 'metric', now 'psd'"),
        ({"space": {}}, "space"),
    ):
        with pytest.raises(ValueError, match=message), storage.opened(folder, plan() | change, resume=True):
            raise AssertionError("another search")
    with storage.opened(folder, plan() | {"trials": 9}, resume=True):
        assert json.loads((folder / "search.json").read_text())["trials"] == 9, (
            "more trials are no other search"
        )
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="is not a search"), storage.opened(other, plan(), resume=True):
        raise AssertionError("not ours")

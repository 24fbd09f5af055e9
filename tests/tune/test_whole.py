"""The search as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from raytrain.cluster.alone import train_alone
from raytrain.config import build
from raytrain.data.manifest import Dataset
from raytrain.methods import resolve
from tests.datasets import small_dataset
from tune.asked import Options
from tune.driver import Base, Search
from tune.report import front_of, write_report
from tune.search import search
from tune.trials import Job
from tune.whole import run_search
from tune.workers import Failed, Here

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = ("model.hidden=[16]", "data.batch_size=40", "train.precision=float32")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data"))


def options(dataset: Dataset, out: Path, **given: Any) -> Options:
    """The defaults of the command line, and what is given."""
    defaults = search.make_context("tune/search.py", []).params
    values: dict[str, Any] = {"data": dataset.path, "method": "metric", "way": "here", "out": out}
    values |= {"overrides": SMALL, "trials": 10, "epochs": 3, "seeds": 2, "survivors": 2}
    return Options(**{**defaults, **values, **given})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def searched(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("search") / "out"
    run_search(options(dataset, out))
    return out


def test_the_best_can_be_trained_from_its_file(searched: Path, dataset: Dataset, tmp_path: Path) -> None:
    """As `raytrain train --config best.toml` reads it; with a seed of the last table, its score."""
    final = json.loads((searched / "final.json").read_text())
    config = resolve(build(searched / "best.toml"), dataset.manifest)
    assert resolve(config, dataset.manifest) == config
    for key, value in final["values"].items():
        section, _, rest = key.partition(".")
        found: Any = config.model_dump()[section]
        for part in rest.split("."):
            found = found[part]
        assert found == (tuple(value) if isinstance(value, list) else value), key
    assert config.model.hidden == (16,), "what the user has set"
    seeded = build(searched / "best.toml", [f"train.seed={final['seeds'][0]}"])
    state = train_alone(seeded, dataset, tmp_path)
    assert state.best_score == final["validation"][final["best"]][0]


def test_the_best_has_the_best_mean_over_seeds_that_no_trial_had(searched: Path) -> None:
    final = json.loads((searched / "final.json").read_text())
    assert final["seeds"] == [1, 2]
    means = {name: sum(of) / 2 for name, of in final["validation"].items()}
    assert final["best"] == max((name for name in means if name != "default"), key=lambda name: means[name])
    assert final["validation"].keys() == {*means, "default"} and len(means) == 3
    assert set(final["test"]) == {"best", "default"} and final["test_reads"] == 1
    tuned, plain = (final["test"][name]["class"] for name in ("best", "default"))
    difference = sum(tuned) / 2 - sum(plain) / 2
    assert final["against_default"]["class"]["difference"] == pytest.approx(difference)
    assert final["references"].keys() == {"linear CCA", "softmax matching"}


def test_the_page_holds_everything_and_fetches_nothing(searched: Path) -> None:
    page = (searched / "report.html").read_text()
    for heading in ("History", "Learning curves", "Importance", "Parallel coordinates", "Slices", "Trials"):
        assert f"<h2>{heading}" in page
    assert page.count("<svg") >= 5
    assert "<script" not in page and "<link" not in page and 'src="http' not in page and "@import" not in page
    assert "fANOVA" in page


def test_optuna_and_tensorboard_have_the_trials(searched: Path) -> None:
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{searched / 'study.db'}")
    assert len(study.trials) == 10
    journal = [json.loads(line) for line in (searched / "journal.jsonl").read_text().splitlines()]
    ended = {found["trial"]: found for found in journal if found["what"] == "ended"}
    for trial in study.trials:
        board = EventAccumulator(str(searched / "tensorboard" / f"trial-{trial.number:05d}"))
        board.Reload()
        curve = [event.value for event in board.Scalars("validation/score")]
        assert curve == pytest.approx(ended[trial.number]["curve"])
        hparams = board.summary_metadata["_hparams_/session_start_info"].plugin_data.content
        assert b"optim.lr" in hparams


def test_more_trials_can_be_asked_for_and_the_test_split_is_then_read_again(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    small = {"trials": 2, "seeds": 1, "survivors": 1, "epochs": 2}
    first = run_search(options(dataset, out, **small))
    with pytest.raises(ValueError, match="holds a search"):
        run_search(options(dataset, out, **small))
    assert run_search(options(dataset, out, **small, resume=True)) == first
    assert json.loads((out / "final.json").read_text())["test_reads"] == 1
    more = run_search(options(dataset, out, **{**small, "trials": 4, "seeds": 2}, resume=True))
    journal = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    assert sorted(found["trial"] for found in journal if found["what"] == "ended") == [0, 1, 2, 3]
    assert more["test_reads"] == 2
    assert "read 2 times" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "pds"}, r"--method: 'pds' is unknown; known: .*Did you mean 'psd'"),
        ({"sampler": "tpa"}, "--sampler: 'tpa' is unknown.*Did you mean 'tpe'"),
        ({"trials": 0}, "--trials is 0; at least 1"),
        ({"factor": 0.5}, "--factor is 0.5; at least 1"),
        ({"factor": float("nan")}, "--factor is nan; at least 1"),
        ({"first_rung": 9}, "--first-rung is 9, a trial has 3 epochs"),
        ({"objectives": "time"}, "allowed: map, or map,time, or map,size"),
        ({"objectives": "map,speed"}, "--objectives: 'speed' is unknown"),
        ({"objectives": "map,time", "sampler": "cmaes"}, "cmaes has one objective"),
        ({"way": "here", "concurrency": 2}, "--way here trains one trial at a time"),
        ({"way": "workers", "workers_per_trial": 2}, "use --way nested"),
        ({"way": "fast"}, "--way: 'fast' is unknown"),
        ({"data": "no/such/folder"}, "no/such/folder"),
        ({"overrides": ("optim.lrr=1",)}, "optim.lrr.*Did you mean 'lr'"),
        ({"overrides": ("train.seed=3",)}, "train.seed is set, but a search decides it"),
        ({"overrides": (*SMALL, "method.margin=1")}, "method.margin"),
    ],
)
def test_what_the_user_got_wrong_is_said_in_a_line(
    given: dict[str, Any], message: str, dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        run_search(options(dataset, tmp_path / "out", **given))
    assert "\n" not in str(raised.value)


def test_two_objectives_have_a_front(dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_search(options(dataset, out, objectives="map,size", trials=5, seeds=1, survivors=1, epochs=1))
    page = (out / "report.html").read_text()
    assert "<h2>Pareto front" in page and "size of the embedding" in page


def test_the_front_by_hand(dataset: Dataset, tmp_path: Path) -> None:
    from tests.tune.searches import Formula, small_search

    found: Search = small_search(tmp_path, dataset, num_trials=6, objectives=("map", "size"))
    found.run(Formula())
    for number, (score, size) in enumerate(
        [(0.5, 64), (0.5, 32), (0.9, 256), (0.4, 64), (0.9, 128), (0.1, 32)]
    ):
        found.trials[number].score = score
        found.trials[number].values["model.embedding"] = size
    assert [trial.number for trial in front_of(found, list(found.trials.values()))] == [4, 1]
    write_report(found, None)


def test_a_trial_whose_gradient_is_not_finite_is_pruned_with_its_reason(
    dataset: Dataset, tmp_path: Path
) -> None:
    base = Base({"method": {"name": "metric"}, "train": {"precision": "float32"}}, dataset.manifest)
    config = base.config({"optim.lr": 1e30, "optim.clip": None, "model.norm": "none", "data.batch_size": 40})
    found = Here(dataset.path, threads=1, device="cpu")
    found.submit(Job(0, config, tmp_path / "0"), 9)
    reached = found.wait()
    assert not isinstance(reached, Failed)
    assert reached.ended and reached.diverged is not None and "not finite" in reached.diverged


@pytest.mark.parametrize("call", [["tune/search.py"], ["-m", "tune.search"]])
def test_the_script_and_the_module_are_the_same_command(call: list[str]) -> None:
    ran = subprocess.run(
        [sys.executable, *call, "--trials", "many"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    assert (
        ran.stderr.startswith("tune/search.py: Invalid value for '--trials'") and ran.stderr.count("\n") == 1
    )

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from raytrain.cluster.evaluate import Options, compare_runs, embed_split, evaluate, load
from raytrain.data.manifest import Dataset
from raytrain.evaluation.report import write_report
from tests.cluster.runs import finished_run
from tests.datasets import small_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("runs") / "a", dataset, "method.loss=info-nce")


def test_the_selected_weights_give_the_selected_score(dataset: Dataset, run: Path) -> None:
    """What evaluation loads is what validation chose: the same MAP on the same split, to the last digit."""
    found = evaluate(run, Options(split="validation", references=False))
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert found["scores"]["mean"]["map"] == max(record["map"] for record in history)
    assert found["selected"]["map"] == found["scores"]["mean"]["map"]


def test_scores_are_a_brute_force_over_the_embeddings(dataset: Dataset, run: Path) -> None:
    config, _, method = load(run)
    split = embed_split(method, dataset, "test", config.data.views)
    audio, visual = (split.embeddings[view].astype(np.float64) for view in ("audio", "visual"))
    assert split.labels is not None
    precisions = []
    for query in range(len(audio)):
        order = np.argsort(-(visual @ audio[query]), kind="stable")
        hits = split.labels[order] == split.labels[query]
        precisions.append(np.mean(np.arange(1, hits.sum() + 1) / (np.flatnonzero(hits) + 1)))
    found = evaluate(run, Options(references=True, resamples=200))
    assert found["scores"]["audio->visual"]["map"] == pytest.approx(np.mean(precisions), abs=1e-6)
    low, high = found["interval"]
    assert low < found["scores"]["mean"]["map"] < high
    assert set(found["references"]) == {"linear CCA", "softmax matching"}
    assert len(found["per_class"]) == 4


def test_a_run_compared_with_itself_differs_in_nothing(run: Path, dataset: Dataset, tmp_path: Path) -> None:
    other = finished_run(tmp_path / "b", dataset, "method.loss=triplet", "train.epochs=1", "optim.lr=1e-6")
    found = compare_runs([run, run, other], Options(resamples=500))["runs"]
    same, worse = found[1]["against_first"], found[2]["against_first"]
    assert same["difference"] == 0 and same["p_value"] == 1
    assert worse["difference"] < -0.1 and worse["p_value"] < 0.01
    assert worse["clips_worse"] > worse["clips_better"]


def test_a_changed_data_set_is_refused(run: Path, tmp_path: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    config["data"]["path"] = small_dataset(tmp_path, seed=1).path
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(run / "environment.json", tmp_path)
    with pytest.raises(ValueError, match="has changed since"):
        load(tmp_path)


def test_the_report_holds_the_numbers_and_loads_nothing_from_outside(run: Path) -> None:
    found = evaluate(run, Options(resamples=200))
    (run / "evaluation-test.json").write_text(json.dumps(found))
    page = write_report(run).read_text()
    assert f"{found['scores']['mean']['map']:.4f}" in page
    assert page.count("data:image/png;base64,") == 3
    sources = re.findall(r"""(?:src|href|url)[=(]["']?(.{5})""", page)
    assert sources == ["data:"] * 3


def test_tensorboard_reads_back_what_was_logged(run: Path) -> None:
    board = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    logged = {event.step: event.value for event in board.Scalars("validation/map")}
    assert logged == {record["step"]: pytest.approx(record["map"]) for record in history}
    scalars = set(board.Tags()["scalars"])
    expected = {"loss", "loss/audio_to_visual", "gradient_norm", "active_ratio", "lr", "rows_per_s"}
    assert {f"train/{name}" for name in expected} <= scalars
    assert board.Tags()["histograms"]

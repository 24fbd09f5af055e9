"""Runs that classify, that have more than two views, or that saw no labels: selected and evaluated by what they do."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from raytrain.cli_evaluate import print_scores
from raytrain.cluster.evaluate import Embedded, Options, compare_runs, embed_split, evaluate, load
from raytrain.data.ingest import ingest
from raytrain.data.manifest import Dataset
from raytrain.data.options import IngestConfig
from raytrain.evaluation.report import write_report
from raytrain.losses.dcca import fit_linear_cca
from tests.cluster.runs import finished_run
from tests.datasets import write_h5


def dataset_of(folder: Path, *, image: bool = False, labels_in_train: bool = True) -> Dataset:
    write_h5(folder / "small.h5")
    with h5py.File(folder / "small.h5", "a") as file:
        if not labels_in_train:
            file["lab_train"][...] = -1
        if image:
            for split in ("train", "test"):
                file[f"image_{split}"] = file[f"visual_{split}"][:, :5] + 1
    allow = () if labels_in_train else ("unseen-classes",)
    config = IngestConfig(row_group_rows=16, shard_rows=64, allow=allow)
    return ingest([folder / "small.h5"], folder / "data", config=config)


@pytest.fixture(scope="module")
def three_views(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Path]:
    folder = tmp_path_factory.mktemp("three")
    dataset = dataset_of(folder, image=True)
    views = "data.views=['audio', 'image', 'visual']"
    run = finished_run(folder / "run", dataset, "method.name=compositional", views, "train.epochs=8")
    return dataset, run


def test_a_student_is_selected_by_its_own_top_1(three_views: tuple[Dataset, Path]) -> None:
    dataset, run = three_views
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    found = evaluate(run, Options(split="validation", references=False))
    assert found["top_1"] == {"visual": max(record["top-1"] for record in history)}
    assert found["selected"]["top-1"] == found["top_1"]["visual"] > 0.5
    assert found["selected"]["map"] == pytest.approx(found["scores"]["mean"]["map"])
    config, _, method = load(run)
    split = embed_split(method, dataset, "validation", config.data.views)
    assert split.labels is not None
    layers = method.towers.towers["visual"]
    with torch.no_grad():
        scores = method.towers.head(layers(torch.from_numpy(split.features["visual"].copy())))
    right = (scores.argmax(dim=1).numpy() == split.labels).mean()
    assert found["top_1"]["visual"] == pytest.approx(right)


def test_three_views_are_ranked_in_six_directions(three_views: tuple[Dataset, Path]) -> None:
    _, run = three_views
    found = evaluate(run, Options(resamples=100))
    ways = {f"{a}->{b}" for a in ("audio", "image", "visual") for b in ("audio", "image", "visual") if a != b}
    assert set(found["scores"]) == ways | {"mean"}
    assert found["scores"]["mean"]["map"] == pytest.approx(np.mean([found["scores"][w]["map"] for w in ways]))
    assert set(found["references"]) == {"linear CCA", "softmax matching"}
    assert all(set(scores) == ways | {"mean"} for scores in found["references"].values())
    assert set(found["within"]) == {"visual"} and found["projections"] == {}
    (run / "evaluation-test.json").write_text(json.dumps(found))
    page = write_report(run).read_text()
    assert f"Top-1 of visual alone {found['top_1']['visual']:.4f}" in page
    assert f"<td>{found['within']['visual']['r@1']:.4f}</td>" in page
    assert len(compare_runs([run, run], Options(resamples=50))["runs"]) == 2


def test_one_view_has_no_ranking_across_views(three_views: tuple[Dataset, Path], tmp_path: Path) -> None:
    """The page and the table of a run that embeds one view alone."""
    _, run = three_views
    labels = np.arange(12) % 3
    rows = np.eye(3, dtype=np.float32)[labels]
    alone = Embedded({"visual": rows}, {"visual": rows}, np.arange(12), labels, None)
    assert alone.retrieve("class").summary() == {}
    assert alone.within("class")["visual"]["r@1"] == 1 and alone.within("pair") == {}
    found = evaluate(run, Options(resamples=50, references=False))
    found |= {"scores": {}, "interval": None, "within": alone.within("class"), "per_class": {}}
    for name in ("config.json", "environment.json", "history.jsonl"):
        (tmp_path / name).write_text((run / name).read_text())
    (tmp_path / "evaluation-test.json").write_text(json.dumps(found))
    assert "visual-&gt;visual, own clip left out" in write_report(tmp_path).read_text()
    print_scores(found)


def test_without_labels_in_training_map_comes_from_the_test_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = dataset_of(tmp_path, labels_in_train=False)
    run = finished_run(
        tmp_path / "run", dataset, "method.name=hsc-mae", "method.decoder_width=8", "train.epochs=6"
    )
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert "map" not in history[0] and history[-1]["r@10"] > history[0]["r@10"]
    found = evaluate(run, Options(resamples=100))
    assert found["relevant_by"] == "class" and found["scores"]["mean"]["map"] > 0.4
    assert set(found["references"]) == {"linear CCA"}, (
        "softmax matching would read labels that training has not"
    )
    paired = evaluate(run, Options(by="pair", resamples=100))
    assert 0 < paired["scores"]["mean"]["r@10"] <= 1

    config, _, method = load(run)
    train, test = (embed_split(method, dataset, split, config.data.views) for split in ("train", "test"))
    z = [torch.from_numpy(train.embeddings[view]) for view in config.data.views]
    cca = fit_linear_cca(z[0], z[1], dimensions=8, ridge=1e-4)
    audio, visual = cca.project(*(torch.from_numpy(test.embeddings[view]) for view in config.data.views))
    precisions = []
    for query in range(len(audio)):
        order = np.argsort(-(visual @ audio[query]).numpy(), kind="stable")
        hits = test.labels[order] == test.labels[query]
        precisions.append(np.mean(np.arange(1, hits.sum() + 1) / (np.flatnonzero(hits) + 1)))
    projected = found["projections"]["after linear CCA (8)"]
    assert projected["audio->visual"]["map"] == pytest.approx(np.mean(precisions), abs=1e-5)
    print_scores(found)
    assert "this run after linear CCA (8), mean" in capsys.readouterr().out

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from raytrain.cli_interactions import interactions
from raytrain.cluster import checkpoint
from raytrain.cluster.evaluate import embed_split, load
from raytrain.cluster.teacher_store import FolderStore, about, read_teacher
from raytrain.data.shards import read_split
from raytrain.graph.dependency import ClassDependency
from raytrain.methods import build
from tests.cluster.runs import finished_run
from tests.datasets import small_dataset

CLASSES = 4
ILI = ("method.name=ili", "method.loss=info-nce", "method.search.bootstraps=4", "train.patience=off")


def one_edge() -> ClassDependency:
    """Hearing class 0 brings the sight of class 2, and nothing else is known."""
    v = 2 * CLASSES
    weights = np.zeros((CLASSES, CLASSES))
    weights[0, 2] = 1.0
    frequency, way = np.zeros((v, v)), np.zeros((v, v))
    frequency[0, CLASSES + 2] = frequency[CLASSES + 2, 0] = way[0, CLASSES + 2] = 1.0
    return ClassDependency(
        weights, np.zeros_like(weights), frequency, way, frequency.copy(), frequency > 0.5, false_bound=0.1,
        frobenius=0.0, permuted_edges=0, verdict="linked", num_samples=100.0, order=np.arange(12), complete=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run with the graph above as its newest, and one without a graph."""
    folder = tmp_path_factory.mktemp("interactions")
    dataset = small_dataset(folder)
    ours = finished_run(folder / "with", dataset, *ILI)
    best = checkpoint.read(ours / "best")  # made unlike the last ones, which are what is measured
    other = {name: -x if x.is_floating_point() else x for name, x in best.tensors["model"].items()}
    checkpoint.save(ours / "best", {"model": other}, best.state)
    plain = finished_run(folder / "without", dataset, *ILI, "method.graph=none")
    config, dataset, _ = load(ours)
    FolderStore(ours, about(config, dataset)).keep_graph(10_000, "planted", one_edge())
    return ours, plain


def test_distances_of_linked_pairs_are_those_of_the_loops(pair: tuple[Path, Path], tmp_path: Path) -> None:
    ours, plain = pair
    done = CliRunner().invoke(interactions, [str(ours), "--without", str(plain), "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "interactions.json").read_text())
    assert (tmp_path / "interactions.png").read_bytes()[:4] == b"\x89PNG"

    config, dataset, method = load(ours)
    arrays = read_split(dataset, "test", views=config.data.views)
    teacher = build(config, dataset.manifest)
    read_teacher(ours, config, dataset).give(teacher)
    views = {name: torch.from_numpy(x) for name, x in arrays.views.items()}
    soft = {name: torch.sigmoid(u).numpy() for name, u in teacher.eval().soft_labels(views).items()}
    z = []
    for run in (ours, plain):
        last = checkpoint.latest(run / "checkpoints")
        assert last is not None
        _, _, of_run = load(run)
        of_run.load_state_dict(last.tensors["model"])
        z.append(embed_split(of_run, dataset, "test", config.data.views).embeddings)
    labels, tau = arrays.labels, config.method["threshold"]
    assert labels is not None and method is not None
    per_row = []
    for n in range(len(labels)):
        linked = [
            m
            for m in range(len(labels))
            if soft["audio"][n, 0] > tau and soft["visual"][m, 2] > tau and labels[n] != labels[m]
        ]
        if linked:
            distances = [np.mean([1 - float(of["audio"][n] @ of["visual"][m]) for m in linked]) for of in z]
            per_row.append(distances[1] - distances[0])
    assert per_row, "the teacher has learnt nothing, and the test would say nothing"
    (row,) = found["runs"]
    assert row["nearer"]["linked"]["mean"] == pytest.approx(np.mean(per_row), abs=1e-5)
    assert (
        row["nearer"]["linked"]["low"] <= row["nearer"]["linked"]["mean"] <= row["nearer"]["linked"]["high"]
    )
    assert row["verdict"] == "linked" and row["edges"] == 1
    names = dataset.manifest.classes
    assert found["edges"] == [{"between": [f"{names[0]} (audio)", f"{names[2]} (visual)"], "runs": 1.0}]
    assert found["adjacency_distance"] is None
    assert [epoch for epoch, _ in found["map_over_epochs"]["with"][0]] == [1, 2, 3, 4]


def test_several_runs_get_the_distance_of_their_graphs(pair: tuple[Path, Path], tmp_path: Path) -> None:
    ours, plain = map(str, pair)
    arguments = [ours, ours, "--without", plain, "--without", plain, "--out", str(tmp_path), "--json"]
    done = CliRunner().invoke(interactions, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["adjacency_distance"] == 0.0


def test_what_cannot_be_compared_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    ours, plain = map(str, pair)
    for arguments, said in (
        ([ours, ours, "--without", plain], "got 2 runs with a graph and 1 without"),
        ([plain, "--without", plain], "made no graph"),
    ):
        done = CliRunner().invoke(interactions, [*arguments, "--out", str(tmp_path)])
        assert isinstance(done.exception, ValueError) and said in str(done.exception)
    other = finished_run(tmp_path / "other", small_dataset(tmp_path, seed=3), "method.name=metric")
    for arguments, said in (
        ([ours, "--without", str(other)], "other data"),
        ([str(other), "--without", str(other)], "is a run of metric"),
    ):
        done = CliRunner().invoke(interactions, [*arguments, "--out", str(tmp_path)])
        assert isinstance(done.exception, ValueError) and said in str(done.exception)

"""Stages, moments, graphs and checkpoints of a run whose method has a teacher, without Ray."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from raytrain.cli_graph import graph as graph_verb
from raytrain.cluster import checkpoint, run_folder
from raytrain.cluster.alone import train_alone
from raytrain.cluster.reporter import FolderReporter
from raytrain.cluster.sources import Resident, batch_of
from raytrain.cluster.teacher_store import GRAPHS, read_graph, read_teacher
from raytrain.cluster.teaching import checked, window_of
from raytrain.cluster.training import CHECKPOINTS, Training
from raytrain.cluster.validation import Validation
from raytrain.collectives import num_ranks, rank
from raytrain.config import Config, build
from raytrain.data.manifest import Dataset
from raytrain.data.reading import Reading
from raytrain.graph.accumulator import MomentAccumulator
from raytrain.methods import METHODS, resolve
from raytrain.methods import build as build_method
from raytrain.methods.base import GraphPlan
from raytrain.teacher import GraphFailed, GraphRequest, LocalMaker, Teacher
from tests.cluster.taught import Taught
from tests.datasets import small_dataset
from tests.worlds import run_world

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def taught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "taught", Taught)


def config_of(*overrides: str) -> Config:
    return build(
        overrides=[
            "method.name=taught",
            "model.hidden=[16]",
            "model.embedding=8",
            "data.batch_size=40",
            "train.epochs=5",
            "train.precision=float32",
            "train.patience=off",
            "train.checkpoint_every=1",
            "train.checkpoint_seconds=0",
            "train.keep_checkpoints=100",
            *overrides,
        ]
    )


def tensors_of(path: Path) -> dict[str, Tensor]:
    found = checkpoint.read(path)
    return {f"{part} {name}": t for part, group in found.tensors.items() for name, t in group.items()}


def last_of(folder: Path) -> dict[str, Tensor]:
    return tensors_of(checkpoint.list_steps(folder / CHECKPOINTS)[-1])


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Killed(Exception):
    """Stands for the end of a process between two steps."""


@pytest.fixture(scope="module")
def undisturbed(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "taught", Taught)
        train_alone(config_of(), dataset, folder)
    return folder


def links_of(folder: Path) -> dict[int, Tensor]:
    """What the method adopted, by the steps done."""
    return {
        int(path.name.removeprefix(checkpoint.PREFIX)): checkpoint.read(path).tensors["model"]["links"]
        for path in checkpoint.list_steps(folder / CHECKPOINTS)
    }


def test_graphs_are_adopted_when_the_plan_says(undisturbed: Path) -> None:
    """Asked for at 6 and 14, adopted before steps 9 and 17: a checkpoint of s steps is of before that."""
    links = links_of(undisturbed)
    changed = [step for step in range(2, 21) if not torch.equal(links[step - 1], links[step])]
    assert changed == [10, 18]
    assert links[9].abs().sum() == 0
    graphs = checkpoint.list_steps(undisturbed / GRAPHS)
    assert [path.name for path in graphs] == ["step-00000006", "step-00000014"]
    found = read_graph(checkpoint.read(graphs[1]))
    assert found.edge_frequency[:4, 4:].any()


def test_a_stage_begins_after_a_checkpoint_of_what_was_before(dataset: Dataset, tmp_path: Path) -> None:
    config = config_of("train.checkpoint_every=off", "train.checkpoint_seconds=1000")
    train_alone(config, dataset, tmp_path)
    paths = checkpoint.list_steps(tmp_path / CHECKPOINTS)
    assert [path.name for path in paths] == ["step-00000008", "step-00000020"]
    before, after = (checkpoint.read(path).tensors["model"]["temperature"] for path in paths)
    assert before == 1 and after != 1


@pytest.mark.parametrize("at", [3, 6, 7, 8, 9, 10, 15, 17])
def test_a_run_goes_on_bit_for_bit_from_every_kind_of_step(
    dataset: Dataset, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """In a window, at a refresh, with a graph pending, at its adoption, after it, at a stage."""
    plain = Resident.batches

    def killing(self: Resident, first_step: int) -> Iterator[Any]:
        for i, batch in enumerate(plain(self, first_step)):
            if first_step + i == at:
                raise Killed
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(Resident, "batches", killing)
        with pytest.raises(Killed):
            train_alone(config_of(), dataset, tmp_path)
    assert checkpoint.list_steps(tmp_path / CHECKPOINTS)[-1].name == f"step-{at:08d}"
    train_alone(config_of(), dataset, tmp_path)
    assert same(last_of(tmp_path), last_of(undisturbed))
    for name in ("step-00000006", "step-00000014"):
        assert same(tensors_of(tmp_path / GRAPHS / name), tensors_of(undisturbed / GRAPHS / name))


def test_the_window_counts_each_row_once_and_the_moments_are_kept(
    dataset: Dataset, undisturbed: Path
) -> None:
    """Steps 10 to 13: batches of 40 rows or so; the file is what `raytrain graph` reads."""
    with np.load(undisturbed / "moments.npz", allow_pickle=False) as data:
        arrays = {name: data[name] for name in data.files}
    assert list(arrays["classes"]) == list(dataset.manifest.classes)
    moments = MomentAccumulator.from_arrays(arrays)
    reading = Reading.of(dataset, "train", resolve(config_of(), dataset.manifest))
    sizes = np.diff(reading.order(config_of()).bounds)
    assert moments.weight.sum() == sum(int(sizes[step % len(sizes)]) for step in range(10, 14))
    assert moments.num_clips == reading.order(config_of()).num_rows
    assert moments.moments().num_samples <= moments.num_clips


def test_moments_are_those_of_the_teachers_soft_labels(dataset: Dataset, undisturbed: Path) -> None:
    """The sums in the checkpoint of 3 steps are those of the batch of step 2 under the weights of 2 steps."""
    config = resolve(config_of(), dataset.manifest)
    reading = Reading.of(dataset, "train", config)
    order = reading.order(config)
    before = checkpoint.read(checkpoint.path_of_step(undisturbed / CHECKPOINTS, 2))
    after = checkpoint.read(checkpoint.path_of_step(undisturbed / CHECKPOINTS, 3))
    assert "teaching" not in before.tensors
    method = build_method(config, dataset.manifest)
    method.load_state_dict(before.tensors["model"])
    method.eval()
    batch = next(Resident(batch_of(reading.whole()), order, 0, 1, CPU).batches(2))
    with torch.no_grad():
        audio, visual = (u.double() for u in method.soft_labels(batch.views).values())
    whole = MomentAccumulator(4).with_flat(after.tensors["teaching"]["sums"][0].numpy()).moments()
    assert batch.labels is not None
    columns = torch.cat([audio, visual], dim=1)
    for k in range(4):
        expected = columns[batch.labels == k].sum(dim=0)
        assert np.allclose(whole.total[k], expected, rtol=1e-5, atol=1e-4)
    assert np.allclose(whole.outer, columns.T @ columns, rtol=1e-4, atol=1e-3)


class Failing(LocalMaker):
    def __init__(self, teacher: Teacher | None = None, fails_at: tuple[int, ...] = (14,)):
        super().__init__(teacher)
        self.fails_at = fails_at

    def result(self, step: int) -> Any:
        if step in self.fails_at:
            raise GraphFailed("the actor is on fire")
        return super().result(step)


def training_of(
    dataset: Dataset, folder: Path, config: Config, **options: Any
) -> tuple[Training, Any, Validation]:
    config = resolve(config, dataset.manifest)
    torch.manual_seed(0)
    reading = Reading.of(dataset, "train", config)
    order = reading.order(config)
    method = build_method(config, dataset.manifest)
    training = Training(config, method, order, folder, CPU, **options)
    source = Resident(batch_of(reading.whole()), order, rank(), num_ranks(), CPU)
    return training, source, Validation(Reading.of(dataset, "validation", config), CPU)


def test_a_graph_that_cannot_be_made_leaves_the_old_one(
    dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training, source, validation = training_of(dataset, tmp_path, config_of(), maker=Failing())
    with caplog.at_level(logging.WARNING):
        training.run(source, validation, None)
    assert "on fire" in caplog.text and "goes on with that of step 6" in caplog.text
    links = links_of(tmp_path)
    assert torch.equal(links[20], links[10]) and links[10].abs().sum() > 0
    assert checkpoint.latest(tmp_path / CHECKPOINTS).state["teaching"]["graph_step"] == 6  # type: ignore[union-attr]


def test_no_graph_at_all_is_no_graph(
    dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training, source, validation = training_of(
        dataset, tmp_path, config_of(), maker=Failing(fails_at=(6, 14))
    )
    with caplog.at_level(logging.WARNING):
        training.run(source, validation, None)
    assert caplog.text.count("goes on with no graph") == 2
    assert last_of(tmp_path)["model links"].abs().sum() == 0


def test_moments_that_allow_no_graph_are_a_failure_and_not_a_crash(
    dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        train_alone(config_of("method.penalty=-1.0"), dataset, tmp_path)
    assert "penalty" in caplog.text


def ranks_agree(dataset: Dataset, folder: Path) -> Any:
    config = config_of("model.dropout=0.0")
    training, source, validation = training_of(dataset, folder / f"run-{num_ranks()}", config)
    adopted: list[tuple[int, Tensor]] = []
    plain = training.method.adopt

    def adopt(graph: Any) -> None:
        adopted.append((training.state.step, torch.from_numpy(graph.effects.copy())))
        plain(graph)

    training.method.adopt = adopt  # type: ignore[method-assign]
    training.run(source, validation, None)
    return adopted, dict(training.method.state_dict())


def test_ranks_adopt_the_same_graph_at_the_same_step(dataset: Dataset, tmp_path: Path) -> None:
    """Two ranks are one: every sum is that of the world, permuted labels too."""
    worlds = [run_world(ranks, lambda r: ranks_agree(dataset, tmp_path), tmp_path) for ranks in (1, 2)]
    ((one, weights),) = worlds[0]
    assert [step for step, _ in one] == [9, 17]
    for adopted, found in worlds[1]:
        assert [step for step, _ in adopted] == [9, 17]
        assert all(torch.allclose(a[1], b[1], atol=1e-4) for a, b in zip(adopted, one, strict=True))
        assert all(torch.allclose(found[n].double(), weights[n].double(), atol=2e-4) for n in weights)
    (first, weights_0), (second, weights_1) = worlds[1]
    assert all(torch.equal(a[1], b[1]) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(weights_0[name], weights_1[name]) for name in weights_0 if "towers" in name)
    sums = [
        checkpoint.read(checkpoint.path_of_step(tmp_path / f"run-{ranks}" / CHECKPOINTS, 5)).tensors[
            "teaching"
        ]["sums"]
        for ranks in (1, 2)
    ]
    assert sums[0].shape[0] == 1 and sums[1].shape[0] == 2
    assert torch.allclose(sums[0].sum(dim=0), sums[1].sum(dim=0), rtol=1e-4, atol=1e-2)


def cut(dataset: Dataset, folder: Path, at: int | None) -> dict[str, Tensor]:
    """Two ranks, cut before step `at` where that is given; the state of rank 0 at the end."""
    training, source, validation = training_of(dataset, folder, config_of())
    if at is not None:
        plain = training.teaching.before_step

        def killing(step: int, *rest: Any) -> None:
            if step == at:
                raise Killed
            plain(step, *rest)

        training.teaching.before_step = killing  # type: ignore[method-assign]
        with pytest.raises(Killed):
            training.run(source, validation, None)
        return {}
    training.run(source, validation, None)
    return last_of(folder) if rank() == 0 else {}


def test_two_ranks_go_on_bit_for_bit(dataset: Dataset, tmp_path: Path) -> None:
    expected = run_world(2, lambda r: cut(dataset, tmp_path / "whole", None), tmp_path)[0]
    for at in (5, 7):
        run_world(2, lambda r, at=at: cut(dataset, tmp_path / f"cut-{at}", at), tmp_path)
        found = run_world(2, lambda r, at=at: cut(dataset, tmp_path / f"cut-{at}", None), tmp_path)[0]
        assert same(found, expected)


def test_another_number_of_ranks_goes_on_with_the_sums_of_all(dataset: Dataset, tmp_path: Path) -> None:
    run_world(2, lambda r: cut(dataset, tmp_path / "run", 5), tmp_path)
    held = checkpoint.latest(tmp_path / "run" / CHECKPOINTS)
    assert held is not None
    training, _, _ = training_of(dataset, tmp_path / "run", config_of())
    sums = training.teaching.state()[0]["sums"]
    assert torch.equal(sums[0], held.tensors["teaching"]["sums"].sum(dim=0))


def test_a_graph_is_searched_from_the_order_of_the_one_before(dataset: Dataset, tmp_path: Path) -> None:
    asked: list[GraphRequest] = []

    class Listening(LocalMaker):
        def submit(self, request: GraphRequest) -> None:
            asked.append(request)
            super().submit(request)

    teacher = Teacher()
    training, source, validation = training_of(dataset, tmp_path, config_of(), maker=Listening(teacher))
    training.run(source, validation, None)
    first, second = asked
    graph = teacher.graph(6)
    assert first.init_order is None and graph is not None
    assert second.init_order is not None and np.array_equal(second.init_order, graph.order)
    assert first.seed != second.seed


def test_plans() -> None:
    plan = GraphPlan((6, 14), window=10, lag=3, search={})
    assert [window_of(plan, step) for step in (0, 5, 6, 13, 14)] == [0, 0, 6, 6, None]
    narrow = GraphPlan((6, 14), window=2, lag=3, search={})
    assert [window_of(narrow, step) for step in (3, 4, 5, 6, 11, 12, 13)] == [None, 4, 4, None, None, 12, 12]
    assert checked(plan, 17).refreshes == (6,)
    assert checked(plan, 18).refreshes == (6, 14)
    with pytest.raises(ValueError, match="steps 6 and 8, and adopted 3 steps later"):
        checked(GraphPlan((6, 8), window=2, lag=3, search={}), 100)
    with pytest.raises(ValueError, match="window 0"):
        checked(GraphPlan((6,), window=0, lag=3, search={}), 100)


def test_a_graph_needs_labels(dataset: Dataset, tmp_path: Path) -> None:
    training, source, _ = training_of(dataset, tmp_path, config_of())
    batch = next(source.batches(0))
    unlabelled = type(batch)(batch.row, batch.views)
    with pytest.raises(ValueError, match=r"data\.annotation is not 'label'"):
        training.teaching.before_step(2, unlabelled, [len(batch.row)])


def test_what_a_run_writes_of_its_graphs(dataset: Dataset, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = resolve(config_of("train.log_every=2"), dataset.manifest)
    reporter = FolderReporter(
        config, tmp_path, first_step=0, history=[], tell=lambda m: None, classes=dataset.manifest.classes
    )
    state = train_alone(config, dataset, tmp_path, reporter)
    reporter.close(state.history[-1])
    board = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    board.Reload()
    tags = board.Tags()
    assert [event.step for event in board.Scalars("graph/edges")] == [9, 17]
    assert [event.step for event in board.Scalars("graph/distance")] == [17]
    assert {"graph/wait_s", "graph/version", "graph/frobenius", "teacher/queue"} <= set(tags["scalars"])
    assert [event.step for event in board.Images("graph/dependencies")] == [9, 17]


def test_a_run_starts_from_the_teacher_of_another(
    dataset: Dataset, undisturbed: Path, tmp_path: Path
) -> None:
    config = resolve(config_of(f"train.teacher={undisturbed}", "train.seed=7"), dataset.manifest)
    given = read_teacher(undisturbed, config, dataset)
    ended = checkpoint.latest(undisturbed / CHECKPOINTS)
    assert ended is not None and given.graph is not None
    assert all(torch.equal(w, ended.tensors["model"][f"slow.{name}"]) for name, w in given.weights.items())
    train_alone(config, dataset, tmp_path)
    first = checkpoint.read(checkpoint.path_of_step(tmp_path / CHECKPOINTS, 1)).tensors["model"]
    links = ended.tensors["model"]["links"]
    assert links.any() and torch.equal(first["links"], links)
    slow = [name for name in given.weights if name.endswith("weight")]
    near = [(first[f"slow.{name}"] - given.weights[name]).abs().max() for name in slow]
    assert max(near) < 0.1 < (first["slow.head.weight"] - first["towers.head.weight"]).abs().max()
    requested = read_graph(checkpoint.read(checkpoint.path_of_step(tmp_path / GRAPHS, 6)))
    assert requested.order.shape == given.graph.order.shape


def test_a_teacher_that_does_not_fit_is_refused(dataset: Dataset, undisturbed: Path, tmp_path: Path) -> None:
    config = resolve(config_of(), dataset.manifest)
    with pytest.raises(ValueError, match=r"holds no teacher .* give a finished run"):
        read_teacher(tmp_path, config, dataset)
    swapped = resolve(config_of('data.views=["visual", "audio"]'), dataset.manifest)
    with pytest.raises(
        ValueError, match=r"views \['audio', 'visual'\], this run trains on \['visual', 'audio'\]"
    ):
        read_teacher(undisturbed, swapped, dataset)
    (tmp_path / "five").mkdir()
    with pytest.raises(ValueError, match=r"knows 4 classes, .* has 5"):
        read_teacher(undisturbed, config, small_dataset(tmp_path / "five", classes=5))
    (tmp_path / "other").mkdir()
    with pytest.raises(
        ValueError, match=r"trained on small \(fingerprint .* train a teacher on this data set"
    ):
        read_teacher(undisturbed, config, small_dataset(tmp_path / "other", seed=1))
    wide = config_of(f"train.teacher={undisturbed}", "model.embedding=9")
    with pytest.raises(ValueError, match="the teacher does not fit"):
        train_alone(wide, dataset, tmp_path / "wide")
    plain = config_of("method.name=metric", f"train.teacher={undisturbed}")
    with pytest.raises(ValueError, match="Metric has no teacher to load; use psd or ili"):
        train_alone(plain, dataset, tmp_path / "plain")


def test_a_run_may_not_go_on_with_another_teacher(dataset: Dataset, tmp_path: Path) -> None:
    config = resolve(config_of(), dataset.manifest)
    run_folder.create(tmp_path / "run", config, dataset, teacher="a" * 64)
    run_folder.check_same_teacher(tmp_path / "run", "a" * 64)
    with pytest.raises(ValueError, match=r"has changed .*start a new run"):
        run_folder.check_same_teacher(tmp_path / "run", "b" * 64)


def test_the_graph_of_a_run_is_drawn_by_the_verb(undisturbed: Path, tmp_path: Path) -> None:
    ran = CliRunner().invoke(
        graph_verb, [str(undisturbed), "--out", str(tmp_path), "--bootstraps", "4", "--no-tensorboard"]
    )
    assert ran.exit_code == 0, ran.output
    assert (tmp_path / "dependency.png").stat().st_size > 1000

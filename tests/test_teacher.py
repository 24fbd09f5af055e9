"""All that the teacher's actor can do, without Ray."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raytrain import teacher as module
from raytrain.cluster import checkpoint
from raytrain.cluster.teacher_store import GRAPHS, TEACHER, FolderStore, settle
from raytrain.graph.accumulator import MomentAccumulator
from raytrain.graph.dependency import ClassDependency
from raytrain.teacher import (
    GraphFailed,
    GraphRequest,
    LocalMaker,
    Teacher,
    fingerprint,
    graph_facts,
    graph_of,
    graph_tensors,
    make_graph,
)

ABOUT = {"method": "ili", "views": ["audio", "visual"], "classes": ["a", "b", "c"], "fingerprint": "f" * 64}


def request(step: int = 40, seed: int = 3, **search: Any) -> GraphRequest:
    """Moments of 600 clips of 3 classes, in which hearing class 0 raises seeing class 2."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, 600)
    audio = generator.normal(size=(600, 3)) + 2 * np.eye(3)[labels]
    visual = generator.normal(size=(600, 3)) + 2 * np.eye(3)[labels]
    visual[:, 2] += audio[:, 0]
    moments = MomentAccumulator(3, num_clips=600)
    moments.update(audio, visual, labels, np.arange(600))
    return GraphRequest(step, 5, moments.to_arrays(), {"bootstraps": 4, "lift_threshold": None, **search})


def weights(value: float) -> dict[str, Tensor]:
    return {"head": torch.full((2, 3), value), "count": torch.tensor(7)}


def equal(first: ClassDependency, second: ClassDependency) -> bool:
    a, b = graph_tensors(first), graph_tensors(second)
    return graph_facts(first) == graph_facts(second) and all(torch.equal(a[name], b[name]) for name in a)


class Labels:
    """A method's soft labels are views times weights."""

    made = 0

    def __init__(self) -> None:
        Labels.made += 1
        self.head = torch.zeros(2, 3)

    def load_teacher(self, state: Mapping[str, Tensor]) -> None:
        self.head = state["head"]

    def soft_labels(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: x @ self.head for name, x in views.items()}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps of the graphs that were computed."""
    steps: list[int] = []

    def counting(asked: GraphRequest) -> ClassDependency:
        steps.append(asked.step)
        return make_graph(asked)

    monkeypatch.setattr(module, "make_graph", counting)
    return steps


def test_a_graph_is_a_function_of_its_request_alone() -> None:
    first, second = make_graph(request()), make_graph(request())
    assert equal(first, second)
    assert first.edge_frequency[0, 5] == 1
    other = make_graph(replace(request(), seed=6, init_order=first.order))
    assert other.edge_frequency.shape == (6, 6)


def test_everything_in_a_request_is_in_its_digest() -> None:
    asked = request()
    others = [
        replace(asked, step=41),
        replace(asked, seed=6),
        replace(asked, search={"bootstraps": 6, "lift_threshold": None}),
        replace(asked, init_order=np.arange(9)),
        replace(asked, moments={**asked.moments, "outer": asked.moments["outer"] + 1e-9}),
    ]
    assert request().digest() == asked.digest()
    assert len({asked.digest(), *(other.digest() for other in others)}) == 6


def test_a_graph_goes_through_tensors_and_facts_bit_for_bit() -> None:
    graph = make_graph(request())
    assert equal(graph_of(graph_tensors(graph), graph_facts(graph)), graph)


def test_a_repeated_request_is_computed_once(counted: list[int]) -> None:
    teacher = Teacher()
    graphs = [teacher.refresh(request()) for _ in range(3)]
    assert counted == [40]
    assert all(graph is graphs[0] for graph in graphs)
    teacher.refresh(request(step=80))
    assert teacher.history() == [40, 80] and teacher.graph() is teacher.graph(80)
    assert teacher.graph(41) is None


def test_requests_at_once_are_computed_once(counted: list[int]) -> None:
    teacher, found = Teacher(), []
    threads = [threading.Thread(target=lambda: found.append(teacher.refresh(request()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted == [40] and all(graph is found[0] for graph in found)


def test_other_moments_of_the_same_step_replace_the_graph(counted: list[int]) -> None:
    teacher = Teacher()
    teacher.refresh(request())
    second = teacher.refresh(request(seed=9))
    assert counted == [40, 40] and teacher.graph(40) is second


def test_older_weights_change_nothing() -> None:
    teacher = Teacher()
    assert teacher.version is None and teacher.state()["version"] is None
    for step, value in ((20, 2.0), (10, 1.0), (20, 5.0)):
        teacher.publish(step, weights(value))
    assert teacher.version == 20 and teacher.state()["publishes"] == 1
    assert torch.equal(teacher.newest()[0]["head"], weights(2.0)["head"])
    teacher.publish(21, weights(3.0))
    assert teacher.version == 21


def test_soft_labels_are_those_of_the_published_weights() -> None:
    teacher = Teacher(labeller=Labels)
    views = {"audio": torch.ones(4, 2), "visual": torch.ones(4, 2) * 2}
    with pytest.raises(ValueError, match="nothing was published"):
        teacher.soft_labels(views)
    Labels.made = 0
    for step in (1, 2):
        teacher.publish(step, weights(float(step)))
        found = teacher.soft_labels(views)
        assert found["audio"].eq(2.0 * step).all() and found["visual"].eq(4.0 * step).all()
    assert Labels.made == 1 and teacher.state()["soft_label_rows"] == 8
    with pytest.raises(ValueError, match="give it a labeller"):
        Teacher().soft_labels(views)


def test_a_new_teacher_on_the_same_store_holds_the_same(tmp_path: Path, counted: list[int]) -> None:
    first = Teacher(FolderStore(tmp_path, ABOUT))
    first.publish(20, weights(2.0))
    graph = first.refresh(request())
    second = Teacher(FolderStore(tmp_path, ABOUT), Labels)
    assert second.version == 20 and equal(second.refresh(request()), graph)
    assert counted == [40], "a restarted teacher remembers"
    second.publish(10, weights(1.0))
    assert second.soft_labels({"audio": torch.ones(1, 2)})["audio"].eq(4.0).all()


def test_a_damaged_graph_is_made_again(
    tmp_path: Path, counted: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    graph = Teacher(FolderStore(tmp_path, ABOUT)).refresh(request())
    file = checkpoint.path_of_step(tmp_path / GRAPHS, 40) / "graph.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 4
    file.write_bytes(bytes(data))
    again = Teacher(FolderStore(tmp_path, ABOUT)).refresh(request())
    assert "sha256" in caplog.text and "made again" in caplog.text
    assert counted == [40, 40] and equal(again, graph)
    assert equal(Teacher(FolderStore(tmp_path, ABOUT)).refresh(request()), graph) and len(counted) == 2


def test_damaged_weights_fall_back_to_those_before(tmp_path: Path) -> None:
    teacher = Teacher(FolderStore(tmp_path, ABOUT))
    for step in (10, 20, 30):
        teacher.publish(step, weights(float(step)))
    paths = checkpoint.list_steps(tmp_path / TEACHER)
    assert [path.name for path in paths] == ["step-00000020", "step-00000030"]
    (paths[-1] / "weights.safetensors").write_bytes(b"short")
    assert Teacher(FolderStore(tmp_path, ABOUT)).version == 20


def test_what_a_killed_teacher_left_half_written_is_ended(tmp_path: Path, counted: list[int]) -> None:
    """Cut off in a save, and between the two renames of one that replaces."""
    teacher = Teacher(FolderStore(tmp_path, ABOUT))
    teacher.publish(10, weights(1.0))
    graph = teacher.refresh(request())
    half = tmp_path / TEACHER / ".step-00000020.partial"
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"half")
    place = checkpoint.path_of_step(tmp_path / GRAPHS, 40)
    place.rename(place.with_name(f".{place.name}.old"))
    settle(tmp_path)
    again = Teacher(FolderStore(tmp_path, ABOUT))
    assert not half.exists() and again.version == 10
    assert equal(again.refresh(request()), graph) and counted == [40]


def test_a_disk_that_is_full_costs_no_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*unused: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    teacher = Teacher(FolderStore(tmp_path, ABOUT))
    assert equal(teacher.refresh(request()), make_graph(request()))
    assert "No space left" in caplog.text
    with pytest.raises(OSError, match="No space left"):
        teacher.publish(10, weights(1.0))
    assert teacher.version is None, "what is not durable is not published"


def test_the_fingerprint_is_of_weights_and_graph() -> None:
    graph = make_graph(request())
    prints = {
        fingerprint(weights(1.0), None),
        fingerprint(weights(1.0), graph),
        fingerprint(weights(2.0), graph),
        fingerprint(weights(1.0), replace(graph, verdict="unlinked", permuted_edges=9)),
        fingerprint({"neck": weights(1.0)["head"], "count": torch.tensor(7)}, graph),
    }
    assert len(prints) == 5
    assert fingerprint(weights(1.0), make_graph(request())) in prints


def test_the_local_maker_keeps_the_last_weights_alone(tmp_path: Path) -> None:
    maker = LocalMaker(Teacher(FolderStore(tmp_path, ABOUT)))
    maker.publish(10, lambda: weights(1.0), last=False)
    assert not (tmp_path / TEACHER).exists()
    maker.publish(12, lambda: weights(2.0), last=True)
    assert checkpoint.list_steps(tmp_path / TEACHER)[0].name == "step-00000012"
    maker.submit(request())
    assert maker.state() == {"queue": 1.0}
    assert equal(maker.result(40), make_graph(request())) and maker.state() == {"queue": 0.0}


def test_moments_that_allow_no_graph_are_a_failure_with_a_reason() -> None:
    maker = LocalMaker()
    maker.submit(replace(request(), moments=MomentAccumulator(3).to_arrays()))
    with pytest.raises(GraphFailed, match="hold 0 clips"):
        maker.result(40)
    maker.submit(request(penalty=-1.0))
    with pytest.raises(GraphFailed, match="penalty"):
        maker.result(40)

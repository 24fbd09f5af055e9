from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from raytrain.cli_graph import graph
from raytrain.graph.accumulator import MomentAccumulator


@pytest.fixture
def planted() -> dict[str, np.ndarray]:
    """Five classes; hearing class 0 brings the sight of class 1, beyond what the annotated class explains."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 5, 6000)
    audio, visual = (2.0 * np.eye(5)[labels] + generator.normal(size=(6000, 5)) for _ in range(2))
    visual[:, 1] += 0.9 * audio[:, 0]
    names = np.array(["train", "bell", "dog", "drum", "rain"])
    return {"audio": audio, "visual": visual, "labels": labels, "classes": names}


def test_a_file_of_soft_labels_becomes_pictures_a_table_and_a_board(
    planted: dict[str, np.ndarray], tmp_path: Path
) -> None:
    np.savez(tmp_path / "soft.npz", **planted)
    out = tmp_path / "out"
    done = CliRunner().invoke(graph, [str(tmp_path / "soft.npz"), "--out", str(out), "--tensorboard"])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("linked: ")
    assert "train (audio) -> bell (visual)" in done.output
    summary = json.loads((out / "dependency.json").read_text())
    assert summary["audio_to_visual"][0][1] > 0.5
    assert (out / "dependency.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in (out / "dependency.svg").read_text()
    board = EventAccumulator(str(out / "tensorboard"))
    board.Reload()
    assert board.Tags()["images"] == ["dependency/graph"]
    table = board.Tensors("dependency/edges/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "train (audio) | bell (visual)" in table


def test_a_run_is_read_from_its_moments_and_gets_a_board(
    planted: dict[str, np.ndarray], tmp_path: Path
) -> None:
    moments = MomentAccumulator(5)
    moments.update(planted["audio"], planted["visual"], planted["labels"], np.arange(6000))
    (tmp_path / "teacher").mkdir()
    np.savez(tmp_path / "teacher" / "moments.npz", **moments.to_arrays())
    search = {"penalty": 0.75, "bootstraps": 6, "sign": "positive", "orientation": "annotation"}
    retired = {"min_rise": 0.0, "less_mirror": False}
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"method": {"name": "ili", "search": search | retired}}))
    done = CliRunner().invoke(graph, [str(tmp_path), "--frequency", "0.9", "--min-effect", "0.1"])
    assert done.exit_code == 0, done.output
    settings = json.loads((tmp_path / "dependency.json").read_text())["settings"]
    asked = {"frequency": 0.9, "min_effect": 0.1}
    assert settings == search | {"lift_threshold": 4.0, "told": 0.0} | asked
    assert "class 0 (audio) -> class 1 (visual)" in done.output
    assert list((tmp_path / "tensorboard").glob("events*"))
    config.write_text(json.dumps({"method": {"name": "ili", "search": search | {"min_rise": 0.2}}}))
    done = CliRunner().invoke(graph, [str(tmp_path)])
    assert done.exit_code == 2 and "search has no min_rise any more" in " ".join(done.output.split())


def test_clips_of_a_file_can_be_those_whose_class_is_told_in_one_view(
    planted: dict[str, np.ndarray], tmp_path: Path
) -> None:
    np.savez(tmp_path / "soft.npz", **planted)
    done = CliRunner().invoke(graph, [str(tmp_path / "soft.npz"), "--bootstraps", "6", "--one-view", "0.5"])
    assert done.exit_code == 0, done.output
    row = np.arange(6000)
    told = [planted[view][row, planted["labels"]] for view in ("audio", "visual")]
    expected = ((np.maximum(*told) > 0) & (np.minimum(*told) < -0.5)).sum()
    assert json.loads((tmp_path / "dependency.json").read_text())["num_samples"] == expected
    moments = MomentAccumulator(5)
    moments.update(planted["audio"], planted["visual"], planted["labels"], row)
    np.savez(tmp_path / "moments.npz", **moments.to_arrays())
    done = CliRunner().invoke(graph, [str(tmp_path / "moments.npz"), "--one-view", "0.5"])
    assert done.exit_code == 2
    assert "train with method.one_view" in " ".join(done.output.split())


def test_what_the_annotation_says_is_of_a_file_of_clips_or_of_moments_that_keep_it(
    planted: dict[str, np.ndarray], tmp_path: Path
) -> None:
    np.savez(tmp_path / "soft.npz", **planted)
    row, rows = np.arange(6000), (planted["audio"], planted["visual"], planted["labels"])
    for told in (True, False):
        moments = MomentAccumulator(5, told=told)
        moments.update(*rows, row)
        np.savez(tmp_path / f"told {told}.npz", **moments.to_arrays())
    found = []
    for source in ("soft", "told True", "told False"):
        options = ["--bootstraps", "6", "--told", "0.3", "--min-effect", "0.2"]
        done = CliRunner().invoke(graph, [str(tmp_path / f"{source}.npz"), *options])
        if source == "told False":
            assert done.exit_code == 2
            assert "train with method.search.told" in " ".join(done.output.split())
        else:
            assert done.exit_code == 0, done.output
            found.append(json.loads((tmp_path / "dependency.json").read_text()))
    assert found[0]["audio_to_visual"] == found[1]["audio_to_visual"]
    assert found[0]["settings"]["told"] == 0.3 and found[0]["edges"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [({"audio": np.zeros((3, 2))}, "visual, labels missing; it holds audio"), (None, "no moments in")],
)
def test_what_is_missing_is_named(arrays: dict[str, np.ndarray] | None, message: str, tmp_path: Path) -> None:
    source = tmp_path
    if arrays is not None:
        source = tmp_path / "soft.npz"
        np.savez(source, **arrays)
    done = CliRunner().invoke(graph, [str(source)])
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())

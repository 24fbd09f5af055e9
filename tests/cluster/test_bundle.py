from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from raytrain.cli import cli
from raytrain.cluster.bundle import open_index, write_index
from raytrain.cluster.checkpoint import DamagedCheckpoint
from raytrain.cluster.evaluate import embed_split, load
from raytrain.data.manifest import Dataset
from raytrain.data.shards import read_split
from tests.cluster.runs import finished_run
from tests.datasets import small_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("runs") / "a", dataset, "method.loss=info-nce")


@pytest.fixture(scope="module")
def index(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("index") / "all"
    assert write_index(run, out, ("test", "validation")) == 60 + 16
    return out


@pytest.mark.parametrize("method", ["metric", "hsc-mae", "compositional"])
def test_one_view_alone_is_embedded_as_the_evaluation_embeds_it(
    dataset: Dataset, tmp_path: Path, method: str
) -> None:
    """Without run and data set, which are gone."""
    own = finished_run(tmp_path / "run", dataset, f"method.name={method}", "train.epochs=1")
    write_index(own, tmp_path / "index", ("test",))
    config, _, trained = load(own)
    expected = embed_split(trained, dataset, "test", config.data.views)
    shutil.rmtree(own)
    opened = open_index(tmp_path / "index")
    for view in ("audio", "visual"):
        features = read_split(dataset, "test").views[view]
        np.testing.assert_allclose(opened.embed(view, features), expected.embeddings[view], atol=1e-6)
        np.testing.assert_array_equal(opened.embeddings[view], expected.embeddings[view])


def test_a_clip_is_found_across_the_views(index: Path, dataset: Dataset) -> None:
    opened = open_index(index)
    assert opened.clips[0] == "test/0" and opened.clips[60] == "validation/0"
    query = opened.of_clip("audio", "validation/3")
    found = opened.search(query, view="visual", count=5)
    scores = opened.embeddings["visual"] @ query[0]
    assert found.item[0].tolist() == np.argsort(-scores, kind="stable")[:5].tolist()
    own = opened.search(opened.of_clip("visual", "test/7"), view="visual", count=1)
    assert own.item.tolist() == [[7]] and own.cosine[0, 0] == pytest.approx(1, abs=1e-6)


def test_the_verbs(run: Path, dataset: Dataset, tmp_path: Path) -> None:
    runner, out = CliRunner(), tmp_path / "index"
    made = runner.invoke(cli, ["index", str(run), "--out", str(out)], catch_exceptions=False)
    assert made.exit_code == 0 and "60 clips" in made.output
    test = read_split(dataset, "test")
    np.save(tmp_path / "query.npy", test.views["audio"][4])
    by_clip, by_features = (
        json.loads(
            runner.invoke(cli, ["search", str(out), *by, "-k", "3", "--json"], catch_exceptions=False).output
        )
        for by in (["--clip", "test/4"], ["--features", str(tmp_path / "query.npy")])
    )
    assert [hit["clip"] for hit in by_clip[0]["found"]] == [hit["clip"] for hit in by_features[0]["found"]]
    assert test.labels is not None
    for hit in by_clip[0]["found"]:
        row = int(hit["clip"].removeprefix("test/"))
        assert hit["class"] == dataset.manifest.classes[test.labels[row]]
    table = runner.invoke(cli, ["search", str(out), "--clip", "test/4", "-k", "3"])
    assert by_clip[0]["found"][0]["clip"] in table.output


def test_what_is_wrong_is_named(index: Path, run: Path, tmp_path: Path) -> None:
    opened = open_index(index)
    with pytest.raises(ValueError, match=r"size 5; this index was trained on size 6"):
        opened.embed("audio", np.zeros((2, 5), np.float32))
    with pytest.raises(ValueError, match="row 1 holds NaN"):
        opened.embed("audio", np.array([[0.0] * 6, [np.nan] * 6], np.float32))
    with pytest.raises(ValueError, match=r"no clip 'x'.*named like 'test/0'"):
        opened.of_clip("audio", "x")
    with pytest.raises(ValueError, match="no view 'smell'; it has: audio, visual"):
        opened.of_clip("smell", "test/0")
    with pytest.raises(ValueError, match="is not an index"):
        open_index(run)
    with pytest.raises(ValueError, match="exists and is not an index"):
        write_index(run, run, ("test",))
    assert (run / "config.json").exists()


def test_an_index_is_replaced_whole_and_a_changed_byte_is_refused(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    write_index(run, out, ("test",))
    assert write_index(run, out, ("validation",)) == 16 and len(open_index(out)) == 16
    target = out / "embeddings.safetensors"
    content = bytearray(target.read_bytes())
    content[-5] ^= 1
    target.write_bytes(bytes(content))
    with pytest.raises(DamagedCheckpoint, match=r"embeddings\.safetensors"):
        open_index(out)

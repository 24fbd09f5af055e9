"""The demo world: what is planted is there, and a shard is a function of the config alone."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from raytrain.data.manifest import Dataset, open_dataset
from raytrain.data.scaler import scaled
from raytrain.data.scene_config import SceneConfig
from raytrain.data.scene_features import draw_map
from raytrain.data.scene_graph import SceneGraph, draw_graph
from raytrain.data.scene_labels import bivariate_normal, fitted_labels, generated_labels, read_label_table
from raytrain.data.scene_truth import read_truth
from raytrain.data.scene_world import draw_clips, make_world
from raytrain.data.scenes import generate_scenes
from raytrain.data.shards import read_split
from tests.data.files import shared_file

SMALL = SceneConfig(
    clips=2_000, classes=6, audio_size=9, visual_size=13, row_group_rows=64, shard_rows=128, seed=3
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return generate_scenes(tmp_path_factory.mktemp("scenes") / "a", config=SMALL, processes=1)


def digests(dataset: Dataset) -> list[str]:
    return [entry.sha256 for entry in dataset.files()]


def test_any_number_of_processes_writes_the_same_files(world: Dataset, tmp_path: Path) -> None:
    """Fewer shards, for each new process has to import everything."""
    config = SMALL.model_copy(update={"shard_rows": 512})
    one = generate_scenes(tmp_path / "one", config=config, processes=1)
    two = generate_scenes(tmp_path / "two", config=config, processes=2)
    assert digests(one) == digests(two)
    other = generate_scenes(tmp_path / "c", config=config.model_copy(update={"seed": 4}), processes=1)
    assert not set(digests(one)) & set(digests(other))


def test_it_is_called_synthetic_and_its_counts_are_right(world: Dataset) -> None:
    manifest = open_dataset(world.path).manifest
    assert manifest.synthetic
    assert any(warning.startswith("synthetic") for warning in manifest.warnings)
    assert [split.rows for split in manifest.splits.values()] == [1600, 200, 200]
    assert SceneConfig.model_validate(manifest.config) == SMALL
    for split, entry in manifest.splits.items():
        world.verify(split)
        found = read_split(world, split)
        assert entry.class_counts == tuple(np.bincount(found.labels, minlength=6).tolist())
        assert entry.event_counts == tuple(found.events.sum(axis=0).tolist())
        assert all(shard.rows == 128 for shard in entry.shards[:-1])
    train = read_split(world, "train")
    for view, values in train.views.items():
        normal = scaled(values, manifest.views[view].scaler)
        np.testing.assert_allclose(normal.mean(axis=0), 0, atol=1e-4)
        np.testing.assert_allclose(normal.std(axis=0), 1, atol=1e-3)


def test_the_truth_is_that_of_the_events(world: Dataset) -> None:
    for split in world.manifest.splits:
        found, truth = read_split(world, split), read_truth(world, split)
        np.testing.assert_array_equal(found.events.astype(bool), truth.audio | truth.visual)
        assert (
            found.events[np.arange(len(found)), found.labels] == 1
        ).all()  # the label is one of the events
    strength = truth.graph.strength
    np.testing.assert_array_equal(strength, make_world(SMALL).graph.strength)
    with pytest.raises(ValueError, match="there is no split 'tset'"):
        read_truth(world, "tset")


def test_the_share_of_hidden_events_is_the_one_asked_for() -> None:
    for hidden in (0.3, 0.6):
        config = SMALL.model_copy(update={"hidden": hidden, "edges": 2})
        clips = draw_clips(make_world(config), 4_000, np.random.default_rng(0))
        events = (clips.audio_events | clips.visual_events).sum()
        assert 1 - 4_000 / events == pytest.approx(hidden, abs=0.02)
    with pytest.raises(
        ValueError, match=r"hidden is 0\.1, but 6 classes with 6 planted dependencies give 0\.\d+ at"
    ):
        make_world(SMALL.model_copy(update={"hidden": 0.1}))


def test_unannotated_clips_are_in_train_alone(tmp_path: Path) -> None:
    config = SMALL.model_copy(update={"unannotated": 0.4})
    dataset = generate_scenes(tmp_path / "a", config=config, processes=1)
    shares = {name: split.unannotated / split.rows for name, split in dataset.manifest.splits.items()}
    assert shares["train"] == pytest.approx(0.4, abs=0.05)
    assert shares["validation"] == shares["test"] == 0


# graph


def test_the_graph_is_acyclic_cross_modal_and_cross_class() -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        graph = draw_graph(7, num_edges=12, strength=(0.5, 0.9), rng=rng)
        sources, targets = np.nonzero(graph.strength)
        assert len(sources) == 12
        rank = np.argsort(graph.order)
        assert (rank[sources] < rank[targets]).all()
        assert (sources // 7 != targets // 7).all()
        assert (sources % 7 != targets % 7).all()
        assert ((graph.strength[sources, targets] >= 0.5) & (graph.strength[sources, targets] <= 0.9)).all()
        assert (graph.strength > 0).sum(axis=0).max() <= 2


def test_too_many_edges_are_refused() -> None:
    with pytest.raises(ValueError, match="edges do not fit 4 classes without a cycle; at most"):
        draw_graph(4, num_edges=13, strength=(0.5, 0.9), rng=np.random.default_rng(0))


def test_events_spread_as_a_noisy_or() -> None:
    """P(j | parents) = 1 - (1 - base) prod (1 - w active), against frequencies; chains included."""
    strength = np.zeros((4, 4))
    strength[0, 3], strength[2, 3 - 2] = 0.6, 0.3  # 0 -> 3, 2 -> 1
    strength[3, 1] = 0.5  # 3 -> 1: a chain 0 -> 3 -> 1
    graph = SceneGraph(strength, np.array([2, 0, 3, 1]))
    base = np.tile(np.array([[True, False, True, False]]), (40_000, 1))
    active = graph.spread(base, np.random.default_rng(0))
    assert active[:, [0, 2]].all()
    assert active[:, 3].mean() == pytest.approx(0.6, abs=0.01)
    both = 1 - (1 - 0.3) * (1 - 0.5)
    assert active[active[:, 3], 1].mean() == pytest.approx(both, abs=0.015)
    assert active[~active[:, 3], 1].mean() == pytest.approx(0.3, abs=0.015)
    none = graph.spread(np.zeros((100, 4), bool), np.random.default_rng(0))
    assert not none.any()


def test_a_planted_cause_raises_its_effect() -> None:
    world = make_world(SMALL)
    clips = draw_clips(world, 20_000, np.random.default_rng(0))
    nodes = np.concatenate([clips.audio_events, clips.visual_events], axis=1)
    for source, target in np.argwhere(world.graph.strength):
        there = nodes[nodes[:, source], target].mean()
        assert there > world.graph.strength[source, target] - 0.05
        assert there > nodes[~nodes[:, source], target].mean() + 0.1


# labels


def test_the_bivariate_normal_agrees_with_scipy() -> None:
    rng = np.random.default_rng(0)
    a, b, r = rng.normal(size=12), rng.normal(size=12), rng.uniform(-0.95, 0.95, 12)
    found = bivariate_normal(a, b, r)
    for i in range(12):
        wanted = multivariate_normal([0, 0], [[1, r[i]], [r[i], 1]]).cdf([a[i], b[i]])
        assert found[i] == pytest.approx(wanted, abs=1e-6)
    # Limit: independent.
    phi = 0.5 * (1 + math.erf(a[0] / math.sqrt(2)))
    psi = 0.5 * (1 + math.erf(b[0] / math.sqrt(2)))
    assert bivariate_normal(a[:1], b[:1], np.zeros(1))[0] == pytest.approx(phi * psi, abs=1e-12)


def test_a_fitted_model_has_the_rates_and_co_occurrences_of_its_table() -> None:
    table = generated_labels(7, np.random.default_rng(1)).shifted(0.8).draw(30_000, np.random.default_rng(2))
    drawn = fitted_labels(table, np.random.default_rng(4)).draw(60_000, np.random.default_rng(3))
    together = drawn.T.astype(float) @ drawn / len(drawn)
    wanted = table.T.astype(float) @ table / len(table)
    np.testing.assert_allclose(together, wanted, atol=0.012)
    independent = np.outer(table.mean(axis=0), table.mean(axis=0))
    off = ~np.eye(7, dtype=bool)
    assert np.abs(wanted - independent)[off].max() > 0.05  # or the rates alone would have been enough


def test_a_real_label_table(tmp_path: Path) -> None:
    path = shared_file("llp_weak_labels.npz")
    table, names = read_label_table(path)
    assert table.shape[1] == 25 and len(names) == 25
    config = SceneConfig(
        clips=2_000,
        label_table=str(path),
        label_model="resample",
        hidden=None,
        audio_size=8,
        visual_size=8,
        edges=0,
    )
    dataset = generate_scenes(tmp_path / "a", config=config, processes=1)
    assert dataset.manifest.classes == names
    assert dataset.manifest.sources[0].path == str(path)
    counts = np.array(dataset.manifest.splits["train"].event_counts) / 1600
    np.testing.assert_allclose(counts, table.mean(axis=0), atol=0.04)
    fitted = make_world(config.model_copy(update={"label_model": "fit"}))
    drawn = fitted.labels.draw(20_000, np.random.default_rng(0))
    np.testing.assert_allclose(drawn.mean(axis=0), table.mean(axis=0), atol=0.02)


def test_a_fitted_table_takes_a_share_of_hidden_events(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "table.npz", weak=(rng.random((4_000, 6)) < 0.3).astype(np.uint8))
    for hidden in (0.4, 0.6):
        config = SceneConfig(
            clips=2_000, label_table=str(tmp_path / "table.npz"), label_model="fit", hidden=hidden, edges=2
        )
        clips = draw_clips(make_world(config), 4_000, np.random.default_rng(0))
        events = (clips.audio_events | clips.visual_events).sum()
        assert 1 - 4_000 / events == pytest.approx(hidden, abs=0.02)


def test_contradicting_knobs_are_refused() -> None:
    for knobs, said in (
        ({"clips": 100}, "greater than or equal to 2000"),
        ({"label_model": "fit"}, "need a label_table"),
        ({"label_model": "resample", "label_table": "x"}, "set hidden to none"),
        ({"classes": 4, "edges": 50}, "at most 12"),
        ({"strength": (0.9, 0.5)}, "rising order"),
        ({"shard_rows": 1000}, "multiple of row_group_rows"),
    ):
        with pytest.raises(ValueError, match=said):
            SceneConfig(**knobs)  # type: ignore[arg-type]


# features


def test_features_are_the_stated_map() -> None:
    """x = relu(W2 sin(W1 h + b)), h = sum_i gain_i prototype_i, without noise."""
    found = draw_map(3, size=4, latent=5, rng=np.random.default_rng(0))
    gains = np.array([[0.7, 0, 1.2], [0, 0, 0]], np.float32)
    features = found(gains, noise=0.0, rng=np.random.default_rng(1))
    for n in range(2):
        latent = [sum(float(gains[n, i]) * float(found.prototypes[i, k]) for i in range(3)) for k in range(5)]
        hidden = [
            math.sin(sum(latent[k] * float(found.inner[k, j]) for k in range(5)) + float(found.offset[j]))
            for j in range(found.offset.shape[0])
        ]
        for column in range(4):
            value = sum(hidden[j] * float(found.outer[j, column]) for j in range(len(hidden)))
            assert features[n, column] == pytest.approx(max(value, 0.0), abs=1e-4)
    np.testing.assert_allclose(np.linalg.norm(found.prototypes, axis=1), 1, rtol=1e-6)
    noisy = found(np.zeros((4000, 3), np.float32), noise=0.5, rng=np.random.default_rng(2))
    assert noisy.std(axis=0).min() > 0


def test_the_default_world_is_learnable_and_not_trivial(tmp_path: Path) -> None:
    """Linear CCA: a MAP clearly above chance and far below 1."""
    dataset = generate_scenes(tmp_path / "a", config=SceneConfig(clips=10_000), processes=1)
    scalers = {view: entry.scaler for view, entry in dataset.manifest.views.items()}
    train, test = (read_split(dataset, split) for split in ("train", "test"))
    a, v = (scaled(train.views[view], scalers[view]).astype(np.float64) for view in ("audio", "visual"))
    whiten = []
    for x in (a, v):
        values, vectors = np.linalg.eigh(x.T @ x / len(x) + 1e-1 * np.eye(x.shape[1]))
        whiten.append(vectors / np.sqrt(values) @ vectors.T)
    left, correlation, right = np.linalg.svd(whiten[0] @ (a.T @ v / len(a)) @ whiten[1], full_matrices=False)
    query = scaled(test.views["audio"], scalers["audio"]) @ whiten[0] @ left[:, :20] * correlation[:20]
    gallery = scaled(test.views["visual"], scalers["visual"]) @ whiten[1] @ right[:20].T * correlation[:20]
    query /= np.linalg.norm(query, axis=1, keepdims=True)
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    order = np.argsort(-(query @ gallery.T), axis=1)
    relevant = test.labels[order] == test.labels[:, None]
    precision = np.cumsum(relevant, axis=1) / np.arange(1, len(test) + 1)
    found = float(((precision * relevant).sum(axis=1) / relevant.sum(axis=1)).mean())
    chance = float(relevant.mean())
    assert 3 * chance < found < 0.6, (chance, found)

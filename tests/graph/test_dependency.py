"""Planted dependencies are found with their directions; nothing is found where labels mean nothing."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from click.testing import CliRunner

from raytrain.cli_graph import graph
from raytrain.graph.accumulator import MomentAccumulator
from raytrain.graph.baselines import TABLE, authors_recipe, baseline, directed_f1
from raytrain.graph.convert import (
    edges,
    from_general_graph,
    from_json,
    to_dot,
    to_general_graph,
    to_graphml,
    to_json,
    to_networkx,
)
from raytrain.graph.dependency import (
    by_annotation,
    class_dependency,
    cross_modal,
    lift_mask,
    normalised_top,
    resample,
)
from raytrain.graph.draw import dependency_figure, edge_table
from raytrain.graph.planted import soft_labels

CLASSES = 6


def world(n=6000, seed=3, nuisance=0.0, kind="events"):
    made = soft_labels(CLASSES, n, world=kind, nuisance=nuisance, seed=seed)
    none = np.zeros_like(made.audio_to_visual)
    truth = np.block([[none, made.audio_to_visual], [made.visual_to_audio, none]])
    return made, moments_of(made.audio, made.visual, made.labels), truth


def independent(n, *, seed):
    """Logits of n clips, audio and visual, that depend on nothing but the annotated class, and the classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=n)
    audio, visual = (rng.standard_normal((n, CLASSES)) + 2 * np.eye(CLASSES)[labels] for _ in range(2))
    return audio, visual, labels


def moments_of(audio, visual, labels):
    moments = MomentAccumulator(CLASSES)
    moments.update(audio, visual, labels, np.arange(len(labels)))
    return moments


def frequent_pairs(found):
    """The classes (heard, seen) of the cross-modal, cross-class edges that half of the resamples hold."""
    across = found.edge_frequency[:CLASSES, CLASSES:] >= 0.5
    return [[x, y] for x, y in np.argwhere(across).tolist() if x != y]


def two_dependencies(*, seed, second):
    """Moments of 6,000 clips: hearing 0 raises the sight of 1 by 0.8, hearing 2 that of 3 by `second`."""
    audio, visual, labels = independent(6000, seed=seed)
    visual[:, 1] += 0.8 * audio[:, 0]
    visual[:, 3] += second * audio[:, 2]
    return moments_of(audio, visual, labels)


@pytest.mark.parametrize("kind", ["linear", "events"])
def test_planted_dependencies_are_found_with_their_weights(kind):
    made, moments, truth = world(kind=kind)
    found = class_dependency(moments, bootstraps=10)
    assert found.verdict == "linked"
    assert directed_f1(found.direction_frequency * found.stable, truth) >= 0.75
    for weights, planted in (
        (found.audio_to_visual, made.audio_to_visual),
        (found.visual_to_audio, made.visual_to_audio),
    ):
        assert weights[planted].sum() >= 0.6 * weights.sum()
        rows = weights.sum(axis=1)
        assert np.all(np.isclose(rows, 1) | (rows == 0))
        assert not np.diag(weights).any()
    np.testing.assert_allclose(found.edge_frequency, found.direction_frequency + found.direction_frequency.T)


def test_competition_is_no_dependency_where_only_positive_effects_count():
    """Of two planted dependencies one is a suppression: sign = "positive" keeps the other alone."""
    moments = two_dependencies(seed=5, second=-0.8)
    found = {
        sign: class_dependency(moments, bootstraps=6, lift_threshold=None, sign=sign)
        for sign in ("any", "positive")
    }
    either = {sign: of.audio_to_visual + of.visual_to_audio.T > 0 for sign, of in found.items()}
    assert np.argwhere(either["any"]).tolist() == [[0, 1], [2, 3]]
    assert np.argwhere(either["positive"]).tolist() == [[0, 1]]
    assert found["positive"].stable[2, CLASSES + 3] == 0 < found["any"].edge_frequency[2, CLASSES + 3]
    assert found["positive"].edge_frequency[2, CLASSES + 3] == 0


def test_small_effects_are_no_dependency_where_they_are_not_wanted():
    """Of two planted dependencies one is strong and one weak, both significant."""
    moments = two_dependencies(seed=6, second=0.15)
    for least, expected in ((0.0, [[0, 1], [2, 3]]), (0.3, [[0, 1]])):
        found = class_dependency(moments, bootstraps=6, lift_threshold=None, min_effect=least)
        either = found.audio_to_visual + found.visual_to_audio.T > 0
        assert np.argwhere(either).tolist() == expected


def test_the_annotation_orients_what_noise_hides_from_the_search():
    """Hearing 0 brings the sight of 1, and both are seen through noise.  One event is annotated, the loudest; what was
    brought is faint.  Clips of 0 hold 1 more often than clips of 1 hold 0."""
    rng = np.random.default_rng(7)
    n = 20_000
    heard, seen = (rng.random((n, CLASSES)) < 0.2 for _ in range(2))
    both = rng.random((n, CLASSES)) < 0.15
    heard, seen = heard | both, seen | both
    seen[:, 1] |= heard[:, 0] & (rng.random(n) < 0.8)
    gains = [np.where(events, rng.uniform(0.5, 1.5, events.shape), 0.0) for events in (heard, seen)]
    labels = (gains[0] + gains[1]).argmax(axis=1)
    audio, visual = (4 * events - 2 + rng.standard_normal(events.shape) * 1.5 for events in (heard, seen))
    moments = MomentAccumulator(CLASSES, bounds=(-3.0, 3.0))
    moments.update(audio, visual, labels, np.arange(n))
    found = class_dependency(
        moments, bootstraps=6, lift_threshold=None, sign="positive", orientation="annotation"
    )
    assert found.stable[0, CLASSES + 1]
    assert found.direction_frequency[0, CLASSES + 1] == 1 and found.direction_frequency[CLASSES + 1, 0] == 0
    assert found.audio_to_visual[0, 1] > 0 == found.visual_to_audio[1, 0]


def hidden_by_its_cause(*, seed, n=20_000):
    """Logits of clips in which hearing 0 brings the sight of 1.

    A teacher has learnt that 1 is absent where 0 is seen too: those clips are annotated with 0.
    """
    rng = np.random.default_rng(seed)
    base = rng.random((n, CLASSES)) < 0.15
    where = rng.random((n, CLASSES))
    heard, seen = base & (where < 0.85), base & ((where < 0.7) | (where >= 0.85))
    seen[:, 1] |= heard[:, 0] & (rng.random(n) < 0.7)
    gains = [np.where(events, rng.uniform(0.5, 1.5, events.shape), 0.0) for events in (heard, seen)]
    labels = (gains[0] + gains[1]).argmax(axis=1)
    told = seen.copy()
    told[:, 1] &= ~seen[:, 0]
    audio, visual = (6 * events - 3 + rng.standard_normal(events.shape) for events in (heard, told))
    return audio, visual, labels


def test_clips_whose_class_is_told_in_one_view_show_what_a_cause_hides():
    for seed in range(3):
        rows = hidden_by_its_cause(seed=seed)
        effects, frequencies = [], []
        for one_view in (None, 0.5):
            moments = MomentAccumulator(CLASSES, one_view=one_view)
            moments.update(*rows, np.arange(len(rows[2])))
            found = class_dependency(moments, bootstraps=6, lift_threshold=None, sign="positive")
            effects.append(found.effects[0, CLASSES + 1])
            frequencies.append(found.edge_frequency[0, CLASSES + 1])
        assert effects[1] > 1.4 * effects[0] and frequencies[1] == 1 > frequencies[0]


def faint(rows, *, seed):
    """The same logits seen through noise, in which classes 2 and 3 go together whether heard or seen."""
    audio, visual, labels = rows
    rng = np.random.default_rng(seed)
    together = rng.standard_normal((len(labels), 1))
    audio, visual = (x + rng.standard_normal(x.shape) for x in (audio, visual))
    audio[:, 2:4] += together
    visual[:, 2:4] += together
    return audio, visual, labels


def test_the_annotation_tells_a_dependency_from_classes_that_go_together():
    """Of partial effects that of classes which go together is larger; what clips say of them whose class is told in one
    view alone is not."""
    for seed in range(3):
        rows = faint(hidden_by_its_cause(seed=seed), seed=seed)
        moments = MomentAccumulator(CLASSES, told=True)
        moments.update(*rows, np.arange(len(rows[2])))
        said = by_annotation(moments.moments())
        across = np.triu(cross_modal(CLASSES))
        assert np.argwhere(across & (said == said[across].max())).tolist() == [[0, CLASSES + 1]]
        options = {"bootstraps": 6, "lift_threshold": None, "sign": "positive", "penalty": 0.5}
        effects = class_dependency(moments, **options).effects
        assert effects[2, CLASSES + 3] > effects[CLASSES + 1, 0] > 0, (
            "by the effect alone it is the other way round"
        )
        found = class_dependency(moments, told=0.4, min_effect=0.28, **options)
        assert frequent_pairs(found) == [[0, 1]]
        assert np.array_equal(found.edge_frequency, found.edge_frequency.T)


def test_labels_without_meaning_are_unlinked():
    made, _, _ = world()
    shuffled = np.random.default_rng(0).permutation(made.labels)
    found = class_dependency(moments_of(made.audio, made.visual, shuffled), bootstraps=10)
    assert found.verdict == "unlinked"
    assert found.stable.sum() / 2 <= found.permuted_edges + found.false_bound
    assert not found.audio_to_visual.any()


def test_threads_and_repeats_change_no_bit():
    _, moments, _ = world(n=2000)
    one = class_dependency(moments, bootstraps=6, num_threads=1)
    two = class_dependency(moments, bootstraps=6, num_threads=2)
    assert one.direction_frequency.tobytes() == two.direction_frequency.tobytes()
    assert one.audio_to_visual.tobytes() == two.audio_to_visual.tobytes()
    warm = class_dependency(moments, bootstraps=6, init_order=one.order)
    np.testing.assert_array_equal(warm.stable, one.stable)


def test_the_mask_helps_against_nuisance_and_every_baseline_runs():
    made, moments, truth = world(n=8000, nuisance=0.5)
    marks = {name: directed_f1(baseline(name, moments.moments(), seed=0), truth) for name in TABLE}
    assert marks["grasp"] >= marks["grasp_without_mask"] + 0.2
    assert marks["grasp"] >= marks["correlation"]
    assert marks["grasp"] >= marks["graphical_lasso"]
    sigmoid = 1 / (1 + np.exp(-np.concatenate([made.audio, made.visual], axis=1)))
    assert directed_f1(authors_recipe(sigmoid, seed=0, solver="engine"), truth) < marks["grasp"]
    theirs = authors_recipe(sigmoid[:1500], seed=0, solver="causal-learn")
    assert not (theirs > 0)[~cross_modal(CLASSES)].any()


def test_lift_mask_is_its_rule():
    lift = np.array([[9.0, 5, 0, 9], [4, 9, 9, -9]])
    mask = lift_mask(lift, 4.0)
    for x in range(4):
        for y in range(4):
            assert mask[x, y] == (x != y and (x % 2 == y % 2 or lift[x % 2, y] > 4))


def test_weights_and_resamples_by_hand():
    weights = np.array(
        [[0, 4.0, 1, 2, 1], [0, 0, 0, 0, 0], [1, 1, 0, 1, 1], [0, 0, 0, 0, 3], [0, 0, 0, 0, 0]]
    )
    top = normalised_top(weights, 2)
    np.testing.assert_allclose(top[0], [0, 4 / 6, 0, 2 / 6, 0])
    np.testing.assert_allclose(top[3], [0, 0, 0, 0, 1])
    assert not top[1].any()
    draws = resample(7, 6, method="halves", seed=0)
    assert [d.sum() for d in draws] == [3, 4, 3, 4, 3, 4]
    np.testing.assert_array_equal(draws[0] + draws[1], np.ones(7))
    assert all(d.sum() == 7 for d in resample(7, 5, method="bootstrap", seed=0))


def test_f1_by_hand():
    truth = np.zeros((4, 4), bool)
    truth[0, 2] = truth[1, 3] = True
    scores = np.zeros((4, 4))
    scores[0, 2] = scores[2, 0] = 0.5  # undirected: half right
    scores[3, 1] = 1.0  # backwards
    assert directed_f1(scores, truth) == pytest.approx(2 * 0.5 / (2 + 2))
    assert directed_f1(truth * 1.0, truth) == 1.0
    assert directed_f1(np.zeros((4, 4)), truth) == 0.0


def test_conversions_keep_directed_and_undirected_edges():
    mixed = np.zeros((4, 4), bool)
    mixed[0, 1] = mixed[1, 2] = mixed[2, 1] = mixed[3, 2] = True
    names = ['a "quoted"', "b", "c", "d"]
    assert edges(mixed) == [(0, 1, True), (1, 2, False), (3, 2, True)]
    general = to_general_graph(mixed, names)
    assert str(general.get_edge(general.nodes[0], general.nodes[1])) == 'a "quoted" --> b'
    assert str(general.get_edge(general.nodes[1], general.nodes[2])) == "b --- c"
    np.testing.assert_array_equal(from_general_graph(general), mixed)
    back, back_names = from_json(to_json(mixed, names))
    np.testing.assert_array_equal(back, mixed)
    assert back_names == names
    drawn = to_networkx(mixed, names, frequency=mixed * 0.5, strengths=mixed * 2.0)
    assert drawn.edges["b", "c"] == {"directed": False, "frequency": 0.5, "strength": 2.0}
    assert len(ElementTree.fromstring(to_graphml(mixed, names)).findall(".//{*}edge")) == 3
    dot = to_dot(mixed, names)
    assert '"b" -> "c" [dir=none];' in dot
    assert dot.count("->") == 3
    with pytest.raises(ValueError, match="a name of its own"):
        to_json(mixed, ["a", "a", "b", "c"])


def test_picture_and_table_hold_the_stable_edges():
    _, moments, _ = world()
    found = class_dependency(moments, bootstraps=6)
    names = [f"name {k}" for k in range(CLASSES)]
    rows = edge_table(found, names)
    assert len(rows) == found.stable.sum() / 2
    assert all(0.75 <= row["frequency"] <= 1 and 0.5 <= row["direction"] <= 1 for row in rows)
    axes = dependency_figure(found, names).axes[0]
    assert sum(getattr(text, "arrow_patch", None) is not None for text in axes.texts) >= len(rows)
    assert len(axes.lines) == 3 * CLASSES, "a dimmed line and two dots for each class"
    with pytest.raises(ValueError, match="name every class"):
        dependency_figure(found, names[:2])


def test_the_verb_reads_soft_labels_moments_and_runs(tmp_path):
    made, moments, _ = world()
    rows = {"audio": made.audio, "visual": made.visual, "labels": made.labels}
    np.savez(tmp_path / "soft.npz", **rows, classes=np.array([f"k{i}" for i in range(CLASSES)]))
    (tmp_path / "run" / "teacher").mkdir(parents=True)
    np.savez(tmp_path / "run" / "teacher" / "moments.npz", **moments.to_arrays())
    run = CliRunner()
    first = run.invoke(graph, [str(tmp_path / "soft.npz"), "--bootstraps", "6", "--out", str(tmp_path / "a")])
    assert first.exit_code == 0, first.output
    assert first.output.startswith("linked: ")
    assert "k0" in (tmp_path / "a" / "dependency.dot").read_text()
    second = run.invoke(graph, [str(tmp_path / "run"), "--bootstraps", "6"])
    assert second.exit_code == 0, second.output
    written = [json.loads((f / "dependency.json").read_text()) for f in (tmp_path / "a", tmp_path / "run")]
    assert written[0]["audio_to_visual"] == written[1]["audio_to_visual"]
    assert all((tmp_path / "run" / f"dependency.{s}").stat().st_size > 500 for s in ("png", "svg", "graphml"))
    (tmp_path / "empty").mkdir()
    refused = run.invoke(graph, [str(tmp_path / "empty")])
    assert refused.exit_code == 2
    assert "no moments" in refused.output
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    refused = run.invoke(graph, [str(tmp_path / "other.npz")])
    assert refused.exit_code == 2
    assert "audio, visual, labels missing; it holds x" in refused.output

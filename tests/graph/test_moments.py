"""Moments against loops over the clips that they never store."""

from __future__ import annotations

import math

import numpy as np
import pytest

from raytrain.graph.accumulator import MomentAccumulator, centred_log_ratio

C, N = 3, 400


def clips(seed=0, n=N):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, C, n)
    audio = generator.standard_normal((n, C)) * 3 + 7 + 2 * (labels[:, None] == np.arange(C))
    visual = generator.standard_normal((n, C)) - 4 + 0.3 * audio[:, [1, 2, 0]]
    return audio, visual, labels, generator.permutation(10 * n)[:n]


def filled(rows, **options):
    made = MomentAccumulator(C, **options)
    made.update(*rows)
    return made


def covariance_in_floats(rows):
    n = len(rows)
    mean = [math.fsum(row[i] for row in rows) / n for i in range(len(rows[0]))]
    pairs = range(len(mean))
    return [[math.fsum((r[i] - mean[i]) * (r[j] - mean[j]) for r in rows) / n for j in pairs] for i in pairs]


@pytest.mark.parametrize("shift", [None, np.full(2 * C, 5.0)])
def test_covariances_are_their_definitions(shift):
    audio, visual, labels, ids = clips()
    moments = filled((audio, visual, labels, ids), shift=shift).moments()
    columns = np.concatenate([audio, visual], axis=1)
    hot = np.eye(C)[labels]
    np.testing.assert_allclose(
        moments.covariance("total"), covariance_in_floats(columns.tolist()), atol=1e-10
    )
    context = covariance_in_floats(np.concatenate([hot, columns], axis=1).tolist())
    np.testing.assert_allclose(moments.covariance("context"), context, atol=1e-10)
    centred = columns.copy()
    for k in range(C):
        centred[labels == k] -= columns[labels == k].mean(axis=0)
    np.testing.assert_allclose(moments.covariance("within"), centred.T @ centred / N, atol=1e-10)
    assert moments.num_samples == N


def test_lift_is_the_rise_over_the_median_class_in_standard_errors():
    audio, visual, labels, ids = clips()
    columns = np.concatenate([audio, visual], axis=1)
    z = filled((audio, visual, labels, ids)).moments().lift()
    for k in range(C):
        for y in range(2 * C):
            means = [columns[labels == j, y].mean() for j in range(C)]
            here = columns[labels == k, y]
            expected = (means[k] - sorted(means)[1]) / (here.std() / math.sqrt(len(here)))
            assert z[k, y] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("bounds", [None, (-4.5, 6.0)])
def test_rise_is_of_uncut_columns_and_all_else_of_cut_ones(bounds):
    audio, visual, labels, ids = clips()
    columns = np.concatenate([audio, visual], axis=1)
    moments = filled((audio, visual, labels, ids), bounds=bounds).moments()
    for k in range(C):
        for y in range(2 * C):
            means = sorted(columns[labels == j, y].mean() for j in range(C))
            expected = (columns[labels == k, y].mean() - means[1]) / columns[:, y].std()
            assert moments.rise()[k, y] == pytest.approx(expected, rel=1e-9, abs=1e-12)
    cut = columns if bounds is None else np.clip(columns, *bounds)
    assert bounds is None or (cut != columns).any(axis=0).sum() > C, "the bounds cut columns of both views"
    np.testing.assert_allclose(moments.covariance("total"), covariance_in_floats(cut.tolist()), atol=1e-10)


def test_bounded_moments_survive_files_and_ranks():
    rows = clips()
    whole = filled(rows, bounds=(-4.5, 6.0))
    first = filled([r[:150] for r in rows], bounds=(-4.5, 6.0))
    second = filled([r[150:] for r in rows], bounds=(-4.5, 6.0))
    summed = first.with_flat(first.flat() + second.flat())
    np.testing.assert_allclose(summed.moments().rise(), whole.moments().rise(), rtol=1e-9)
    again = MomentAccumulator.from_arrays(summed.to_arrays())
    assert np.array_equal(again.flat(), summed.flat()) and again.bounds == (-4.5, 6.0)
    with pytest.raises(ValueError, match="cannot be added"):
        first.merge(filled([r[150:] for r in rows]))
    with pytest.raises(ValueError, match="the lower one comes first"):
        MomentAccumulator(C, bounds=(1.0, -2.0))


def told_in_one_view(audio, visual, labels, one_view):
    pairs = [(audio[i, k], visual[i, k]) for i, k in enumerate(labels)]
    return np.array([max(pair) > 0 and min(pair) < -one_view for pair in pairs])


@pytest.mark.parametrize("bounds", [None, (-1.5, 1.0)])
def test_one_view_counts_the_clips_whose_class_is_told_in_one_view_and_rise_all(bounds):
    audio, visual, labels, ids = clips()
    audio = audio - 8
    one = told_in_one_view(audio, visual, labels, 2.0)
    assert 0.2 < one.mean() < 0.8
    found = filled((audio, visual, labels, ids), bounds=bounds, one_view=2.0)
    expected = filled((audio[one], visual[one], labels[one], ids[one]), bounds=bounds).moments()
    for kind in ("total", "within", "context"):
        np.testing.assert_allclose(found.moments().covariance(kind), expected.covariance(kind), atol=1e-10)
    np.testing.assert_allclose(found.moments().lift(), expected.lift(), rtol=1e-9)
    assert found.moments().num_samples == one.sum() == found.moments(permuted=True).count.sum()
    every = filled((audio, visual, labels, ids)).moments()
    np.testing.assert_allclose(found.moments().rise(), every.rise(), rtol=1e-9, atol=1e-12)


def test_moments_of_one_view_survive_files_and_ranks():
    audio, visual, labels, ids = clips()
    rows = (audio - 8, visual, labels, ids)
    whole = filled(rows, one_view=2.0)
    parts = [filled([r[part] for r in rows], one_view=2.0) for part in (slice(150), slice(150, None))]
    summed = parts[0].with_flat(parts[0].flat() + parts[1].flat())
    np.testing.assert_allclose(summed.moments().outer, whole.moments().outer, rtol=1e-9)
    np.testing.assert_allclose(summed.moments().rise(), whole.moments().rise(), rtol=1e-9)
    again = MomentAccumulator.from_arrays(summed.to_arrays())
    assert np.array_equal(again.flat(), summed.flat()) and again.one_view == 2.0
    with pytest.raises(ValueError, match="cannot be added"):
        parts[0].merge(filled([r[150:] for r in rows]))
    with pytest.raises(ValueError, match="one_view is -1"):
        MomentAccumulator(C, one_view=-1.0)
    with pytest.raises(ValueError, match="0 clips; at least 2 are needed: lower one_view, which is 99"):
        filled(rows, one_view=99.0).moments()


def told_alone(view, audio, visual, labels):
    """Rows whose class has a logit above 0 in this view, 0 audio and 1 visual, and not in the other."""
    own = [(audio[i, k], visual[i, k]) for i, k in enumerate(labels)]
    return np.array([pair[view] > 0 >= pair[1 - view] for pair in own])


@pytest.mark.parametrize(
    "options", [{}, {"bounds": (-1.5, 1.0), "one_view": 2.0, "shift": np.full(2 * C, 3.0)}]
)
def test_told_correlation_is_of_clips_whose_class_one_view_alone_tells(options):
    """Against a loop; clips annotated with the class of the column take no part."""
    audio, visual, labels, ids = clips()
    audio, visual = audio - 9, visual + 3
    found = filled((audio, visual, labels, ids), told=True, **options).moments().told_correlation()
    columns = np.clip(np.concatenate([audio, visual], axis=1), *options.get("bounds", (-np.inf, np.inf)))
    for x in range(2 * C):
        told = told_alone(x // C, audio, visual, labels)
        assert 40 < told.sum() < N - 40
        for y in range(2 * C):
            with_class = told & (labels == x % C)
            others = told & (labels != x % C) & (labels != y % C)
            raised = columns[with_class, y].mean() - columns[others, y].mean()
            expected = raised / columns[told, y].std() * math.sqrt(with_class.sum() / told.sum())
            assert found[x, y] == pytest.approx(0.0 if x % C == y % C else expected, rel=1e-9, abs=1e-12)


def test_told_sums_survive_files_ranks_and_permuted_labels():
    audio, visual, labels, ids = clips(n=4000)
    rows = (audio - 9, visual + 3, labels, ids)
    whole = filled(rows, told=True)
    parts = [filled([r[part] for r in rows], told=True) for part in (slice(150), slice(150, None))]
    summed = parts[0].with_flat(parts[0].flat() + parts[1].flat())
    expected = whole.moments().told_correlation()
    np.testing.assert_allclose(summed.moments().told_correlation(), expected, rtol=1e-9, atol=1e-12)
    again = MomentAccumulator.from_arrays(summed.to_arrays())
    assert np.array_equal(again.flat(), summed.flat()) and again.told
    null = whole.moments(permuted=True).told_correlation()
    assert np.abs(null).max() < 0.5 * np.abs(expected).max()
    with pytest.raises(ValueError, match="cannot be added"):
        parts[0].merge(filled([r[150:] for r in rows]))
    with pytest.raises(ValueError, match="make them with told=True"):
        filled(rows).moments().told_correlation()
    none = filled((audio - 99, visual - 99, labels, ids), told=True).moments().told_correlation()
    assert not none.any(), "no class is told anywhere"


def test_bounded_moments_from_before_all_clips_were_counted_by_themselves_are_read():
    bounded = filled(clips(), bounds=(-4.5, 6.0))
    before = bounded.to_arrays()
    del before["uncut_count"]
    np.testing.assert_array_equal(
        MomentAccumulator.from_arrays(before).moments().rise(), bounded.moments().rise()
    )


def test_parts_add_up_in_any_way():
    rows = clips()
    whole = filled(rows)
    first, second = filled([r[:150] for r in rows]), filled([r[150:] for r in rows])
    summed = first.with_flat(first.flat() + second.flat())
    first.merge(second)
    for other in (first, summed):
        # which label a clip lends to the null depends on its batch; nothing else does
        for kind in ("context", "within", "total"):
            np.testing.assert_allclose(
                other.moments().covariance(kind), whole.moments().covariance(kind), rtol=1e-10, atol=1e-12
            )
        np.testing.assert_allclose(other.moments().lift(), whole.moments().lift(), rtol=1e-9)
    again = MomentAccumulator.from_arrays(first.to_arrays())
    assert np.array_equal(again.flat(), first.flat())


def test_forgetting_weighs_old_clips_less():
    old, new = clips(1), clips(2, n=100)
    made = filled(old, decay=0.5)
    made.update(*new)
    weights = np.r_[np.full(N, 0.5), np.ones(100)]
    columns = np.concatenate([np.concatenate(pair[:2], axis=1) for pair in (old, new)])
    expected = np.cov(columns.T, aweights=weights, ddof=0)
    np.testing.assert_allclose(made.moments().covariance("total"), expected, rtol=1e-9, atol=1e-10)
    assert made.moments().num_samples == pytest.approx(weights.sum() ** 2 / (weights**2).sum())


def test_a_clip_seen_twice_is_one_clip():
    made = filled(clips(), num_clips=N)
    once = made.moments().num_samples
    made.update(*clips())
    assert made.moments().num_samples == once == N


def test_groups_make_a_bootstrap_and_halves_add_up():
    rows = clips()
    made = filled(rows, num_groups=8)
    half = np.array([1.0, 0, 1, 0, 1, 0, 1, 0])
    one, two = made.moments(half), made.moments(1 - half)
    np.testing.assert_allclose(one.outer + two.outer, made.moments().outer, rtol=1e-12)
    assert one.num_samples + two.num_samples == N
    assert min(one.num_samples, two.num_samples) > 0.3 * N
    np.testing.assert_allclose(
        made.moments(2 * np.ones(8)).covariance("within"), made.moments().covariance("within")
    )


def test_permuted_labels_lift_nothing():
    audio, visual, labels, ids = clips(n=4000)
    audio = audio + 5 * (labels[:, None] == np.arange(C))
    made = filled((audio, visual, labels, ids))
    assert made.moments().lift().max() > 20
    null = made.moments(permuted=True)
    assert np.abs(null.lift()).max() < 4.5
    np.testing.assert_array_equal(null.count, made.moments().count)
    np.testing.assert_allclose(null.covariance("total"), made.moments().covariance("total"), rtol=1e-9)


def test_clips_without_a_class_are_left_out():
    audio, visual, labels, ids = clips()
    labels[::3] = -1
    known = labels >= 0
    some = filled((audio, visual, labels, ids)).moments()
    only = filled((audio[known], visual[known], labels[known], ids[known])).moments()
    np.testing.assert_array_equal(some.outer, only.outer)


def test_probabilities_become_centred_log_ratios_with_a_ridge():
    audio, visual, labels, ids = clips()
    softmax = [np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (audio, visual)]
    covariance = filled((*softmax, labels, ids), inputs="probabilities").moments().covariance("total")
    assert np.linalg.eigvalsh(covariance).min() > 0
    logs = np.concatenate([x - x.mean(axis=1, keepdims=True) for x in (audio, visual)], axis=1)
    plain = np.cov(logs.T, ddof=0)
    np.testing.assert_allclose(covariance, plain + 0.01 * np.trace(plain) / 6 * np.eye(6), atol=1e-9)
    assert centred_log_ratio(softmax[0]).sum(axis=1) == pytest.approx(0, abs=1e-9)


def test_what_is_refused():
    audio, visual, labels, ids = clips()
    softmax = np.exp(audio) / np.exp(audio).sum(axis=1, keepdims=True)
    with pytest.raises(ValueError, match="the audio rows sum to one"):
        filled((softmax, visual, labels, ids))
    with pytest.raises(ValueError, match="not finite"):
        filled((audio * np.nan, visual, labels, ids))
    with pytest.raises(ValueError, match=r"allowed are 0\.\.2"):
        filled((audio, visual, labels + 1, ids))
    with pytest.raises(ValueError, match="cannot be added"):
        filled(clips()).merge(MomentAccumulator(C, num_groups=7))
    with pytest.raises(ValueError, match="at least 2 are needed"):
        MomentAccumulator(C).moments()
    with pytest.raises(ValueError, match="are no moments"):
        MomentAccumulator.from_arrays({"audio": audio})

"""Retrieval metrics against loops over floats, against libraries, and where ties, holes and limits are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torchmetrics.functional.retrieval import retrieval_average_precision, retrieval_normalized_dcg

from raytrain.evaluation import ranking, retrieval
from raytrain.evaluation.ranking import rank_by_numpy, rank_by_torch
from raytrain.evaluation.relevance import Relevance
from raytrain.evaluation.retrieval import recall_within, retrieve, retrieve_all_ways, retrieve_both_ways
from raytrain.types import UNANNOTATED


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def world(seed, *, q=37, g=53, d=7, c=5):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(q, d)).astype(np.float32) + 0.2,
        rng.normal(size=(g, d)).astype(np.float32) - 0.1,
        rng.integers(0, c, q),
        rng.integers(0, c, g),
    )


def oracle(scores, relevant):
    """All metrics of one query, counted item by item; relevant items stand last among equals."""
    order = sorted(range(len(scores)), key=lambda j: (-scores[j], relevant[j]))
    hits, precisions, running = 0, [], []
    for place, j in enumerate(order, start=1):
        if relevant[j]:
            hits += 1
            precisions.append(hits / place)
        running.append(sum(precisions) / hits if hits else 0.0)
    out = {"num_relevant": hits, "top": [bool(relevant[j]) for j in order[:10]]}
    if hits:
        out["ap"] = sum(precisions) / hits
        out["running_ap"] = sum(running) / len(running)
        out["first"] = next(place for place, j in enumerate(order, start=1) if relevant[j])
        gain = sum(1 / math.log2(place + 1) for place, j in enumerate(order[:10], start=1) if relevant[j])
        out["ndcg"] = gain / sum(1 / math.log2(place + 1) for place in range(1, min(hits, 10) + 1))
    return out


def relevance_loops(by, query, gallery):
    if by == "events":
        return [[any(a and b for a, b in zip(x, y, strict=True)) for y in gallery] for x in query]
    return [[x == y and not (by == "class" and x == UNANNOTATED) for y in gallery] for x in query]


def known_for(by, q, g, seed):
    rng = np.random.default_rng(seed)
    if by == "class":
        query, gallery = rng.integers(-1, 4, q), rng.integers(-1, 4, g)
        query[3] = 9  # a class that the gallery does not have
        return query, gallery
    if by == "events":
        return (rng.random((q, 6)) < 0.2).astype(np.uint8), (rng.random((g, 6)) < 0.2).astype(np.uint8)
    return rng.permutation(q), rng.permutation(g)[: g - 4]


@pytest.mark.parametrize("by", ["class", "events", "pair"])
@pytest.mark.parametrize("ties", [False, True], ids=["apart", "ties"])
@pytest.mark.parametrize("path", ["numpy", "torch"])
def test_every_metric_is_the_count_of_it(by, ties, path, monkeypatch):
    monkeypatch.setattr(ranking, "CHUNK_QUERIES", 16)
    monkeypatch.setattr(ranking, "CHUNK_ELEMENTS_GPU", 400)
    query, gallery, *_ = world(1)
    if ties:  # scores are -2..2 exactly, each many times
        query, gallery = (np.sign(np.round(x)).astype(np.float32) for x in (query, gallery))
    else:
        query, gallery = unit(query), unit(gallery)
    known_query, known_gallery = known_for(by, len(query), len(gallery), 2)
    gallery = gallery[: len(known_gallery)]
    relevance = Relevance(by, known_query, known_gallery)
    scale = np.float32(0.125)  # keeps scores exact and below 2
    if path == "numpy":
        ours = rank_by_numpy(query * scale, gallery, relevance)
    else:
        ours = rank_by_torch(torch.tensor(query * scale), torch.tensor(gallery), relevance)
    scores = (query * scale).astype(np.float64) @ gallery.T.astype(np.float64)
    loops = relevance_loops(by, known_query.tolist(), known_gallery.tolist())
    expected = [oracle(s, r) for s, r in zip(scores.tolist(), loops, strict=True)]
    assert any(e["num_relevant"] == 0 for e in expected) or by == "pair"
    for name in ("ap", "running_ap", "first"):
        np.testing.assert_allclose(getattr(ours, name), [e.get(name, np.nan) for e in expected], atol=1e-12)
    assert ours.num_relevant.tolist() == [e["num_relevant"] for e in expected]
    assert ours.top.tolist() == [e["top"] for e in expected]


def test_summary_is_the_mean_over_queries_that_have_an_answer():
    query, gallery, known_query, known_gallery = world(3)
    known_query[[2, 5]] = 77
    known_query[7] = UNANNOTATED
    out = retrieve(query, gallery, known_query, known_gallery, by="class")
    scores = unit(query.astype(np.float64)) @ unit(gallery.astype(np.float64)).T
    loops = relevance_loops("class", known_query.tolist(), known_gallery.tolist())
    all_of = [oracle(s, r) for s, r in zip(scores.tolist(), loops, strict=True)]
    expected = [e for e in all_of if e["num_relevant"]]
    summary = out.summary()
    assert summary["num_queries"] == 37 and summary["num_without_relevant"] == 3
    assert np.isnan(out.ap[[2, 5, 7]]).all() and np.isnan(out.ap).sum() == 3

    def mean(f, *k):
        return pytest.approx(sum(f(e, *k) for e in expected) / len(expected), abs=1e-9)

    assert summary["map"] == mean(lambda e: e["ap"])
    assert summary["running_map"] == mean(lambda e: e["running_ap"])
    assert summary["ndcg@10"] == mean(lambda e: e["ndcg"])
    for k in (1, 5, 10):
        assert summary[f"r@{k}"] == mean(lambda e, k: e["first"] <= k, k)
    for k in (1, 10):
        assert summary[f"p@{k}"] == mean(lambda e, k: sum(e["top"][:k]) / k, k)
    assert summary["median_rank"] == np.median([e["first"] for e in expected])
    assert summary["r@1"] < summary["r@5"] < summary["r@10"] < 1 or summary["r@10"] == 1
    for c, value in out.per_class().items():
        mine = [e["ap"] for e, y in zip(all_of, known_query, strict=True) if y == c]
        assert value == pytest.approx(sum(mine) / len(mine), abs=1e-9)
    assert set(out.per_class()) == set(known_query[known_query >= 0]) - {77}


def test_per_class_of_event_sets_takes_the_queries_that_have_the_event():
    query, gallery, *_ = world(4, q=6, g=8)
    known_query = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0], [0, 1, 0], [1, 0, 0]], dtype=np.uint8)
    known_gallery = np.array([[1, 0, 0]] * 3 + [[0, 1, 0]] * 4 + [[1, 1, 0]], dtype=np.uint8)
    out = retrieve(query, gallery, known_query, known_gallery, by="events")
    assert out.per_class() == {
        0: pytest.approx(out.ap[[0, 1, 5]].mean()),
        1: pytest.approx(out.ap[[1, 2, 4]].mean()),
    }
    assert out.num_without_relevant == 1


def test_libraries_agree():
    query, gallery, known_query, known_gallery = world(5)
    out = retrieve(query, gallery, known_query, known_gallery, by="class")
    scores = unit(query.astype(np.float64)) @ unit(gallery.astype(np.float64)).T
    for i in range(len(query)):
        relevant = known_gallery == known_query[i]
        assert out.ap[i] == pytest.approx(average_precision_score(relevant, scores[i]), abs=1e-12)
        shifted = torch.tensor((scores[i] + 1.01) / 2.02)  # the library drops relevant items with score <= 0
        theirs = retrieval_average_precision(shifted, torch.tensor(relevant))
        assert out.ap[i] == pytest.approx(float(theirs), abs=1e-6)
    theirs = [
        float(retrieval_normalized_dcg(torch.tensor(s), torch.tensor(known_gallery == y).long(), top_k=10))
        for s, y in zip(scores, known_query, strict=True)
    ]
    assert out.summary()["ndcg@10"] == pytest.approx(np.mean(theirs), abs=1e-6)


def test_both_ways_at_the_size_of_the_field_is_the_float64_brute_force():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 900)
    centers = rng.normal(size=(10, 32))
    views = {
        v: (centers[labels] + 2.5 * rng.normal(size=(900, 32))).astype(np.float32)
        for v in ("audio", "visual")
    }
    out = retrieve_both_ways(views, labels, by="class")
    expected = []
    for first, second in (("audio", "visual"), ("visual", "audio")):
        scores = unit(views[first].astype(np.float64)) @ unit(views[second].astype(np.float64)).T
        order = np.argsort(-scores, axis=1)
        hits = labels[order] == labels[:, None]
        precision = np.cumsum(hits, axis=1) / np.arange(1, 901)
        expected.append(((precision * hits).sum(1) / hits.sum(1)).mean())
    assert out.there.map == pytest.approx(expected[0], abs=1e-6)
    assert out.back.map == pytest.approx(expected[1], abs=1e-6)
    assert out.map == pytest.approx(sum(expected) / 2, abs=1e-6)
    assert out.summary()["audio->visual"]["map"] == out.there.map != out.back.map
    assert out.summary()["visual->audio"]["map"] == out.back.map
    assert out.summary()["mean"]["map"] == pytest.approx(out.map)
    assert np.nanmean(out.ap) == pytest.approx(out.map)


def test_no_bit_of_a_score_is_lost():
    """Neighbouring floats stay apart, -0.0 is 0.0, and a cosine rounded beyond 1 keeps its place."""
    one = np.float32(1)
    values = [
        1.0000002,
        one,
        np.nextafter(one, np.float32(0)),
        1e-45,
        0.0,
        -0.0,
        -1e-45,
        -0.5,
        -one,
        -1.0000002,
    ]
    scores = np.array(values, dtype=np.float32)
    keys = ranking._sortable(scores[None].copy(), np.empty((1, 10), np.int32))[0].astype(np.int64)
    differences = np.diff(keys)
    assert (differences[[0, 1, 2, 3, 5, 6, 7, 8]] >= 2).all() and differences[4] == 0
    assert (keys % 2 == 0).all() and abs(keys).max() < 2**31


@pytest.mark.parametrize("path", [rank_by_numpy, rank_by_torch])
def test_neighbouring_scores_are_no_tie(path):
    one = np.float32(1)
    query, gallery = np.ones((1, 1), np.float32), np.array([[np.nextafter(one, np.float32(0))], [one]])
    relevance = Relevance("class", np.array([1]), np.array([0, 1]))
    if path is rank_by_torch:
        query, gallery = torch.tensor(query), torch.tensor(gallery)
    assert path(query, gallery, relevance).ap[0] == 1


def test_ties_are_broken_against_us_and_row_order_decides_nothing():
    collapsed = np.ones((20, 3), dtype=np.float32)
    labels = np.arange(20) % 4
    out = retrieve(collapsed, collapsed, labels, labels, by="class")
    worst = sum(i / (15 + i) for i in range(1, 6)) / 5
    np.testing.assert_allclose(out.ap, worst)
    rng = np.random.default_rng(1)
    query, gallery = (np.sign(rng.normal(size=(20, 3))).astype(np.float32) for _ in range(2))
    first = retrieve(query, gallery, labels, labels, by="class")
    order = rng.permutation(20)
    again = retrieve(query, gallery[order], labels, labels[order], by="class")
    np.testing.assert_array_equal(first.ap, again.ap)
    np.testing.assert_array_equal(first.ranking.first, again.ranking.first)


def test_perfect_and_paired():
    eye = np.eye(12, dtype=np.float32)
    rows = np.arange(12) + 100
    out = retrieve_both_ways({"audio": eye, "visual": eye}, rows, by="pair")
    summary = out.summary()["mean"]
    assert summary["map"] == summary["r@1"] == summary["ndcg@10"] == summary["median_rank"] == 1
    turned = retrieve(eye, np.roll(eye, 1, axis=0), rows, rows, by="pair")
    assert (
        turned.recall_at(10) == 0 and turned.median_rank == 12
    )  # behind eleven: ten equals and the false one
    with pytest.raises(ValueError, match="per-class MAP needs classes"):
        turned.per_class()


def test_nothing_relevant_at_all_is_no_number():
    query, gallery, known, _ = world(6)
    out = retrieve(query, gallery, known, np.full(len(gallery), 50), by="class")
    assert out.num_without_relevant == 37
    assert all(math.isnan(out.summary()[key]) for key in ("map", "r@1", "p@10", "ndcg@10", "median_rank"))


def test_torch_tensors_are_the_same_numbers():
    query, gallery, known_query, known_gallery = world(7)
    a = retrieve(query, gallery, known_query, known_gallery, by="class")
    b = retrieve(
        torch.tensor(query, requires_grad=True), torch.tensor(gallery), torch.tensor(known_query),
        torch.tensor(known_gallery), by="class",
    )  # fmt: skip
    np.testing.assert_array_equal(a.ap, b.ap)


def test_a_row_of_zeros_is_at_cosine_zero():
    out = retrieve(
        np.zeros((1, 2), np.float32), np.eye(2, dtype=np.float32), np.array([0]), np.array([0, 1]), by="class"
    )
    assert out.ap[0] == 0.5


def test_all_ways_are_the_mean_over_every_two_views():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 4, 40)
    labels[5] = UNANNOTATED
    views = {v: rng.normal(size=(40, 6)).astype(np.float32) + labels[:, None] * 0.1 for v in "abc"}
    out = retrieve_all_ways(views, labels, by="class")
    one_by_one = {
        (x, y): retrieve(views[x], views[y], labels, labels, by="class")
        for x in "abc"
        for y in "abc"
        if x != y
    }
    assert out.ways.keys() == one_by_one.keys()
    assert out.map == pytest.approx(np.mean([way.map for way in one_by_one.values()]))
    assert out.summary()["mean"]["r@5"] == pytest.approx(
        np.mean([w.recall_at(5) for w in one_by_one.values()])
    )
    assert out.summary()["c->a"]["map"] == one_by_one[("c", "a")].map
    clips = out.ap_of_clips()
    assert np.isnan(clips[5]) and np.nanmean(clips) == pytest.approx(out.map)
    per_class = [way.per_class() for way in one_by_one.values()]
    assert out.per_class() == {c: pytest.approx(np.mean([of[c] for of in per_class])) for c in range(4)}


def test_two_views_are_both_ways_and_one_view_is_none():
    query, gallery, labels, _ = world(4, q=30, g=30)
    views = {"audio": query, "visual": gallery}
    both, all_ways = (
        retrieve_both_ways(views, labels, by="class"),
        retrieve_all_ways(views, labels, by="class"),
    )
    assert all_ways.map == both.map and all_ways.summary() == both.summary()
    alone = retrieve_all_ways({"audio": query}, labels, by="class")
    assert alone.summary() == {} and math.isnan(alone.map)


@pytest.mark.parametrize("by", ["class", "events"])
def test_recall_within_a_view_leaves_the_own_clip_out(by, monkeypatch):
    rng = np.random.default_rng(8)
    rows = np.round(rng.normal(size=(31, 3)), 1).astype(np.float32)
    rows[7] = rows[3]  # ties
    known = (
        rng.integers(0, 9, 31) if by == "class" else rng.integers(0, 2, (31, 6)) & rng.integers(0, 2, (31, 6))
    )
    if by == "class":
        known[:3] = UNANNOTATED, 20, 21  # alone in their class
    monkeypatch.setattr(retrieval, "ELEMENTS_AT_ONCE", 31 * 7)
    found = recall_within(rows, known, by=by, ks=(1, 4))
    scores = unit(rows.astype(np.float64)).astype(np.float32)
    scores = (scores @ scores.T).tolist()
    relevant = relevance_loops(by, known.tolist(), known.tolist())
    first = []
    for i in range(31):
        order = sorted((j for j in range(31) if j != i), key=lambda j, i=i: (-scores[i][j], relevant[i][j]))
        places = [place for place, j in enumerate(order, start=1) if relevant[i][j]]
        first += places[:1]
    assert 20 < len(first) < 31
    for k in (1, 4):
        assert found[f"r@{k}"] == pytest.approx(np.mean([place <= k for place in first]), abs=1e-9)
    with pytest.raises(ValueError, match="own pair is left out"):
        recall_within(rows, np.arange(31), by="pair")

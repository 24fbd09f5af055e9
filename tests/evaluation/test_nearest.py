from __future__ import annotations

import numpy as np
import pytest

from raytrain.evaluation.nearest import CHUNK_QUERIES, nearest


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("count", [1, 7, 50, 80])
def test_it_is_a_sort_of_all_scores(count: int) -> None:
    generator = np.random.default_rng(3)
    query, gallery = (unit(generator.normal(size=(n, 5))) for n in (CHUNK_QUERIES + 3, 50))
    found = nearest(query, gallery, count=count)
    assert found.item.shape == (len(query), min(count, 50))
    for q, items, cosines in zip(query, found.item, found.cosine, strict=True):
        scores = [sum(float(a) * float(b) for a, b in zip(q, g, strict=True)) for g in gallery]
        best = sorted(range(50), key=lambda i: -scores[i])[:count]
        assert items.tolist() == best
        np.testing.assert_allclose(cosines, [scores[i] for i in best], atol=1e-6)


def test_among_equals_the_first_in_the_gallery_comes_first_also_across_the_last_place() -> None:
    gallery = unit(np.array([[0.0, 1], [1, 0], [1, 0], [0, 1], [1, 0], [1, 0]]))
    query = unit(np.array([[1.0, 0]]))
    assert nearest(query, gallery, count=3).item.tolist() == [[1, 2, 4]]
    assert nearest(query, gallery, count=6).item.tolist() == [[1, 2, 4, 5, 0, 3]]


def test_a_count_that_is_not_positive_is_refused() -> None:
    rows = unit(np.ones((2, 3)))
    with pytest.raises(ValueError, match="got 0 items to find; at least 1"):
        nearest(rows, rows, count=0)

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raytrain.data.hidden_labels import hide_labels, kept_labels
from raytrain.data.shards import read_split
from tests.datasets import small_dataset


def test_every_class_keeps_its_share_and_at_least_one() -> None:
    labels = np.array([0] * 40 + [1] * 9 + [2] + [-1] * 10)
    kept = kept_labels(labels, 0.1, seed=4)
    assert [int(kept[labels == c].sum()) for c in (0, 1, 2, -1)] == [4, 1, 1, 0]
    assert np.array_equal(kept, kept_labels(labels, 0.1, seed=4))
    assert not np.array_equal(kept, kept_labels(labels, 0.1, seed=5))
    assert np.array_equal(kept_labels(labels, 1.0, seed=4), labels >= 0)


def test_only_train_labels_are_hidden(tmp_path: Path) -> None:
    whole = small_dataset(tmp_path)
    some = hide_labels(whole, tmp_path / "some", share=0.25, seed=1)
    for split in whole.manifest.splits:
        some.verify(split)
        before, after = read_split(whole, split), read_split(some, split)
        assert before.labels is not None and after.labels is not None
        assert all(np.array_equal(x, after.views[view]) for view, x in before.views.items())
        known = after.labels >= 0
        assert np.array_equal(after.labels[known], before.labels[known])
        entry = some.manifest.splits[split]
        assert entry.unannotated == (~known).sum()
        assert entry.class_counts == tuple(np.bincount(after.labels[known], minlength=4).tolist())
        assert known.all() == (split != "train")
        if split == "train":
            assert abs(known.mean() - 0.25) < 0.02 and len(entry.shards) > 1
    assert "75% of the train rows are hidden" in some.manifest.warnings[-1]


def test_refusals(tmp_path: Path) -> None:
    whole = small_dataset(tmp_path)
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match="allowed is above 0"):
            hide_labels(whole, tmp_path / "x", share=share, seed=0)
    hide_labels(whole, tmp_path / "once", share=0.5, seed=0)
    with pytest.raises(ValueError, match="exists"):
        hide_labels(whole, tmp_path / "once", share=0.5, seed=0)
    events = type(whole)(
        whole.path, whole.manifest.model_copy(update={"label_kind": "both"}), whole.fingerprint
    )
    with pytest.raises(ValueError, match="label kind 'both'"):
        hide_labels(events, tmp_path / "y", share=0.5, seed=0)

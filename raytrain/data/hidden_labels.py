"""A data set with part of its train labels missing: for experiments on how many labels a method needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from raytrain.data import storage
from raytrain.data.manifest import UNANNOTATED, Dataset, Shard, Split, open_dataset, write_manifest
from raytrain.data.shards import Columns, SplitArrays, read_split, shard_name, write_shard


def kept_labels(labels: Int[np.ndarray, " n"], share: float, *, seed: int) -> Bool[np.ndarray, " n"]:
    """True for round(share * rows) annotated rows of each class, at least one, drawn by the seed."""
    generator = np.random.default_rng(seed)
    kept = np.zeros(len(labels), bool)
    for c in np.unique(labels[labels != UNANNOTATED]):
        rows = np.flatnonzero(labels == c)
        kept[generator.permutation(rows)[: max(1, round(share * len(rows)))]] = True
    return kept


def hide_labels(dataset: Dataset, out: str | Path, *, share: float, seed: int) -> Dataset:
    """A copy of the data set in which only `share` of the train rows of each class are annotated.

    Validation and test keep their labels.  Raises ValueError for a data set without labels, or with event sets beside
    them (which would say what is hidden), for a share outside (0, 1], and where `out` exists.
    """
    manifest = dataset.manifest
    if manifest.label_kind != "label":
        raise ValueError(
            f"{dataset.path} has label kind {manifest.label_kind!r}; labels can be hidden where there are labels alone"
        )
    if not 0 < share <= 1:
        raise ValueError(f"the share of labels is {share}; allowed is above 0 and at most 1")
    with storage.new_folder(out, overwrite=False) as folder:
        splits: dict[str, Split] = {}
        for name, split in manifest.splits.items():
            arrays = read_split(dataset, name)
            assert arrays.labels is not None, "the manifest says so"
            if name == "train":
                arrays.labels[~kept_labels(arrays.labels, share, seed=seed)] = UNANNOTATED
            known = arrays.labels[arrays.labels != UNANNOTATED]
            splits[name] = split.model_copy(
                update={
                    "shards": tuple(_written(folder, name, arrays, split, manifest.sizes())),
                    "class_counts": tuple(np.bincount(known, minlength=manifest.num_classes).tolist()),
                    "unannotated": len(arrays) - len(known),
                }
            )
        note = f"labels of {1 - share:.0%} of the train rows are hidden, drawn with seed {seed}"
        update = {"splits": splits, "warnings": (*manifest.warnings, note)}
        write_manifest(folder, manifest.model_copy(update=update))
    return open_dataset(out)


def _written(
    folder: Path, name: str, arrays: SplitArrays, split: Split, sizes: dict[str, int]
) -> list[Shard]:
    """The rows in shards of the same sizes as before."""
    columns = Columns(
        views=sizes,
        labels=True,
        num_events=None,
        groups=arrays.groups is not None,
        clips=arrays.clips is not None,
    )
    shards, first = [], 0
    for number, shard in enumerate(split.shards):
        starts = range(first, first + shard.rows, shard.row_group_rows)
        groups = (
            _cut(arrays, start, min(start + shard.row_group_rows, first + shard.rows)) for start in starts
        )
        where = shard_name(name, number)
        shards.append(write_shard(folder, where, columns, groups, row_group_rows=shard.row_group_rows))
        first += shard.rows
    return shards


def _cut(arrays: SplitArrays, start: int, stop: int) -> SplitArrays:
    rows = slice(start, stop)
    return SplitArrays(
        row=arrays.row[rows],
        views={view: x[rows] for view, x in arrays.views.items()},
        labels=None if arrays.labels is None else arrays.labels[rows],
        groups=None if arrays.groups is None else arrays.groups[rows],
        clips=None if arrays.clips is None else arrays.clips[rows],
    )

"""Shards: Parquet files that decode by wrapping a buffer.

One fixed_size_binary column per view (`view.<name>`, float32), uncompressed, no dictionary, equal row groups:
of the layouts measured this is the one that a numpy array can be laid over without touching the values.  The
sizes stand in the schema metadata under `raytrain`.

    row     int64                    position in the split, 0..n-1, rows stored in that order
    view.*  fixed_size_binary(4 f)   float32, unscaled
    label   int64                    0..c-1, or -1 = not annotated
    events  fixed_size_binary(c)     uint8, multi-hot
    group   utf8
    clip    utf8
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Int64, Shaped, UInt8

from raytrain.data import storage
from raytrain.data.errors import DamagedDataset
from raytrain.data.manifest import Dataset, Shard

ROW_GROUP_ROWS = 1024
SHARD_BYTES = 1 << 27
"""What a shard aims at; a whole number of row groups."""
_METADATA = b"raytrain"
_ONE_PAGE = 1 << 30


@dataclass(frozen=True)
class Columns:
    """Which columns the shards of a data set have."""

    views: dict[str, int]
    """Feature size by view name."""
    labels: bool
    num_events: int | None
    groups: bool
    clips: bool

    def schema(self) -> pa.Schema:
        fields = [pa.field("row", pa.int64(), nullable=False)]
        fields += [
            pa.field(f"view.{name}", pa.binary(4 * size), nullable=False) for name, size in self.views.items()
        ]
        if self.labels:
            fields.append(pa.field("label", pa.int64(), nullable=False))
        if self.num_events is not None:
            fields.append(pa.field("events", pa.binary(self.num_events), nullable=False))
        fields += [
            pa.field(name, pa.utf8(), nullable=False)
            for name, there in (("group", self.groups), ("clip", self.clips))
            if there
        ]
        matrices = {f"view.{name}": {"dtype": "float32", "size": size} for name, size in self.views.items()}
        if self.num_events is not None:
            matrices["events"] = {"dtype": "uint8", "size": self.num_events}
        return pa.schema(fields, metadata={_METADATA: json.dumps(matrices).encode()})

    def row_bytes(self) -> int:
        return 16 + 4 * sum(self.views.values()) + (self.num_events or 0)

    def shard_rows(self, row_group_rows: int) -> int:
        """Rows of a shard of about SHARD_BYTES: a multiple of the row group."""
        return max(1, SHARD_BYTES // (self.row_bytes() * row_group_rows)) * row_group_rows


@dataclass(frozen=True)
class SplitArrays:
    """Rows of a split as arrays: all of them (`read_split`) or those of a row group (the writer's unit)."""

    row: Int64[np.ndarray, " n"]
    views: dict[str, Float32[np.ndarray, "n _"]]
    labels: Int64[np.ndarray, " n"] | None = None
    events: UInt8[np.ndarray, "n c"] | None = None
    groups: Shaped[np.ndarray, " n"] | None = field(default=None)
    """Strings."""
    clips: Shaped[np.ndarray, " n"] | None = field(default=None)
    """Strings."""

    def __len__(self) -> int:
        return self.row.shape[0]

    def table(self, schema: pa.Schema) -> pa.Table:
        columns: dict[str, pa.Array] = {"row": pa.array(self.row)}
        columns |= {f"view.{name}": _wrap(values) for name, values in self.views.items()}
        if self.labels is not None:
            columns["label"] = pa.array(self.labels)
        if self.events is not None:
            columns["events"] = _wrap(self.events)
        for name, text in (("group", self.groups), ("clip", self.clips)):
            if text is not None:
                columns[name] = pa.array(text.tolist(), type=pa.utf8())
        return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def _wrap(values: Shaped[np.ndarray, "n f"]) -> pa.Array:
    """A numpy matrix as fixed_size_binary, without a copy of a contiguous one."""
    rows = np.ascontiguousarray(values)
    width = rows.shape[1] * rows.dtype.itemsize
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(rows), [None, pa.py_buffer(rows)])


def write_shard(
    folder: Path, name: str, columns: Columns, row_groups: Iterable[SplitArrays], *, row_group_rows: int
) -> Shard:
    """Write one shard from its row groups (all of `row_group_rows` but the last) and describe it."""
    path = folder / name
    schema = columns.schema()
    rows = 0
    with pq.ParquetWriter(
        path,
        schema,
        compression="NONE",
        use_dictionary=False,
        write_statistics=False,
        data_page_size=_ONE_PAGE,
    ) as writer:
        for block in row_groups:
            assert rows % row_group_rows == 0 and len(block) <= row_group_rows
            writer.write_table(block.table(schema), row_group_size=row_group_rows)
            rows += len(block)
    return Shard(
        file=name,
        bytes=path.stat().st_size,
        sha256=storage.sha256(path),
        rows=rows,
        row_group_rows=row_group_rows,
    )


def shard_name(split: str, index: int) -> str:
    return f"{split}-{index:05d}.parquet"


@contextmanager
def _open_shard(path: str | Path) -> Iterator[pq.ParquetFile]:
    """Local shards are memory-mapped.  Raises DamagedDataset where the file is no Parquet or lies about
    itself.
    """
    system, inside = storage.locate(path)
    try:
        if storage.is_local(path):
            file = pq.ParquetFile(inside, memory_map=True)
        else:
            file = pq.ParquetFile(system.open_input_file(inside), pre_buffer=True)
        with file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise DamagedDataset(f"{path} cannot be read as a shard: {error}") from error


def read_row_group(path: str | Path, group: int, columns: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns of one row group as numpy arrays.

    Args:
        path: of the shard, local or a URI (`Dataset.shard_path`).
        group: index of the row group in the shard.
        columns: names as in the shard: row, view.<name>, label, events, group, clip.

    Returns:
        row and label (n,) int64; views (n, f) float32 and events (n, c) uint8, laid over the Arrow buffers
        without a copy (do not write to them); group and clip (n,) strings.
    """
    with _open_shard(path) as file:
        missing = [name for name in columns if name not in file.schema_arrow.names]
        if missing:
            raise ValueError(
                f"{path} has no column {missing[0]!r}; it has: {', '.join(file.schema_arrow.names)}"
            )
        if not 0 <= group < file.num_row_groups:
            raise ValueError(f"{path} has row groups 0..{file.num_row_groups - 1}, asked for {group}")
        matrices = json.loads((file.schema_arrow.metadata or {}).get(_METADATA, b"{}"))
        table = file.read_row_group(group, columns=list(columns), use_threads=False)
    found = {name: decode(table.column(name), matrices.get(name)) for name in columns}
    _check_finite(path, group, found)
    return found


def _check_finite(path: str | Path, group: int, columns: Mapping[str, np.ndarray]) -> None:
    """Ingest lets no NaN and no infinity through, so a shard that has one is not what ingest wrote."""
    for name, values in columns.items():
        if values.dtype != np.float32 or (finite := np.isfinite(values)).all():
            continue
        row, column = np.argwhere(~finite)[0]
        where = f"row {columns['row'][row]}" if "row" in columns else f"row {row} of row group {group}"
        raise DamagedDataset(
            f"{path}: {where}, column {column} of {name!r} is {values[row, column]}; "
            "a data set that ingest wrote has finite features only: make it again"
        )


def decode(column: pa.ChunkedArray, matrix: Mapping[str, str | int] | None) -> np.ndarray:
    """A column as numpy; `matrix` is its dtype and size where it is a fixed_size_binary, None where it is
    not.
    """
    if matrix is None:
        if pa.types.is_string(column.type):
            return np.asarray(column.to_pylist(), dtype=np.str_)
        return column.to_numpy()
    dtype, size = np.dtype(str(matrix["dtype"])), int(matrix["size"])
    parts = [_lay_over(chunk, dtype, size) for chunk in column.chunks]
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty((0, size), dtype)


def _lay_over(chunk: pa.Array, dtype: np.dtype, size: int) -> np.ndarray:
    width = size * dtype.itemsize
    if not pa.types.is_fixed_size_binary(chunk.type) or chunk.type.byte_width != width or chunk.null_count:
        raise DamagedDataset(f"a column should be fixed_size_binary[{width}] without nulls, is {chunk.type}")
    buffer = chunk.buffers()[1]
    flat = np.frombuffer(buffer, dtype=dtype, count=len(chunk) * size, offset=chunk.offset * width)
    return flat.reshape(len(chunk), size)


def read_split(dataset: Dataset, split: str, *, views: Sequence[str] | None = None) -> SplitArrays:
    """A whole split in memory, in the order of its row ids.

    Args:
        views: which views; None for all.  Raises ValueError for one that the data set does not have.

    Raises DamagedDataset where a shard is not in its place (row ids and counts are checked; for the content
    call `dataset.verify`).
    """
    manifest, entry = dataset.manifest, dataset.split(split)
    chosen = list(manifest.views) if views is None else list(views)
    for name in chosen:
        if name not in manifest.views:
            raise ValueError(f"{dataset.path} has no view {name!r}; it has: {', '.join(manifest.views)}")
    names = ["row", *(f"view.{name}" for name in chosen)]
    names += ["label"] * manifest.has_labels + ["events"] * manifest.has_events
    texts = _text_columns(dataset.shard_path(split, 0)) if entry.shards else []
    out: dict[str, np.ndarray] = {
        f"view.{name}": np.empty((entry.rows, manifest.views[name].size), np.float32) for name in chosen
    }
    out |= {name: np.empty(entry.rows, np.int64) for name in ("row", "label") if name in names}
    if manifest.has_events:
        out["events"] = np.empty((entry.rows, manifest.num_classes), np.uint8)
    strings: dict[str, list[np.ndarray]] = {name: [] for name in texts}
    done = 0
    for index, shard in enumerate(entry.shards):
        path, first = dataset.shard_path(split, index), done
        for group in range(shard.num_row_groups):
            block = read_row_group(path, group, [*names, *texts])
            stop = done + len(block["row"])
            if stop > entry.rows or not np.array_equal(block["row"], np.arange(done, stop)):
                raise DamagedDataset(
                    f"{path} does not hold the rows from {first} on: another shard in its place?"
                )
            for name, target in out.items():
                target[done:stop] = block[name]
            for name, parts in strings.items():
                parts.append(block[name])
            done = stop
        if done - first != shard.rows:
            raise DamagedDataset(f"{path} has {done - first} rows, the manifest says {shard.rows}")
    return SplitArrays(
        row=out["row"],
        views={name: out[f"view.{name}"] for name in chosen},
        labels=out.get("label"),
        events=out.get("events"),
        groups=np.concatenate(strings["group"]) if strings.get("group") else None,
        clips=np.concatenate(strings["clip"]) if strings.get("clip") else None,
    )


def _text_columns(path: str) -> list[str]:
    with _open_shard(path) as file:
        return [name for name in ("group", "clip") if name in file.schema_arrow.names]

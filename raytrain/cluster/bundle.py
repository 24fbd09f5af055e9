"""A searchable index: a trained model and the embeddings of a split in one folder that needs neither run nor data.

    model.safetensors        the selected weights of the run
    embeddings.safetensors   [n d] unit-norm float32 by view
    state.json               configuration, views with their scalers, classes, clip ids and labels of the rows
    manifest.json            the sha256 sum of each

It is written and read as a checkpoint is: whole or not at all, and every sum is checked before anything is used.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int

from raytrain.cluster import checkpoint
from raytrain.cluster.embed import embed
from raytrain.cluster.evaluate import embed_split, load
from raytrain.config import Config, validate
from raytrain.data.manifest import SPLITS, Manifest
from raytrain.evaluation.nearest import Nearest, nearest
from raytrain.methods import build
from raytrain.methods.base import Method


@dataclass(frozen=True)
class Index:
    """What `open_index` reads."""

    path: Path
    method: Method
    manifest: Manifest
    embeddings: dict[str, Float32[np.ndarray, "n d"]]
    clips: tuple[str, ...]
    """Clip ids where the data set has them, else <split>/<row>."""
    labels: Int[np.ndarray, " n"] | None

    def __len__(self) -> int:
        return len(self.clips)

    def embed(
        self, view: str, features: Float32[np.ndarray, "q f"] | Float32[np.ndarray, " f"]
    ) -> Float32[np.ndarray, "q d"]:
        """Unit-norm embeddings of unscaled feature vectors.  Raises ValueError for another size, NaN or infinity."""
        rows, size = np.atleast_2d(features), self.manifest.views[self._known(view)].size
        if rows.shape[1] != size:
            raise ValueError(
                f"{view} features have size {rows.shape[1]}; this index was trained on size {size}"
            )
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(bad):
            raise ValueError(f"{view} features: row {bad[0]} holds NaN or infinity; remove or repair it")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        found = embed(self.method.to(device), {view: torch.from_numpy(rows)}, device)
        return found[view].cpu().numpy()

    def of_clip(self, view: str, clip: str) -> Float32[np.ndarray, "1 d"]:
        """The embedding of a clip of the index.  Raises ValueError for a clip that is not in it."""
        if clip not in self.clips:
            raise ValueError(
                f"{self.path}: there is no clip {clip!r}; its {len(self):,} clips are named like {self.clips[0]!r}"
            )
        return self.embeddings[self._known(view)][[self.clips.index(clip)]]

    def search(self, query: Float32[np.ndarray, "q d"], *, view: str, count: int) -> Nearest:
        """The nearest clips of the index by their embedding of `view`."""
        return nearest(query, self.embeddings[self._known(view)], count=count)

    def _known(self, view: str) -> str:
        if view not in self.embeddings:
            raise ValueError(f"{self.path} has no view {view!r}; it has: {', '.join(self.embeddings)}")
        return view


def write_index(run: Path, out: Path, splits: Sequence[str]) -> int:
    """Embeds splits of the run's data set with its selected weights; returns the number of clips.

    Raises ValueError where there is no run, no such split, or `out` exists and is no index.
    """
    if out.exists() and not _is_index(out) and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not an index; give another --out")
    config, dataset, method = load(run)
    found: dict[str, list[np.ndarray]] = {}
    clips: list[str] = []
    labels: list[int] = []
    for split in splits:
        embedded = embed_split(method, dataset, split, config.data.views)
        for view, z in embedded.embeddings.items():
            found.setdefault(view, []).append(z)
        names = embedded.clips
        clips += [f"{split}/{row}" for row in embedded.row] if names is None else names.tolist()
        labels += [] if embedded.labels is None else embedded.labels.tolist()
    embeddings = {view: torch.from_numpy(np.concatenate(parts)) for view, parts in found.items()}
    state = {
        "index": 1,
        "run": str(run),
        "splits": list(splits),
        "config": config.model_dump(mode="json"),
        "data": dataset.manifest.model_copy(update={"splits": {}, "truth": None}).model_dump(mode="json"),
        "clips": clips,
        "labels": labels if dataset.manifest.has_labels else None,
    }
    checkpoint.save(out, {"model": method.state_dict(), "embeddings": embeddings}, state)
    return len(clips)


def open_index(path: Path) -> Index:
    """Reads an index.  Raises ValueError where there is none, and DamagedCheckpoint where a byte of it has changed."""
    if not _is_index(path):
        raise ValueError(f"{path} is not an index; make one with `raytrain index RUN --out {path}`")
    found = checkpoint.read(path)
    state: dict[str, Any] = found.state
    manifest = Manifest.model_validate(state["data"])
    config = validate(Config, state["config"])
    method = build(config, manifest)
    method.load_state_dict(found.tensors["model"])
    return Index(
        path=path,
        method=method,
        manifest=manifest,
        embeddings={view: found.tensors["embeddings"][view].numpy() for view in config.data.views},
        clips=tuple(state["clips"]),
        labels=None if state["labels"] is None else np.array(state["labels"], dtype=np.int64),
    )


def _is_index(path: Path) -> bool:
    """By the names of its files, before any of them is read."""
    try:
        return "embeddings.safetensors" in json.loads((path / "manifest.json").read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def splits_named(name: str) -> tuple[str, ...]:
    """One split, or `all` of them."""
    return SPLITS if name == "all" else (name,)

"""What makes two runs the same run: digests of all that a resumed run must end with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from raytrain.cluster import checkpoint
from raytrain.cluster.checkpoint import Checkpoint
from raytrain.cluster.training import CHECKPOINTS


def run_digest(folder: Path) -> dict[str, str]:
    """The digests of the newest checkpoint of a run's folder.

    One sha256 for each group of tensors, so that two runs that differ also say in what: `model` (student, graph and
    whatever else the method holds), `ema` (the averaged weights), `optimizer`, `teaching` (the teacher and a pending
    graph), `diagnostics`; one for the metric `history`; one for the rest of the `state`, in which the seed, the step
    and the rank stand for all generators; and `rows`, the fingerprint of the row ids in the order of training.

    Raises ValueError where there is no checkpoint, DamagedCheckpoint where none is whole.
    """
    found = checkpoint.latest(folder / CHECKPOINTS)
    if found is None:
        raise ValueError(f"{folder}: no checkpoint here; train with `raytrain train`")
    return checkpoint_digest(found)


def checkpoint_digest(found: Checkpoint) -> dict[str, str]:
    rest = {k: v for k, v in found.state.items() if k not in {"history", "rows"}}
    return {
        **{name: tensors_digest(group) for name, group in sorted(found.tensors.items())},
        "history": _digest(found.state["history"]),
        "state": _digest(rest),
        "rows": str(found.state["rows"]),
    }


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

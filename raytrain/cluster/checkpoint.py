"""Checkpoints that are whole or absent: safetensors and JSON under a manifest of sha256 sums.

    <folder>/step-00000120/
        model.safetensors  ema.safetensors  optimizer.safetensors  state.json
        manifest.json      the sha256 sum and size of each of them, and of nothing else

A checkpoint is written into a hidden folder beside its place, every file and the folder are fsynced, and one
rename puts it there.  Reading checks every sum before anything is used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from safetensors.torch import save as serialise
from torch import Tensor

log = logging.getLogger(__name__)

FORMAT = 1
PREFIX = "step-"
MANIFEST, STATE = "manifest.json", "state.json"
PARTIAL, OLD = ".partial", ".old"
"""Ends of the hidden names of what is being written and of what it replaces."""
MAX_MANIFEST_BYTES = 2**16
FILE_NAME = re.compile(r"state\.json|[a-z_]+\.safetensors")


class DamagedCheckpoint(ValueError):
    """A checkpoint that is not what was written: names the file and what is wrong with it."""


@dataclass(frozen=True)
class Checkpoint:
    tensors: dict[str, dict[str, Tensor]]
    """By file name without suffix, e.g. model, ema, optimizer."""
    state: dict[str, Any]
    path: Path


def save(path: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    """Writes a checkpoint to `path`, replacing what is there only when the new one is whole.

    The sums are of what is in memory, so what the disk made of it is told when it is read.  Raises OSError with the
    file's name where it could not be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        sums = {}
        for name, data in _serialised(tensors, state):
            _write(partial / name, data)
            sums[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        manifest = json.dumps({"format": FORMAT, "files": sums}, indent=1).encode()
        _write(partial / MANIFEST, manifest)
        _fsync(partial)
        _put_in_place(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _serialised(
    tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file, one in memory at a time."""
    for name, group in tensors.items():
        contiguous = {key: value.detach().cpu().contiguous().clone() for key, value in group.items()}
        yield f"{name}.safetensors", serialise(contiguous)
    yield STATE, json.dumps(state, indent=1, allow_nan=False).encode()


def _write(path: Path, data: bytes) -> None:
    with path.open(
        "wb", buffering=0
    ) as file:  # a buffer would try once more, and say less, when it is closed
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError as error:  # of a write it does not say which file
            raise OSError(
                error.errno, f"{error.strerror}; the checkpoint is not written", str(path)
            ) from None
    size = path.stat().st_size
    if size != len(data):
        raise OSError(f"{path}: {size} of {len(data)} bytes were written; the checkpoint is not written")


def _put_in_place(partial: Path, path: Path) -> None:
    if path.exists():
        old = path.with_name(f".{path.name}{OLD}")
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
        partial.rename(path)
        shutil.rmtree(old)
    else:
        partial.rename(path)
    _fsync(path.parent)


def settle(folder: Path) -> None:
    """Ends what a killed `save` or `prune` in this folder left half done.  Only while nobody saves here.

    One that was killed between its two renames has moved the old checkpoint away and not put the new one there: the
    old one comes back.
    """
    if not folder.is_dir():
        return
    for old in folder.glob(f".*{OLD}"):
        place = old.with_name(old.name.removeprefix(".").removesuffix(OLD))
        if not place.exists():
            old.rename(place)
    for left in (*folder.glob(f".*{OLD}"), *folder.glob(f".*{PARTIAL}")):
        shutil.rmtree(left)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path) -> Checkpoint:
    """The checkpoint at `path`; DamagedCheckpoint if any byte of it is not what was written."""
    contents = {}
    for name, (sha256, size) in _read_manifest(path).items():
        file = path / name
        try:
            found = file.stat().st_size
            data = file.read_bytes() if found == size else b""
        except OSError as error:
            raise DamagedCheckpoint(f"{file}: cannot be read ({error.strerror})") from None
        if found != size or hashlib.sha256(data).hexdigest() != sha256:
            raise DamagedCheckpoint(
                f"{file}: its sha256 is not that of the manifest ({found} of {size} bytes)"
            )
        contents[name] = data
    if STATE not in contents:
        raise DamagedCheckpoint(f"{path / MANIFEST}: names no {STATE}")
    try:
        tensors = {
            Path(name).stem: load(data) for name, data in contents.items() if name.endswith(".safetensors")
        }
        state = json.loads(contents[STATE])
    except (SafetensorError, ValueError, RecursionError) as error:
        raise DamagedCheckpoint(f"{path}: not written by raytrain ({error})") from None
    if not isinstance(state, dict):
        raise DamagedCheckpoint(f"{path / STATE}: not written by raytrain (no object)")
    return Checkpoint(tensors, state, path)


def _read_manifest(path: Path) -> dict[str, tuple[str, int]]:
    """sha256 and bytes by the name of the file, in the folder and nowhere else."""
    file = path / MANIFEST
    try:
        if file.stat().st_size > MAX_MANIFEST_BYTES:
            raise DamagedCheckpoint(f"{file}: {file.stat().st_size} bytes; a manifest has a few hundred")
        manifest = json.loads(file.read_bytes())
        if manifest["format"] != FORMAT:
            raise DamagedCheckpoint(f"{path}: format {manifest['format']!r}, this version reads {FORMAT}")
        files = {}
        for name, entry in manifest["files"].items():
            if not FILE_NAME.fullmatch(name):
                raise DamagedCheckpoint(f"{file}: names {name!r}, which is no file of a checkpoint")
            files[name] = (str(entry["sha256"]), int(entry["bytes"]))
    except DamagedCheckpoint:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCheckpoint(f"{path}: {MANIFEST} cannot be read ({error})") from None
    return files


def list_steps(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if path.is_dir())


def path_of_step(folder: Path, step: int) -> Path:
    return folder / f"{PREFIX}{step:08d}"


def latest(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint; a damaged one is named in a warning and the one before it is tried."""
    damaged = []
    for path in reversed(list_steps(folder)):
        try:
            return read(path)
        except DamagedCheckpoint as error:
            log.warning("%s; falling back to the checkpoint before it", error)
            damaged.append(str(error))
    if damaged:
        raise DamagedCheckpoint(f"no checkpoint in {folder} is whole: {'; '.join(damaged)}")
    return None


def prune(folder: Path, keep: int, newest: Path | None = None) -> None:
    """Keeps the newest `keep`.  What is newer than `newest`, the one just written, was damaged: the run went back
    behind it, and it goes too."""
    paths = list_steps(folder)
    whole = [path for path in paths if newest is None or path <= newest]
    for path in set(paths) - set(whole[-keep:]):
        gone = path.with_name(f".{path.name}{OLD}")
        shutil.rmtree(gone, ignore_errors=True)
        path.rename(gone)  # at once: half a folder would look like a damaged checkpoint
        shutil.rmtree(gone)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimiser as named tensors: "<index of the parameter>.<entry>"."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": value for index, entries in state.items() for key, value in entries.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    entries: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        entries.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})

"""A run as a folder: what lies where, and the record of what made it.

config.json        the resolved configuration
environment.json   versions, git commit, fingerprint of the data set, sha256 of the configuration and of itself
checkpoints/       the newest states, to resume from
best/              the weights with the best validation score, to evaluate
history.jsonl      one line per validation
tensorboard/       scalars, histograms, hparams
moments.npz        sums of the teacher's soft labels that the newest class graph was asked of; for `raytrain graph`
graphs/            the class graphs, one folder per refresh
teacher/           the newest slow weights of the teacher, for `raytrain train --teacher`
evaluation.json    what `raytrain evaluate` wrote
lock               held by the process that trains
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from raytrain.config import Config, load_values, validate
from raytrain.data.manifest import Dataset

CONFIG, ENVIRONMENT, HISTORY = "config.json", "environment.json", "history.jsonl"
TENSORBOARD = "tensorboard"
LOCK = "lock"
MOMENTS = "moments.npz"
URI = re.compile(r"[a-z][a-z0-9+.-]+:/")
"""As pathlib leaves it: with one slash."""
PACKAGES = ("raytrain", "torch", "ray", "numpy", "pyarrow", "safetensors")


def write_text(path: Path, text: str) -> None:
    """The whole text or nothing: written beside, fsynced and renamed."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """All of it or nothing, as `write_text`; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)


def create(folder: Path, config: Config, dataset: Dataset, *, teacher: str | None = None) -> None:
    """A new run folder; `teacher` is the fingerprint of the one that the run is given.

    Raises ValueError where there is a run already, or something else, and for a URI.
    """
    if URI.match(str(folder)):
        raise ValueError(
            f"{folder}: a run's folder is on a file system with rename, which makes a checkpoint whole or absent; "
            "object stores have none: give --out on a local or shared disk (docs/cluster.md). Data may be a URI"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "holds a run" if (folder / CONFIG).exists() else "exists and is not a run"
        raise ValueError(
            f"{folder} {what}; go on with `raytrain train --resume {folder}` or give another --out"
        )
    folder.mkdir(parents=True, exist_ok=True)
    text = config.model_dump_json(indent=1)
    record = {
        **environment(dataset),
        "teacher": teacher,
        "config_sha256": _digest_of_config(json.loads(text)),
    }
    write_text(folder / ENVIRONMENT, json.dumps({**record, "sha256": _digest(record)}, indent=1))
    write_text(folder / CONFIG, text)


@contextmanager
def held(folder: Path, *, doing: str) -> Iterator[None]:
    """The folder of a run or a search for this process alone, until the block or the process ends.

    Raises ValueError where another process is `doing` its work there.
    """
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder}: another process {doing} there; wait for it or end it") from None
        yield


def read_config(folder: Path) -> Config:
    """The resolved configuration of a run.

    Raises ValueError where there is no run, and where the configuration is not the one that it was started with: all
    but `data.path`, for data may move.
    """
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder}: no run here ({CONFIG} is missing); train one with `raytrain train`")
    values = load_values(folder / CONFIG)
    if read_record(folder)["config_sha256"] != _digest_of_config(values):
        raise ValueError(
            f"{folder / CONFIG} has changed since the run was started; put it back, or start a new run with "
            f"`raytrain train --config {folder / CONFIG} --out NEW`"
        )
    return validate(Config, values)


def read_record(folder: Path) -> dict[str, Any]:
    """What made the run: `environment.json`.  Raises ValueError where it is missing or damaged."""
    path = folder / ENVIRONMENT
    if not path.is_file():
        raise ValueError(f"{path} is missing: nothing says what made the run; put it back from a copy")
    record = load_values(path)
    if not isinstance(record, dict) or record.pop("sha256", None) != _digest(record):
        raise ValueError(f"{path} is damaged: its contents do not have its sha256; put it back from a copy")
    return record


def _digest_of_config(values: Any) -> str:
    if isinstance(values, dict) and isinstance(values.get("data"), dict):
        values = {**values, "data": {name: value for name, value in values["data"].items() if name != "path"}}
    return _digest(values)


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def check_same_data(folder: Path, dataset: Dataset) -> None:
    """Raises ValueError where the data set is not the one that the run was started on."""
    recorded = read_record(folder)["dataset"]
    if recorded["fingerprint"] != dataset.fingerprint:
        raise ValueError(
            f"{dataset.path} has changed since {folder} was started (fingerprint "
            f"{dataset.fingerprint[:12]}, the run has {recorded['fingerprint'][:12]}); start a new run"
        )


def check_same_teacher(folder: Path, teacher: str | None) -> None:
    """Raises ValueError where the teacher is not the one that the run was started with."""
    recorded = read_record(folder)["teacher"]
    if recorded != teacher:
        raise ValueError(
            f"the teacher that {folder} was started with has changed (fingerprint {str(teacher)[:12]}, the run has "
            f"{str(recorded)[:12]}); start a new run"
        )


def environment(dataset: Dataset) -> dict[str, Any]:
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: version(name) for name in PACKAGES},
        "git_commit": _git_commit(),
        "dataset": {
            "path": dataset.path,
            "name": dataset.manifest.name,
            "synthetic": dataset.manifest.synthetic,
            "fingerprint": dataset.fingerprint,
        },
    }


def _git_commit() -> str | None:
    """Of the source that is running; None where it is installed without its repository."""
    source = Path(__file__).resolve().parent
    found = subprocess.run(
        ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=40"],
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or None

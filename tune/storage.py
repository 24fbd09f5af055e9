"""A search on disk.

search.json      what is searched, and how: a search that goes on must be the same
journal.jsonl    one line per event, written before anything else hears of it
study.db         the trials, as Optuna has them: `optuna-dashboard sqlite:///study.db`
trials/<n>/      checkpoints of trials that run
finals/          runs of the survivors and of the default, with every seed
tensorboard/     scalars and hparams of every trial
best.toml        for `raytrain train --config`
final.json       what the seeds said, and the test split
report.html      all of it to look at
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages import RDBStorage
from optuna.study import Study
from sqlalchemy import event

from raytrain.cluster.run_folder import held, write_text
from tune.sampling import Memoryless

SEARCH, JOURNAL, STUDY, TRIALS = "search.json", "journal.jsonl", "study.db", "trials"
Direction = Literal["minimize", "maximize"]

MAY_CHANGE = ("trials", "concurrency", "survivors", "seeds")
"""What a search that goes on may have otherwise than it had."""


class Journal:
    """Events in the order in which they came.  A line that was cut off while it was written never happened."""

    def __init__(self, path: Path):
        self._path = path
        text = path.read_text() if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            write_text(path, whole)
        self.events: list[dict[str, Any]] = [json.loads(line) for line in whole.splitlines()]

    def add(self, what: str, **values: Any) -> dict[str, Any]:
        """Writes an event to the disk; returns it."""
        found = {"what": what, **values}
        with self._path.open("a") as file:
            file.write(json.dumps(found, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.events.append(found)
        return found

    def of(self, what: str) -> list[dict[str, Any]]:
        return [found for found in self.events if found["what"] == what]


@contextmanager
def opened(folder: Path, plan: dict[str, Any], *, resume: bool) -> Iterator[Journal]:
    """The journal of the search in `folder`, which is begun or goes on, for this process alone.

    Raises ValueError where there is a search and `resume` is not set, where it is another search, where another
    process is at work in it, and where its files belong to another user.
    """
    if folder.exists() and not (folder / SEARCH).exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} exists and is not a search; give another --out")
    if (folder / SEARCH).exists() and not resume:
        raise ValueError(f"{folder} holds a search; go on with --resume or give another --out")
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder, doing="is searching"):
        if (folder / SEARCH).exists():
            _check_same(folder, plan)
        write_text(folder / SEARCH, json.dumps(plan, indent=1))
        yield Journal(folder / JOURNAL)


def _check_same(folder: Path, plan: dict[str, Any]) -> None:
    for name in (SEARCH, JOURNAL, STUDY):
        path = folder / name
        if path.exists() and path.stat().st_uid != os.getuid():
            raise ValueError(f"{path} belongs to another user; go on with searches of your own only")
    was = json.loads((folder / SEARCH).read_text())
    for key in sorted(was.keys() | plan.keys()):
        if key not in MAY_CHANGE and was.get(key) != json.loads(json.dumps(plan.get(key))):
            shown = (
                "" if isinstance(was.get(key), dict) else f" (it was {was.get(key)!r}, now {plan.get(key)!r})"
            )
            raise ValueError(
                f"{folder} holds a search with another {key}{shown}; give the same or another --out"
            )


def open_study(folder: Path, sampler: Memoryless, directions: Sequence[Direction]) -> Study:
    """The trials of the search, made where there are none."""
    path = folder / STUDY
    with sqlite3.connect(path) as connection:  # commits wait for no disk; the journal does, and comes first
        connection.execute("PRAGMA journal_mode=WAL")
    connection.close()
    storage = RDBStorage(f"sqlite:///{path.resolve()}")

    @event.listens_for(storage.engine, "connect")
    def _(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA synchronous=NORMAL")

    storage.engine.dispose()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        storage=storage, sampler=sampler, study_name="search", directions=directions, load_if_exists=True
    )

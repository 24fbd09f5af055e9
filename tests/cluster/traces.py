"""What a command leaves on the machine: processes, shared memory, temporary folders, open ports."""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

MARK = "RAYTRAIN_TEST_MARK"


def marked(mark: str) -> list[psutil.Process]:
    """Every process that was started, at whatever depth, with this mark in its environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def listening(mark: str) -> set[str]:
    """Addresses on which marked processes accept connections."""
    found = set()
    for process in marked(mark):
        try:
            connections = process.net_connections(kind="inet")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        found |= {c.laddr.ip.removeprefix("::ffff:") for c in connections if c.status == psutil.CONN_LISTEN}
    return found


def files() -> set[Path]:
    """Shared memory, and the session folders of local Rays."""
    folders = {Path("/tmp"), Path(tempfile.gettempdir())}
    return {*Path("/dev/shm").iterdir(), *(path for at in folders for path in at.glob("raytrain-*"))}


@contextmanager
def nothing_left(seconds: float = 15.0) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields a mark and the environment that carries it; after the block nothing of it may be there any more."""
    mark = uuid.uuid4().hex
    before = files()
    yield mark, {**os.environ, MARK: mark}
    give_up = time.monotonic() + seconds
    while (alive := marked(mark)) and time.monotonic() < give_up:
        time.sleep(0.1)
    assert not alive, f"left running: {[' '.join(process.cmdline())[:80] for process in alive]}"
    left = {path for path in files() - before if not in_use(path)}
    assert not left, f"left behind: {sorted(map(str, left))}"


def in_use(path: Path) -> bool:
    """By a process that lives: another test, or another run on this machine."""
    if path.name.startswith("raytrain-"):
        return Path(f"/proc/{path.name.split('-')[1]}").exists()
    return any(entry.path == str(path) for process in psutil.process_iter() for entry in _maps(process))


def _maps(process: psutil.Process) -> list[Any]:
    try:
        return process.memory_maps(grouped=False)
    except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
        return []

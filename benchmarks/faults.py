"""Faults are injected, one at a time; each is recovered from, or refused by a named error, or it was silent.

    python benchmarks/faults.py [--short] [--seed 0] [--verbose]

recovered   the run ends with the digests of the undisturbed run (`raytrain.cluster.identity`), and where a checkpoint
            was damaged a warning has named it
refused     one ValueError, OSError or FloatingPointError that names the file (and the row, where a row is wrong)
silent      anything else: other weights, other rows, an unnamed error, or no error where one is due

`--short` injects a seventh of each kind.  The last line is JSON; the exit code is 1 where something was silent.
Ranks are forked and on gloo, what is killed was started here; kills under Ray Train are in benchmarks/resume.py.
"""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq

from raytrain.cluster import checkpoint
from raytrain.cluster.alone import train_alone
from raytrain.cluster.bundle import open_index, write_index
from raytrain.cluster.evaluate import load
from raytrain.cluster.forked import DONE, World, finish, prepared
from raytrain.cluster.identity import run_digest
from raytrain.cluster.preemption import Heard, Preempted
from raytrain.cluster.run_folder import CONFIG, ENVIRONMENT, create, read_config
from raytrain.cluster.training import BEST, CHECKPOINTS
from raytrain.config import Config, build
from raytrain.data import storage
from raytrain.data.ingest import ingest
from raytrain.data.manifest import Dataset, open_dataset
from raytrain.data.options import IngestConfig
from raytrain.data.reading import Reading
from raytrain.methods import resolve

RECOVERED, REFUSED, SILENT = "recovered", "refused", "silent"
OPTIONS = (
    "model.hidden=[16]",
    "model.embedding=8",
    "model.dropout=0.2",
    "data.batch_size=40",
    "train.epochs=6",
    "train.precision=float32",
    "train.patience=off",
    "train.checkpoint_every=4",
    "train.ema_decay=0.9",
    "train.diagnose_every=5",
)
STOPPED_AT = 17
"""Steps done of the half run: its checkpoints are of steps 16 and 17."""


@dataclass(frozen=True)
class Ground:
    """What the faults are injected into: a data set, an undisturbed run, half a run."""

    scratch: Path
    source: Path
    dataset: Dataset
    config: Config
    whole: Path
    half: Path
    index: Path
    digests: dict[int, dict[str, str]]
    """Of the undisturbed run, by number of ranks."""


def write_source(path: Path, **changes: Any) -> Path:
    """Class prototypes and noise, 180 clips to train on and 60 to test on, with clip ids; `changes` by array name."""
    draw = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    prototypes = {view: draw.normal(size=(4, size)) for view, size in (("audio", 6), ("visual", 9))}
    for split, count in (("train", 180), ("test", 60)):
        labels = np.arange(count) % 4
        arrays[f"lab_{split}"] = labels
        arrays[f"name_{split}"] = np.array([f"{split[:2]}-{i:03d}".encode() for i in range(count)])
        for view, means in prototypes.items():
            features = means[labels] + 0.7 * draw.normal(size=(count, means.shape[1]))
            arrays[f"{view}_{split}"] = features.astype(np.float32)
    for name, change in changes.items():
        arrays[name] = change(arrays[name])
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return path


def prepare(scratch: Path) -> Ground:
    source = write_source(scratch / "clips.h5")
    options = IngestConfig(row_group_rows=16, shard_rows=48)
    dataset = ingest([source], scratch / "data", config=options)
    config = resolve(build(overrides=OPTIONS, data={"path": dataset.path}), dataset.manifest)
    whole, half = scratch / "whole", scratch / "half"
    create(whole, config, dataset)
    train_alone(config, dataset, whole)
    training, batches, validation = prepared(config, dataset, half, 0, 1)
    told = iter([Heard.NOTHING] * (STOPPED_AT - 1) + [Heard.END])
    with suppress(Preempted):
        training.run(batches, validation, None, listen=lambda: next(told))
    digests = {1: run_digest(whole)}
    two = World(config, dataset.path, scratch / "whole-2", 2)
    finish(two)
    digests[2] = run_digest(two.folder)
    write_index(whole, scratch / "index", ("test",))
    return Ground(scratch, source, dataset, config, whole, half, scratch / "index", digests)


Injection = Callable[[Ground, Path, random.Random], str]
"""Injects one fault, in a scratch folder of its own; returns what came of it."""


@contextmanager
def warnings_of_checkpoints() -> Iterator[list[str]]:
    heard: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    logger, handler = logging.getLogger("raytrain"), Handler()
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield heard
    finally:
        logger.propagate = True
        logger.removeHandler(handler)


def refused(what: Callable[[], object], *names: str) -> str:
    """Whether it ends with a named error that says each of `names`."""
    try:
        what()
    except (ValueError, OSError, FloatingPointError) as error:
        missing = [name for name in names if name not in str(error)]
        return REFUSED if not missing else f"{SILENT}: {type(error).__name__} without {missing}: {error}"
    return f"{SILENT}: nothing was said"


def resumed(ground: Ground, folder: Path, ranks: int = 1) -> str:
    """Whether the run in a folder ends as the undisturbed one."""
    if ranks == 1:
        train_alone(ground.config, ground.dataset, folder)
    else:
        finish(World(ground.config, ground.dataset.path, folder, ranks))
    return same(ground, folder, ranks)


def same(ground: Ground, folder: Path, ranks: int) -> str:
    found, expected = run_digest(folder), ground.digests[ranks]
    differs = [name for name in expected if found.get(name) != expected[name]]
    if differs or found.keys() != expected.keys():
        return f"{SILENT}: other {differs or found.keys()}"
    ours, theirs = checkpoint.read(folder / BEST), checkpoint.read(ground.whole / BEST)
    if ranks == 1 and (
        ours.state != theirs.state
        or any(not (ours.tensors["model"][k] == v).all() for k, v in theirs.tensors["model"].items())
    ):
        return f"{SILENT}: other best weights"
    return RECOVERED


# Damage to files.


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def any_bit(folder: Path, draw: random.Random) -> tuple[Path, int]:
    """A bit of a file of the folder: half of the time of the file's share of bytes, half of a file by lot."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    weights = [path.stat().st_size for path in files] if draw.random() < 0.5 else None
    (file,) = draw.choices(files, weights)
    return file, draw.randrange(8 * file.stat().st_size)


def damaged_newest(ground: Ground, place: Path, damage: Callable[[Path], object]) -> str:
    """The newest checkpoint of the half run is damaged: the one before it is used, and a warning says so."""
    shutil.copytree(ground.half, place / "run")
    newest = checkpoint.list_steps(place / "run" / CHECKPOINTS)[-1]
    damage(newest)
    with warnings_of_checkpoints() as heard:
        found = resumed(ground, place / "run")
    if found == RECOVERED and not any(newest.name in line and "falling back" in line for line in heard):
        return f"{SILENT}: no warning about {newest.name}"
    return found


def checkpoint_flip(ground: Ground, place: Path, draw: random.Random) -> str:
    return damaged_newest(ground, place, lambda newest: flip(*any_bit(newest, draw)))


def checkpoint_cut(name: str, sixteenth: int) -> Injection:
    def inject(ground: Ground, place: Path, draw: random.Random) -> str:
        def cut(newest: Path) -> None:
            data = (newest / name).read_bytes()
            (newest / name).write_bytes(data[: len(data) * sixteenth // 16])

        return damaged_newest(ground, place, cut)

    return inject


def checkpoint_gone(name: str) -> Injection:
    def inject(ground: Ground, place: Path, draw: random.Random) -> str:
        return damaged_newest(ground, place, lambda newest: (newest / name).unlink())

    return inject


def every_checkpoint_damaged(ground: Ground, place: Path, draw: random.Random) -> str:
    """Nothing to go back to: refused, and not begun anew."""
    shutil.copytree(ground.half, place / "run")
    paths = checkpoint.list_steps(place / "run" / CHECKPOINTS)
    for path in paths:
        flip(*any_bit(path, draw))
    with warnings_of_checkpoints():
        return refused(lambda: resumed(ground, place / "run"), *(path.name for path in paths))


def shard_damage(damage: Callable[[list[Path], random.Random], Path]) -> Injection:
    def inject(ground: Ground, place: Path, draw: random.Random) -> str:
        shutil.copytree(ground.dataset.path, place / "data")
        named = damage(sorted((place / "data").glob("*.parquet")), draw)
        return refused(lambda: read_all(place / "data"), named.name)

    return inject


def read_all(data: Path) -> None:
    """As a run begins: open, verify, read."""
    dataset = open_dataset(data)
    for split in ("train", "validation", "test"):
        dataset.verify(split)
        config = resolve(build(overrides=OPTIONS, data={"path": str(data)}), dataset.manifest)
        Reading.of(dataset, split, config).whole()


def flipped_shard(shards: list[Path], draw: random.Random) -> Path:
    shard = draw.choice(shards)
    flip(shard, draw.randrange(8 * shard.stat().st_size))
    return shard


def missing_shard(shards: list[Path], draw: random.Random) -> Path:
    shard = draw.choice(shards)
    shard.unlink()
    return shard


def truncated_shard(shards: list[Path], draw: random.Random) -> Path:
    shard = draw.choice(shards)
    shard.write_bytes(shard.read_bytes()[: draw.randrange(shard.stat().st_size)])
    return shard


def swapped_shards(shards: list[Path], draw: random.Random) -> Path:
    """Of one size, so that only the content tells."""
    by_size: dict[int, list[Path]] = {}
    for shard in shards:
        by_size.setdefault(shard.stat().st_size, []).append(shard)
    a, b = draw.sample(draw.choice([of for of in by_size.values() if len(of) > 1]), 2)
    first = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(first)
    return min(a, b)


def another_sets_shard(shards: list[Path], draw: random.Random) -> Path:
    """A shard of other clips, as long as the one that it replaces."""
    shard = draw.choice(shards)
    data = bytearray(shard.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = draw.randbytes(64)
    shard.write_bytes(data)
    return shard


def rewritten_shard(change: Callable[[Any], Any], *names: str) -> Injection:
    """A shard of another writer, with a manifest that agrees in size and sum: only what is in it is wrong."""

    def inject(ground: Ground, place: Path, draw: random.Random) -> str:
        data = place / "data"
        shutil.copytree(ground.dataset.path, data)
        shard = data / "train-00001.parquet"
        table = change(pq.read_table(shard))
        pq.write_table(
            table, shard, compression="NONE", use_dictionary=False, write_statistics=False, row_group_size=16
        )
        text = (data / storage.MANIFEST_FILE).read_text()
        manifest = json.loads(text)
        (entry,) = (e for e in manifest["splits"]["train"]["shards"] if e["file"] == shard.name)
        entry |= {"bytes": shard.stat().st_size, "sha256": storage.sha256(shard)}
        (data / storage.MANIFEST_FILE).write_text(json.dumps(manifest))
        return refused(lambda: read_all(data), shard.name, *names)

    return inject


def _with_view(table: Any, row: int, value: float) -> Any:
    import pyarrow as pa

    column = table.column("view.audio").combine_chunks()
    rows = np.frombuffer(column.buffers()[1], np.float32).copy().reshape(len(table), -1)
    rows[row, 2] = value
    width = rows.shape[1] * 4
    made = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(rows), [None, pa.py_buffer(rows)])
    place = table.schema.get_field_index("view.audio")
    return table.set_column(place, table.schema.field(place), made)


def _with_rows(table: Any, rows: np.ndarray) -> Any:
    import pyarrow as pa

    return table.set_column(0, table.schema.field(0), pa.array(rows))


def doubled_row(table: Any) -> Any:
    rows = table.column("row").to_numpy().copy()
    rows[3] = rows[2]
    return _with_rows(table, rows)


def record_flip(ground: Ground, place: Path, draw: random.Random) -> str:
    """In what says how the run is trained on: refused, or the same settings (a blank, where the data lie)."""
    shutil.copytree(ground.whole, place / "run")
    name = draw.choice([CONFIG, ENVIRONMENT])
    file = place / "run" / name
    flip(file, draw.randrange(8 * file.stat().st_size))
    try:
        config = read_config(place / "run")
    except ValueError as error:
        return REFUSED if name in str(error) else f"{SILENT}: nothing of {name} in: {error}"
    given = config.data.model_copy(update={"path": ground.config.data.path})
    settings = config.model_copy(update={"data": given})
    return RECOVERED if settings == ground.config else f"{SILENT}: other settings"


def bundle_flip(which: str) -> Injection:
    def inject(ground: Ground, place: Path, draw: random.Random) -> str:
        if which == "index":
            shutil.copytree(ground.index, place / "index")
            file, bit = any_bit(place / "index", draw)
            flip(file, bit)
            return refused(lambda: open_index(place / "index"), "index")
        shutil.copytree(ground.whole, place / "run")
        file, bit = any_bit(place / "run" / BEST, draw)
        flip(file, bit)
        return refused(lambda: load(place / "run"), BEST)

    return inject


def bad_source(names: tuple[str, ...], **changes: Callable[[np.ndarray], np.ndarray]) -> Injection:
    def inject(ground: Ground, place: Path, draw: random.Random) -> str:
        source = write_source(place / "clips.h5", **changes)
        return refused(lambda: ingest([source], place / "data", config=IngestConfig()), "clips.h5", *names)

    return inject


def at(row: int, column: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[row, column] = value
        return values

    return change


def renamed(row: int, name: bytes, width: int = 6) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values = values.astype(f"S{width}")
        values[row] = name
        return values

    return change


# Deaths and pauses of ranks.


def killed(ranks: int, number: int = signal.SIGKILL) -> Injection:
    """At a step and a moment drawn by lot; then the run goes on."""

    def inject(ground: Ground, place: Path, draw: random.Random) -> str:
        world = World(ground.config, ground.dataset.path, place / "run", ranks)
        world.start()
        world.kill_at(draw.randrange(23), draw.randrange(ranks), number, after_s=draw.random() * 0.01)
        world.wait()
        finish(world)
        return same(ground, place / "run", ranks)

    return inject


def stuck(ground: Ground, place: Path, draw: random.Random) -> str:
    """SIGSTOP: the other rank waits for the collective's timeout, the group falls, the run goes on."""
    world = World(ground.config, ground.dataset.path, place / "run", 2, collective_timeout_s=3.0)
    world.start()
    world.kill_at(draw.randrange(3, 20), draw.randrange(2), signal.SIGSTOP)
    if world.wait(60.0) == DONE:
        return f"{SILENT}: the run ended with a rank that stood still"
    finish(world)
    return same(ground, place / "run", 2)


def dying_in_save(call: int) -> Injection:
    """The process ends at the call-th time that a save goes to the disk: writes, syncs, renames, removals."""

    def inject(ground: Ground, place: Path, draw: random.Random) -> str:
        def arm(_: int) -> None:
            left = [call]

            def counted(real: Callable[..., Any]) -> Callable[..., Any]:
                def touch(*args: Any, **named: Any) -> Any:
                    left[0] -= 1
                    if left[0] == 0:
                        os._exit(9)
                    return real(*args, **named)

                return touch

            for owner, name in ((os, "fsync"), (Path, "rename"), (shutil, "rmtree"), (Path, "mkdir")):
                setattr(owner, name, counted(getattr(owner, name)))

        world = World(ground.config, ground.dataset.path, place / "run", in_child=arm)
        world.start()
        if world.wait() != 9:
            return f"{SILENT}: the process did not die"
        world.in_child = None
        finish(world)
        return same(ground, place / "run", 1)

    return inject


def full_disk(nth: int) -> Injection:
    """The nth write of a save finds no space: refused by the file's name; with space again the run goes on."""

    def inject(ground: Ground, place: Path, draw: random.Random) -> str:
        def arm(_: int) -> None:
            left, real = [nth], checkpoint._write

            def write(path: Path, data: bytes) -> None:
                left[0] -= 1
                if left[0] == 0:
                    real(path, data[: len(data) // 2])
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
                real(path, data)

            checkpoint._write = write

        return told_then_resumed(ground, place, arm, "No space left on device")

    return inject


def small_files(ground: Ground, place: Path, draw: random.Random) -> str:
    """The kernel itself writes short and refuses the rest: RLIMIT_FSIZE."""

    def arm(_: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (draw_size, draw_size))

    draw_size = draw.randrange(500, 3000)
    return told_then_resumed(ground, place, arm, "File too large")


def full_tmpfs(ground: Ground, place: Path, draw: random.Random) -> str:
    """A real file system without space, of a size drawn by lot."""
    disk = place / "disk"
    disk.mkdir()
    size = f"size={draw.randrange(6, 14) * 4}k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(disk)], check=True)
    try:
        world = World(ground.config, ground.dataset.path, disk / "run")
        world.start()
        world.wait()
        said = world.said().read_text() if world.said().exists() else ""
        if "No space left" not in said or "disk/run" not in said:
            return f"{SILENT}: {said or 'nothing was said'}"
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        world.said().unlink()
        finish(world)
        return same(ground, disk / "run", 1)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def told_then_resumed(ground: Ground, place: Path, arm: Callable[[int], None], words: str) -> str:
    world = World(ground.config, ground.dataset.path, place / "run", in_child=arm)
    world.start()
    world.wait()
    said = world.said().read_text() if world.said().exists() else ""
    if words not in said or "run/" not in said:
        return f"{SILENT}: {said or 'nothing was said'}"
    world.in_child = None
    finish(world)
    return same(ground, place / "run", 1)


def lost_tail(nth: int) -> Injection:
    """A disk that says that it has written and has not: the last bytes of a file are gone after the sync."""

    def inject(ground: Ground, place: Path, draw: random.Random) -> str:
        cut = draw.randrange(1, 40)

        def arm(_: int) -> None:
            left, real = [nth], checkpoint._write

            def write(path: Path, data: bytes) -> None:
                real(path, data)
                left[0] -= 1
                if left[0] == 0:
                    os.truncate(path, len(data) - cut)

            checkpoint._write = write

        world = World(ground.config, ground.dataset.path, place / "run", in_child=arm)
        world.start()
        world.kill_at(9)  # so that what was torn is what must be read
        world.wait()
        world.in_child = None
        finish(world)
        return same(ground, place / "run", 1)

    return inject


def clock(jump_s: float) -> Injection:
    """All clocks jump in the middle of the run."""

    def inject(ground: Ground, place: Path, draw: random.Random) -> str:
        jump_at = draw.randrange(50, 400)

        def arm(_: int) -> None:
            calls = [0]

            def jumping(real: Callable[[], float]) -> Callable[[], float]:
                def now() -> float:
                    calls[0] += 1
                    return real() + (jump_s if calls[0] > jump_at else 0.0)

                return now

            for name in ("time", "monotonic", "perf_counter"):
                setattr(time, name, jumping(getattr(time, name)))

        world = World(ground.config, ground.dataset.path, place / "run", in_child=arm)
        world.start()
        if world.wait() != DONE:
            return f"{SILENT}: {world.said().read_text()}"
        return same(ground, place / "run", 1)

    return inject


def kinds() -> dict[str, list[Injection]]:
    """Every kind of fault and its injections."""
    files = ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json", "manifest.json")
    nan, inf = float("nan"), float("inf")
    can_mount = os.geteuid() == 0 and shutil.which("mount") is not None
    return {
        "a bit of the newest checkpoint": [checkpoint_flip] * 100,
        "the newest checkpoint cut": [checkpoint_cut(name, k) for name in files for k in range(16)],
        "a file of the newest checkpoint gone": [checkpoint_gone(name) for name in files],
        "every checkpoint damaged": [every_checkpoint_damaged] * 5,
        "a bit of a shard": [shard_damage(flipped_shard)] * 100,
        "a bit of an index": [bundle_flip("index")] * 50,
        "a bit of a run's record": [record_flip] * 100,
        "a bit of the best weights": [bundle_flip("best")] * 50,
        "a shard missing": [shard_damage(missing_shard)] * 4,
        "a shard truncated": [shard_damage(truncated_shard)] * 8,
        "two shards swapped": [shard_damage(swapped_shards)] * 4,
        "a shard of another set": [shard_damage(another_sets_shard)] * 4,
        "a shard with other contents": [
            rewritten_shard(lambda t: _with_view(t, 5, nan), "row 53"),
            rewritten_shard(lambda t: _with_view(t, 0, inf), "row 48"),
            rewritten_shard(doubled_row),
            rewritten_shard(lambda t: t.slice(0, 40)),
            rewritten_shard(lambda t: _with_rows(t, t.column("row").to_numpy() + 1)),
        ],
        "bad clips in a source": [
            bad_source(("audio_train", "row 7", "column 2"), audio_train=at(7, 2, nan)),
            bad_source(("visual_train", "row 100", "column 8"), visual_train=at(100, 8, inf)),
            bad_source(("visual_test", "row 59", "column 0"), visual_test=at(59, 0, -inf)),
            bad_source(("audio_train", "179"), audio_train=lambda x: x[:-1]),
            bad_source(("lab_train", "181"), lab_train=lambda x: np.append(x, 0)),
            bad_source(("audio_test", "5"), audio_test=lambda x: x[:, :-1]),
            bad_source(("two splits", "row 180"), name_test=renamed(0, b"tr-003")),
            bad_source(("two splits", "row 180"), name_test=renamed(0, b"tr-003", width=40)),
            bad_source(("lab_train",), lab_train=lambda x: x + 0.5),
        ],
        "a rank killed": [killed(1)] * 24,
        "one of two ranks killed": [killed(2)] * 10,
        "a rank told to end": [killed(1, signal.SIGTERM)] * 6,
        "one of two ranks told to end": [killed(2, signal.SIGTERM)] * 4,
        "killed within a save": [dying_in_save(call) for call in range(1, 31)],
        "no space in a save": [full_disk(nth) for nth in range(1, 9)] + [small_files] * 4,
        "a full file system": [full_tmpfs] * 4 if can_mount else [],
        "the end of a written file lost": [lost_tail(nth) for nth in range(1, 11)],
        "a rank that stands still": [stuck] * 3,
        "clocks that jump": [clock(jump) for jump in (86400.0, -86400.0, 3.2e7, -3600.0)],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
    began, total, silent = time.perf_counter(), Counter[str](), []
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        ground = prepare(Path(scratch))
        for kind, injections in kinds().items():
            chosen = injections[:: 7 if options.short else 1]
            found = Counter[str]()
            for number, inject in enumerate(chosen):
                place = Path(scratch) / "place"
                place.mkdir()
                draw = random.Random(f"{options.seed} {kind} {number}")
                came = inject(ground, place, draw)
                shutil.rmtree(place)
                found[came.partition(":")[0]] += 1
                if came.startswith(SILENT):
                    silent.append(f"{kind}, number {number}: {came}")
                    print(f"  {silent[-1]}", flush=True)
                elif options.verbose:
                    print(f"  {kind} {number}: {came}", flush=True)
            counts = ", ".join(f"{name} {found[name]}" for name in (RECOVERED, REFUSED, SILENT))
            print(f"{kind:38s} injected {len(chosen):3d}: {counts}", flush=True)
            total += found
    injected = sum(total.values())
    print(
        f"injected {injected}, recovered {total[RECOVERED]}, refused {total[REFUSED]}, silent {total[SILENT]}"
    )
    seconds = round(time.perf_counter() - began)
    figures = {name: total[name] for name in (RECOVERED, REFUSED, SILENT)}
    print(json.dumps({"injected": injected, **figures, "seconds": seconds}))
    sys.exit(1 if silent else 0)


if __name__ == "__main__":
    main()

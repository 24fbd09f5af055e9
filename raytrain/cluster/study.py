"""The study of "Variance and greediness" on any data: every loss, every seed, equal budget, as Ray tasks.

A finished run is a line of results.jsonl and is not repeated.  The built-in toy is drawn anew for every seed, so that
its seeds are worlds; a data set of the user's is the same for all.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import ray
import torch
from torch import Tensor

from raytrain.cluster import checkpoint
from raytrain.cluster.alone import train_alone
from raytrain.cluster.embed import embed
from raytrain.cluster.evaluate import relevance_of
from raytrain.cluster.local_ray import local_ray
from raytrain.cluster.sources import batch_of
from raytrain.cluster.training import CHECKPOINTS
from raytrain.config import Config, build
from raytrain.data.manifest import Dataset, open_dataset
from raytrain.data.reading import Reading
from raytrain.data.shards import SplitArrays, read_split
from raytrain.data.toy import ToyConfig, generate_toy
from raytrain.evaluation.geometry import (
    UNIFORMITY_T,
    cheap_geometry,
    effective_rank,
    gap_share_of_loss,
    spectrum,
    uniformity,
)
from raytrain.evaluation.inside import retrieve_inside_views
from raytrain.evaluation.moments import members_of, spread_of
from raytrain.evaluation.negatives import false_negative_mass, pair_forces
from raytrain.evaluation.relevance import By
from raytrain.evaluation.retrieval import retrieve_both_ways
from raytrain.graph.dependency import ClassDependency
from raytrain.methods import build as build_method
from raytrain.methods import resolve
from raytrain.methods.base import Method
from raytrain.methods.metric import LOSSES, Metric
from raytrain.types import Progress, Rows

Pairs = Literal["within", "across"]
TOY = "toy"
TOY_OVERRIDES = ("model.hidden=[128]", "data.batch_size=200")
"""A network and batches of the toy's size; what the user sets comes after them."""

SAMPLE_EVERY = 10
"""Steps between two looks at the gradients of the terms; what the study is for, so oftener than in a plain run."""
SAMPLED_ROWS = 256
"""Train rows (shuffled once at ingest) that the false-negative mass and the gap's share of the loss are taken on."""
MAPPED_ROWS = 300
DIGITS = 7

OBJECT_STORE_BYTES = 2**27
"""The tasks of a study send names and numbers, not rows."""


@dataclass(frozen=True)
class Task:
    """One run of the study."""

    data: str
    """A data set's folder."""
    pairs: Pairs
    loss: str
    seed: int
    epochs: int
    overrides: tuple[str, ...]

    def key(self, fingerprint: str) -> str:
        text = json.dumps({**asdict(self), "data": fingerprint}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def config(self) -> Config:
        """Equal budget: no run stops early.  Raises ValueError for wrong overrides."""
        method = {"name": "metric", "loss": self.loss, "pairs": self.pairs}
        train: dict[str, Any] = {"seed": self.seed, "epochs": self.epochs, "patience": None}
        train |= {"ema_decay": None, "diagnose_every": SAMPLE_EVERY}
        return build(overrides=self.overrides, data={"path": self.data}, method=method, train=train)


def tasks_of(
    data: str,
    out: Path,
    *,
    losses: tuple[str, ...],
    pairs: tuple[Pairs, ...],
    seeds: int,
    epochs: int,
    overrides: tuple[str, ...],
) -> list[Task]:
    """All runs, seed by seed, so that an unfinished study holds whole seeds.  Writes the toy's worlds into `out`.

    Raises ValueError for unknown losses, and for whatever a run would refuse: before any has started.
    """
    unknown = [loss for loss in losses if loss not in LOSSES]
    if unknown or not losses:
        raise ValueError(f"--losses: {', '.join(unknown) or 'none given'}; known: all, {', '.join(LOSSES)}")
    if seeds < 1:
        raise ValueError(
            f"--seeds is {seeds}; at least 1 is needed, and 10 for tests that can tell losses apart"
        )
    if data == TOY:
        overrides = (*TOY_OVERRIDES, *overrides)
    tasks = []
    for seed in range(seeds):
        path = str(_toy(out, seed)) if data == TOY else data
        for kind in pairs:
            tasks += [Task(path, kind, loss, seed, epochs, overrides) for loss in losses]
    for task in tasks[: len(losses) * len(pairs)]:
        resolve(task.config(), open_dataset(task.data).manifest)
    return tasks


def _toy(out: Path, seed: int) -> Path:
    folder = out / "data" / f"toy-{seed}"
    if not folder.exists():
        generate_toy(folder, config=ToyConfig(seed=seed))
    return folder


class Results:
    """Lines of results.jsonl: what is there is not done again."""

    def __init__(self, path: Path):
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        if path.exists() and lines and not path.read_text().endswith("\n"):
            lines = lines[:-1]  # cut off while it was written
            path.write_text("".join(line + "\n" for line in lines))
        self.by_key: dict[str, dict[str, Any]] = {row["key"]: row for row in map(json.loads, lines)}

    def add(self, row: dict[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.by_key[row["key"]] = row


def run_study(
    tasks: list[Task], out: Path, *, jobs: int, told: Callable[[dict[str, Any], int, int], None]
) -> list[dict[str, Any]]:
    """The results of all tasks in their order; those that are missing are run, `jobs` at a time, as Ray tasks.

    `told` hears of each finished run: its result, how many are done, how many there are.
    """
    results = Results(out / "results.jsonl")
    fingerprints = {data: open_dataset(data).fingerprint for data in {task.data for task in tasks}}
    keys = [task.key(fingerprints[task.data]) for task in tasks]
    missing = [(key, task) for key, task in zip(keys, tasks, strict=True) if key not in results.by_key]
    if missing:
        with local_ray(jobs, OBJECT_STORE_BYTES):
            remote = ray.remote(num_cpus=1, max_retries=2)(measure)
            waiting = iter(missing)
            running = {remote.remote(task): key for key, task in _first(waiting, jobs)}
            while running:
                (done,), _ = ray.wait(list(running), num_returns=1)
                key = running.pop(done)
                results.add({"key": key, **ray.get(done)})
                told(results.by_key[key], sum(k in results.by_key for k in keys), len(keys))
                running |= {remote.remote(task): key for key, task in _first(waiting, 1)}
    return [results.by_key[key] for key in keys]


def _first(waiting: Iterator[tuple[str, Task]], count: int) -> list[tuple[str, Task]]:
    return [pair for _, pair in zip(range(count), waiting, strict=False)]


class _Inside:
    """Scores the validation split inside each view after every epoch: what selects nothing, but is drawn."""

    def __init__(self, rows: SplitArrays, known: np.ndarray, by: By):
        self._rows, self._known, self._by = batch_of(rows), known, by
        self.maps: list[float] = []

    def step(self, step: int, values: dict[str, float]) -> None:
        """Nothing is drawn by step."""

    def validated(self, record: dict[str, Any], values: dict[str, float], method: Method) -> None:
        training = method.training
        z = embed(method, self._rows.views, torch.device("cpu"))
        method.train(training)
        self.maps.append(retrieve_inside_views(z, self._known, by=self._by).map)

    def adopted(self, step: int, graph: ClassDependency, values: dict[str, float]) -> None:
        """No loss of the study makes a graph."""

    def close(self, best: dict[str, Any]) -> None:
        """Nothing is open."""


def measure(task: Task) -> dict[str, Any]:
    """Trains one task in this process and measures the weights that its budget ends with."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    dataset = open_dataset(task.data)
    config = resolve(task.config(), dataset.manifest)
    inside = None
    if task.pairs == "within":
        reading = Reading.of(dataset, "validation", config)
        rows = reading.whole()
        inside = _Inside(rows, *_seen(rows))
    with TemporaryDirectory() as folder:
        state = train_alone(config, dataset, Path(folder), inside)
        last = checkpoint.latest(Path(folder) / CHECKPOINTS)
    assert last is not None, "a finished run ends with a checkpoint"
    method = build_method(config, dataset.manifest)
    method.load_state_dict(last.tensors["model"])
    assert isinstance(method, Metric)
    names = sorted({name for record in state.history for name in record} - {"step"})
    curves: dict[str, list[Any]] = {name: [record.get(name) for record in state.history] for name in names}
    if inside is not None:
        curves["map"] = inside.maps
    final, points = _measured(method, config, dataset, task.pairs)
    return _rounded(
        {
            "pairs": task.pairs,
            "loss": task.loss,
            "seed": task.seed,
            "data": dataset.manifest.name,
            "synthetic": dataset.manifest.synthetic,
            "epochs": task.epochs,
            "curves": curves,
            "final": final,
            "points": points if task.seed == 0 else None,
            "seconds": time.perf_counter() - start,
        }
    )


def _seen(rows: SplitArrays) -> tuple[np.ndarray, By]:
    """What training sees of the rows."""
    if rows.labels is not None:
        return rows.labels, "class"
    assert rows.events is not None, "within one view something is annotated"
    return rows.events, "events"


@torch.no_grad()
def _measured(
    method: Metric, config: Config, dataset: Dataset, pairs: Pairs
) -> tuple[dict[str, Any], dict[str, Any]]:
    cpu = torch.device("cpu")
    train = Reading.of(dataset, "train", config).whole()
    rows = batch_of(train)
    z = embed(method, rows.views, cpu)
    found: dict[str, Any] = {}
    num_classes = dataset.manifest.num_classes
    found |= {
        f"train/{k}": v for k, v in spread_of(z, members_of(rows.labels, rows.events, num_classes)).items()
    }
    test = read_split(dataset, "test", views=config.data.views)
    z_test = embed(method, batch_of(test).views, cpu)
    seen = Reading.of(dataset, "test", config).whole()
    members = members_of(
        None if seen.labels is None else torch.from_numpy(seen.labels),
        None if seen.events is None else torch.from_numpy(seen.events),
        num_classes,
    )
    found |= {f"test/{k}": v for k, v in spread_of(z_test, members).items()}
    found |= {f"test/{k}": v for k, v in cheap_geometry(z_test).items()}
    for view, of in z_test.items():
        found[f"test/{view}/uniformity"] = uniformity(of, t=UNIFORMITY_T)
        found[f"test/{view}/spectrum"] = spectrum(of).tolist()
        found[f"test/{view}/effective_rank"] = effective_rank(spectrum(of))
    by = relevance_of(dataset)
    known = {"class": test.labels, "events": test.events, "pair": test.row}[by]
    assert known is not None
    if pairs == "within":
        scores = retrieve_inside_views(z_test, known, by=by)
        found |= {"map": scores.map, "r@1": scores.r1}
    else:
        mean = retrieve_both_ways(z_test, known, by=by).summary()["mean"]
        found |= {"map": mean["map"], "r@1": mean["r@1"]}
        pair = retrieve_both_ways(z_test, test.row, by="pair").summary()["mean"]
        found["pair_r@1"] = pair["r@1"]
    found |= _of_the_loss(method, dataset, config, z, rows.row, rows.labels, rows.events, pairs)
    return found, _points(z_test, seen, pairs)


def _of_the_loss(
    method: Metric,
    dataset: Dataset,
    config: Config,
    z: dict[str, Tensor],
    row: Tensor,
    labels: Tensor | None,
    events: Tensor | None,
    pairs: Pairs,
) -> dict[str, float]:
    """What asks the loss itself, on the first rows of train: the gap's share, and the false-negative mass."""
    sample = slice(0, SAMPLED_ROWS)

    def rows_of(embeddings: dict[str, Tensor]) -> Rows:
        return Rows(
            row[sample],
            embeddings,
            labels=None if labels is None else labels[sample],
            events=None if events is None else events[sample],
        )

    def loss_of(embeddings: dict[str, Tensor]) -> float:
        rows = rows_of(embeddings)  # a copy: the banks of center contrastive move
        return float(copy.deepcopy(method).loss(rows, rows, Progress(0, 0, 1.0, 0)).total)

    sampled = {view: of[sample] for view, of in z.items()}
    found = {}
    if pairs == "across":
        found["gap_share_of_loss"] = gap_share_of_loss(sampled, loss_of)
    if not dataset.manifest.has_events or config.data.annotation == "events":
        return found
    true = read_split(dataset, "train", views=()).events
    assert true is not None
    truly = torch.from_numpy(true[sample].astype(np.float32))
    rows = rows_of(sampled)
    cross, inside = copy.deepcopy(method).compared(rows, rows)
    shares = []
    for query, keys, relation in {**cross, **inside}.values():
        with torch.enable_grad():
            forces = pair_forces(method.per_row, query, keys, relation)
        _, negative = relation.masks(0, len(query))
        # keys are rows, or one vector per class: a clip is related to every class that it truly has
        related = truly > 0 if method.settings.needs_classes else truly @ truly.T > 0
        share = false_negative_mass(forces, negative, related)
        if share is not None:
            shares.append(share)
    if shares:
        found["false_negative_mass"] = float(np.mean(shares))
    return found


def _points(z: dict[str, Tensor], seen: SplitArrays, pairs: Pairs) -> dict[str, Any]:
    """Two principal components of some test clips: of both views where they share a space, else of the first."""
    views = list(z) if pairs == "across" else list(z)[:1]
    rows = torch.cat([z[view][:MAPPED_ROWS].double() for view in views])
    centred = rows - rows.mean(dim=0)
    _, axes = torch.linalg.eigh(centred.T @ centred)
    places = centred @ axes[:, -2:].flip(1)
    labels = None if seen.labels is None else seen.labels[:MAPPED_ROWS].tolist()
    at = places.split(len(rows) // len(views))
    return {"labels": labels, "views": {view: of.tolist() for view, of in zip(views, at, strict=True)}}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    if isinstance(value, float):
        return None if np.isnan(value) else float(f"{value:.{DIGITS}g}")
    return value

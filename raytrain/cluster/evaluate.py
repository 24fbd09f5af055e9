"""From a run to its numbers: load the selected weights, embed a split, rank."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped, UInt8

from raytrain.cluster import checkpoint, run_folder
from raytrain.cluster.embed import class_scores, embed
from raytrain.cluster.sources import batch_of
from raytrain.cluster.training import BEST, CHECKPOINTS
from raytrain.config import Config
from raytrain.data.manifest import Dataset, open_dataset
from raytrain.data.shards import read_split
from raytrain.evaluation.classification import top_1
from raytrain.evaluation.references import reference_rows
from raytrain.evaluation.relevance import By
from raytrain.evaluation.retrieval import (
    AllWays,
    BothWays,
    recall_within,
    retrieve_all_ways,
    retrieve_both_ways,
)
from raytrain.evaluation.statistics import bootstrap_interval, compare
from raytrain.losses.dcca import fit_linear_cca
from raytrain.methods import build
from raytrain.methods.base import Method

REFERENCE_ROWS = 20_000
"""Train rows that the references are fitted on: scikit-learn takes minutes for more."""

PROJECTION_DIMENSIONS, PROJECTION_RIDGE = 10, 1e-4
"""Of the linear CCA of embeddings (arXiv:2604.04229)."""


@dataclass(frozen=True)
class Embedded:
    """A split as a run sees it, and what is known of its clips."""

    features: dict[str, Float[np.ndarray, "n _"]]
    embeddings: dict[str, Float[np.ndarray, "n d"]]
    row: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"] | None
    events: UInt8[np.ndarray, "n c"] | None
    class_scores: dict[str, Float[np.ndarray, "n c"]] = field(default_factory=dict)
    """By view, of a method that classifies."""
    clips: Shaped[np.ndarray, " n"] | None = None
    """Clip ids, where the data set has them."""

    def known(self, by: By) -> np.ndarray:
        """Raises ValueError where the split does not have what relevance is asked by."""
        if by == "pair":
            return self.row
        found = self.labels if by == "class" else self.events
        if found is None:
            raise ValueError(
                f"relevance by {by!r}, but the split has no {'labels' if by == 'class' else 'events'}"
            )
        return found

    def retrieve(self, by: By) -> AllWays:
        """Between every two views."""
        return retrieve_all_ways(self.embeddings, self.known(by), by=by)

    def within(self, by: By) -> dict[str, dict[str, float]]:
        """R@k of the other clips of the same view, own clip left out: of views that are classified, or of the one
        view there is.  Nothing by pair."""
        if by == "pair":
            return {}
        views = [view for view in self.embeddings if view in self.class_scores or len(self.embeddings) == 1]
        return {view: recall_within(self.embeddings[view], self.known(by), by=by) for view in views}

    def top_1(self) -> dict[str, float]:
        """By view, of a method that classifies, where the split has labels."""
        if self.labels is None:
            return {}
        labels = torch.from_numpy(self.labels)
        return {view: top_1(torch.from_numpy(scores), labels) for view, scores in self.class_scores.items()}


def load(folder: Path) -> tuple[Config, Dataset, Method]:
    """Configuration, data set and selected weights of a run.  Raises ValueError where there is none, or no more."""
    config, dataset = opened(folder)
    return config, dataset, load_best(folder, config, dataset)


def opened(folder: Path) -> tuple[Config, Dataset]:
    """Configuration and data set of a run.  Raises ValueError where there is none, or the data are others."""
    config = run_folder.read_config(folder)
    dataset = open_dataset(config.data.path)
    run_folder.check_same_data(folder, dataset)
    return config, dataset


def load_best(folder: Path, config: Config, dataset: Dataset) -> Method:
    """The method of a resolved configuration with the weights that the run in `folder` selected."""
    if not (folder / BEST).is_dir():
        raise ValueError(f"no checkpoint in {folder}; train one with `raytrain train ... --out {folder}`")
    method = build(config, dataset.manifest)
    method.load_state_dict(checkpoint.read(folder / BEST).tensors["model"])
    return method


def load_last(folder: Path, config: Config, dataset: Dataset) -> Method:
    """The same with the newest weights, or their average where that is evaluated."""
    last = checkpoint.latest(folder / CHECKPOINTS)
    if last is None:
        raise ValueError(f"no checkpoint in {folder / CHECKPOINTS}; train the run to its end")
    weights = last.tensors["model"]
    if config.train.evaluate == "ema":
        averaged = last.tensors["ema"]
        weights = {
            name.removeprefix("module."): x for name, x in averaged.items() if name.startswith("module.")
        }
    method = build(config, dataset.manifest)
    method.load_state_dict(weights)
    return method


def relevance_of(dataset: Dataset) -> By:
    """By true event sets where they exist, else by class, else by the clip's own pair."""
    manifest = dataset.manifest
    return "events" if manifest.has_events else "class" if manifest.has_labels else "pair"


def embed_split(method: Method, dataset: Dataset, split: str, views: tuple[str, ...]) -> Embedded:
    """A split, verified, through the method, on a GPU where there is one."""
    dataset.verify(split)
    arrays = read_split(dataset, split, views=views)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = batch_of(arrays).views
    embeddings, scores = (
        {name: z.cpu().numpy() for name, z in made(method.to(device), rows, device).items()}
        for made in (embed, class_scores)
    )
    return Embedded(arrays.views, embeddings, arrays.row, arrays.labels, arrays.events, scores, arrays.clips)


@dataclass(frozen=True)
class Options:
    """How an evaluation is made."""

    split: str = "test"
    by: By | None = None
    """What makes an item relevant; None: what the data set has, true event sets first."""
    references: bool = True
    resamples: int = 1000
    seed: int = 0


def evaluate(folder: Path, options: Options) -> dict[str, Any]:
    """All numbers of a run on a split, as plain JSON values.

    Raises ValueError where there is no run, no such split, or relevance is asked by what the data does not have.
    """
    config, dataset, method = load(folder)
    by = options.by or relevance_of(dataset)
    split = embed_split(method, dataset, options.split, config.data.views)
    found = split.retrieve(by)
    train = embed_split(method, dataset, "train", config.data.views) if projected(config) else None
    return {
        "run": str(folder),
        "dataset": dataset.manifest.name,
        "synthetic": dataset.manifest.synthetic,
        "fingerprint": dataset.fingerprint,
        "split": options.split,
        "relevant_by": by,
        "num_clips": len(split.row),
        "selected": _selected(folder),
        "scores": found.summary(),
        "interval": _interval(found, options),
        "top_1": split.top_1(),
        "within": split.within(by),
        "projections": {} if train is None else projections(train, split, by),
        "references": _references(dataset, config, split, by) if options.references else {},
        "per_class": _per_class(found, dataset.manifest.classes) if by != "pair" else {},
    }


def _interval(found: AllWays, options: Options) -> list[float] | None:
    """Of the MAP, over clips; None of one view."""
    if not found.pairs:
        return None
    generator = np.random.default_rng(options.seed)
    interval = bootstrap_interval(
        found.ap_of_clips(), level=0.95, num_resamples=options.resamples, generator=generator
    )
    return [interval.low, interval.high]


def projected(config: Config) -> bool:
    """Whether a run is also measured after a projection: one that was trained without annotations."""
    return config.data.annotation == "none"


def projections(train: Embedded, split: Embedded, by: By) -> dict[str, dict[str, dict[str, float]]]:
    """Scores of a split after the linear CCA of the train split's embeddings; it reads no label."""
    dimensions = min(PROJECTION_DIMENSIONS, *(z.shape[1] for z in split.embeddings.values()))
    pairs = project(train.embeddings, split.embeddings, dimensions=dimensions)
    ways = AllWays(tuple(retrieve_both_ways(pair, split.known(by), by=by) for pair in pairs))
    return {f"after linear CCA ({dimensions})": ways.summary()}


def project(
    train: Mapping[str, Float[np.ndarray, "n d"]],
    split: Mapping[str, Float[np.ndarray, "m d"]],
    *,
    dimensions: int,
) -> list[dict[str, Float[np.ndarray, "m k"]]]:
    """Every two views of a split after the linear CCA of their train embeddings."""
    projected = []
    for first, second in combinations(split, 2):
        audio, visual = (torch.from_numpy(train[view][:REFERENCE_ROWS]) for view in (first, second))
        cca = fit_linear_cca(audio, visual, dimensions=dimensions, ridge=PROJECTION_RIDGE)
        images = cca.project(torch.from_numpy(split[first]), torch.from_numpy(split[second]))
        projected.append({first: images[0].numpy(), second: images[1].numpy()})
    return projected


def _selected(folder: Path) -> dict[str, Any]:
    state = checkpoint.read(folder / BEST).state
    lines = (folder / run_folder.HISTORY).read_text().splitlines()
    return next(record for record in map(json.loads, lines) if record["step"] == state["step"])


def _references(
    dataset: Dataset, config: Config, split: Embedded, by: By
) -> dict[str, dict[str, dict[str, float]]]:
    """The reference rows of every two views, fitted on the first REFERENCE_ROWS train rows (ingest shuffles)."""
    train = read_split(dataset, "train", views=config.data.views)
    rows = slice(0, REFERENCE_ROWS)
    labels = None if train.labels is None or config.data.annotation != "label" else train.labels[rows]
    found: dict[str, list[BothWays]] = {}
    for pair in combinations(split.features, 2):
        of_pair = reference_rows(
            {name: train.views[name][rows] for name in pair},
            labels,
            {name: split.features[name] for name in pair},
            split.known(by),
            by=by,
        )
        for name, both in of_pair.items():
            found.setdefault(name, []).append(both)
    return {name: AllWays(tuple(pairs)).summary() for name, pairs in found.items()}


def _per_class(found: AllWays, classes: tuple[str, ...]) -> dict[str, float]:
    return {classes[c]: value for c, value in found.per_class().items()} if found.pairs else {}


def compare_runs(folders: list[Path], options: Options) -> dict[str, Any]:
    """Runs on the same queries: each against the first, by paired bootstrap and sign-flip permutation test.

    Raises ValueError where the runs are not of one data set.
    """
    rows, values = [], []
    fingerprint = None
    for folder in folders:
        config, dataset, method = load(folder)
        if fingerprint is not None and dataset.fingerprint != fingerprint:
            raise ValueError(
                f"{folder} was trained on another data set than {folders[0]}; only runs with the same test clips can "
                "be compared"
            )
        fingerprint = dataset.fingerprint
        by = options.by or relevance_of(dataset)
        found = embed_split(method, dataset, options.split, config.data.views).retrieve(by)
        if not found.pairs:
            raise ValueError(f"{folder} embeds one view only, so it has no ranking across views to compare")
        values.append(found.ap_of_clips())
        rows.append({"run": str(folder), "relevant_by": by, "scores": found.summary()})
    generator = np.random.default_rng(options.seed)
    for row, value in zip(rows[1:], values[1:], strict=True):
        result = compare(value, values[0], level=0.95, num_resamples=options.resamples, generator=generator)
        row["against_first"] = {
            "difference": result.difference,
            "interval": [result.interval.low, result.interval.high],
            "p_value": result.p_value,
            "clips_better": result.num_a_better,
            "clips_worse": result.num_b_better,
        }
    return {"split": options.split, "runs": rows}

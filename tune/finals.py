"""After the trials: who is best when chance is taken out, and what it is worth against the default.

The survivors, which are the best trials by validation, and the default are trained anew with each of k seeds that no
trial had.  Best is the survivor with the best mean of validation scores.  Then the test split is read, once, for the
best and the default alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raytrain.cluster.evaluate import REFERENCE_ROWS, embed_split, load_best, relevance_of
from raytrain.cluster.run_folder import write_text
from raytrain.cluster.validation import RELEVANT_BY
from raytrain.config import Config, to_toml
from raytrain.data.manifest import Dataset
from raytrain.data.shards import read_split
from raytrain.evaluation.references import reference_rows
from raytrain.evaluation.relevance import By
from raytrain.evaluation.statistics import compare
from tune.driver import Search, Trial
from tune.storage import Journal
from tune.trials import Job
from tune.workers import Failed, Pool

FINALS, FINAL, BEST_TOML = "finals", "final.json", "best.toml"
DEFAULT = "default"
RESAMPLES = 10_000


@dataclass(frozen=True)
class Candidate:
    """The default, or a survivor."""

    name: str
    values: dict[str, Any]


def survivors_of(search: Search, most: int) -> list[Trial]:
    """The best trials by validation score, those that trained to their end before those that were stopped."""
    scored = [trial for trial in search.trials.values() if math.isfinite(trial.score)]
    ordered = sorted(scored, key=lambda t: (t.state == "complete", t.score, -t.number), reverse=True)
    return ordered[:most]


def seeded(config: Config, seed: int) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update={"seed": seed})})


def run_seeds(
    search: Search, candidates: list[Candidate], seeds: list[int], pool: Pool, told: Callable[[str], None]
) -> dict[str, dict[int, float]]:
    """Validation scores by candidate and seed; what the journal has is not run again.

    Raises ValueError where a run of a candidate fails.
    """
    scores: dict[str, dict[int, float]] = {candidate.name: {} for candidate in candidates}
    for found in search.journal.of("seed"):
        if found["candidate"] in scores and found["seed"] in seeds:
            scores[found["candidate"]][found["seed"]] = found["score"]
    jobs: list[tuple[Candidate, int, Job]] = []
    for seed in seeds:
        for candidate in candidates:
            if seed not in scores[candidate.name]:
                config = seeded(search.base.config(candidate.values), seed)
                folder = folder_of(search.folder, candidate.name, seed)
                jobs.append((candidate, seed, Job(-1 - len(jobs), config, folder, keeps="best weights")))
    waiting = list(reversed(jobs))
    running: dict[int, tuple[Candidate, int]] = {}
    while waiting or running:
        while waiting and len(running) < pool.slots:
            candidate, seed, job = waiting.pop()
            running[job.number] = candidate, seed
            pool.submit(job, search.epochs)
        result = pool.wait()
        candidate, seed = running.pop(result.number)
        if isinstance(result, Failed) or result.diverged is not None:
            why = result.error if isinstance(result, Failed) else result.diverged
            raise ValueError(f"{candidate.name} with seed {seed} failed: {why}; go on with --resume")
        scores[candidate.name][seed] = result.score
        search.journal.add("seed", candidate=candidate.name, seed=seed, score=result.score)
        told(f"{candidate.name}, seed {seed}: validation {result.score:.4f}")
    return scores


def folder_of(folder: Path, candidate: str, seed: int) -> Path:
    return folder / FINALS / f"{candidate.replace(' ', '-')}-seed-{seed}"


def write_best(search: Search, best: Candidate) -> Path:
    """best.toml: the whole configuration of the best trial, resolved."""
    path = search.folder / BEST_TOML
    write_text(path, to_toml(search.base.config(best.values)))
    return path


def read_test(
    search: Search, candidate: Candidate, seeds: list[int], dataset: Dataset
) -> dict[By, list[float]]:
    """MAP on the test split by seed, of weights that validation selected; by what is relevant.

    By what is true of the clips, and where that is more than what was annotated, by the annotation too: selection
    could only see the latter.
    """
    maps: dict[By, list[float]] = {}
    for seed in seeds:
        config = seeded(search.base.config(candidate.values), seed)
        assert config.data.annotation != "auto", "the configuration is resolved"
        method = load_best(folder_of(search.folder, candidate.name, seed), config, dataset)
        embedded = embed_split(method, dataset, "test", config.data.views)
        for by in dict.fromkeys([relevance_of(dataset), RELEVANT_BY[config.data.annotation]]):
            maps.setdefault(by, []).append(embedded.retrieve(by).map)
    return maps


def references(dataset: Dataset, views: tuple[str, ...]) -> dict[str, float]:
    """MAP on the test split of linear CCA and of softmax matching; none where they are not defined."""
    if len(views) != 2:
        return {}
    by = relevance_of(dataset)
    train, test = (read_split(dataset, split, views=views) for split in ("train", "test"))
    known = {"class": test.labels, "events": test.events, "pair": test.row}[by]
    assert known is not None
    rows = slice(0, REFERENCE_ROWS)
    features = {name: x[rows] for name, x in train.views.items()}
    labels = None if train.labels is None else train.labels[rows]
    return {
        name: both.map for name, both in reference_rows(features, labels, test.views, known, by=by).items()
    }


def finish(
    search: Search,
    dataset: Dataset,
    pool: Pool,
    *,
    seeds: list[int],
    most: int,
    told: Callable[[str], None],
) -> dict[str, Any]:
    """Runs the seeds, names the best, writes best.toml and final.json; returns what final.json holds.

    Raises ValueError where no trial has a score.
    """
    survivors = survivors_of(search, most)
    if not survivors:
        errors = sorted({trial.why for trial in search.trials.values()})
        raise ValueError(
            f"no trial has a score: {'; '.join(errors)[:300]}; mend that and begin with another --out"
        )
    default = Candidate(DEFAULT, dict(search.default))
    candidates = [Candidate(f"trial {trial.number}", trial.values) for trial in survivors]
    scores = run_seeds(search, [*candidates, default], seeds, pool, told)
    means = {name: float(np.mean(list(of.values()))) for name, of in scores.items()}
    best = max(candidates, key=lambda candidate: means[candidate.name])
    write_best(search, best)
    path = search.folder / FINAL
    asked = {"best": best.name, "seeds": seeds}
    if path.exists():
        before: dict[str, Any] = json.loads(path.read_text())
        if {key: before[key] for key in asked} == asked:
            return before
    reads = _count_read(search.journal)
    told(f"reading the test split, for {best.name} and the default")
    tuned, plain = (read_test(search, candidate, seeds, dataset) for candidate in (best, default))
    found = {
        **asked,
        "values": best.values,
        "validation": {name: [of[seed] for seed in seeds] for name, of in scores.items()},
        "test": {"best": tuned, DEFAULT: plain},
        "against_default": {by: _compared(tuned[by], plain[by]) for by in tuned},
        "references": references(dataset, search.base.config({}).data.views),
        "test_reads": reads,
        "synthetic": dataset.manifest.synthetic,
    }
    write_text(path, json.dumps(found, indent=1))
    return found


def _count_read(journal: Journal) -> int:
    journal.add("test read")
    return len(journal.of("test read"))


def _compared(tuned: list[float], plain: list[float]) -> dict[str, Any]:
    """Paired by seed."""
    generator = np.random.default_rng(0)
    result = compare(
        np.array(tuned), np.array(plain), level=0.95, num_resamples=RESAMPLES, generator=generator
    )
    return {
        "difference": result.difference,
        "interval": [result.interval.low, result.interval.high],
        "p_value": result.p_value,
        "seeds_better": result.num_a_better,
        "seeds_worse": result.num_b_better,
    }

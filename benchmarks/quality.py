"""Methods x folds x seeds with equal budget, as one table with paired tests.  Resumable.

    python benchmarks/quality.py --data FILE_OR_FOLDER --methods a,b,... [--folds group] [--seeds 5]

--data      a feature file (ingested once per fold), or a data set that `raytrain ingest` or `scenes` wrote
--methods   names of methods, or of losses of the plain method (`triplet`), each perhaps with settings:
            'triplet+method.triplet.margin=0.4+optim.lr=3e-4', each perhaps under a name of its own: 'mae:hsc-mae+...'
--folds     'own': the cut of the file or data set;  'group': consecutive pairs of the clips' groups are the
            test splits of --num-folds folds, whatever cut the file has
--seeds     of each method on each fold: 0, 1, ...
--set       a setting for every method, e.g. --set train.epochs=30
--labels    a share of the train labels, of every class: the others are hidden (validation and test keep theirs), and
            each of --label-draws draws of what is hidden is a fold of its own
--metric    what is tested: map, projected_map (after the linear CCA of train embeddings, where nothing is annotated),
            top_1 or within_r@1 (of methods that classify)

Every run has the same number of epochs and is selected on its fold's validation split; the test split is read once
per run, after training.  Runs are processes of one thread; a finished run is a line of results.jsonl under --out and
is not repeated.  The references (linear CCA, softmax matching) are fitted once per fold on all train rows that
training has.

Table: mean and standard deviation over folds x seeds of what was measured, the mean of the validation score that
selected, and paired sign-flip permutation tests over the pairs (fold, seed): of the first method against each other one
(p first), of each against the best of the methods named by --baselines (chosen by validation score), and against the
references.  Where no method sees labels, the references see none.  The last line is JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

if TYPE_CHECKING:
    from raytrain.cluster.study import Results

REFERENCES = ("linear CCA", "softmax matching")
MEASURES = ("map", "projected_map", "top_1", "within_r@1")


@dataclass(frozen=True)
class Task:
    """One line of the results."""

    variant: str
    fold: str
    seed: int
    data: str
    overrides: tuple[str, ...]

    def key(self) -> str:
        text = json.dumps(asdict(self) | {"data": fingerprint(self.data)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint(data: str) -> str:
    from raytrain.data.manifest import open_dataset

    manifest = open_dataset(data).manifest
    return "".join(shard.sha256[:8] for split in manifest.splits.values() for shard in split.shards)


def overrides_of(variant: str) -> tuple[str, ...]:
    """'triplet+optim.lr=1e-3' or 'slow:triplet+optim.lr=1e-3' as dotted overrides."""
    from raytrain.methods import METHODS
    from raytrain.methods.metric import LOSSES

    name, *settings = variant.rpartition(":")[2].split("+")
    if name in METHODS:
        return (f"method.name={name}", *settings)
    if name in LOSSES:
        return ("method.name=metric", f"method.loss={name}", *settings)
    raise ValueError(f"--methods: {name!r} is unknown; known: {', '.join([*METHODS, *LOSSES])}")


def run(task: Task, out: str) -> dict[str, Any]:
    """Trains and measures one task, in a process of its own."""
    import torch

    torch.set_num_threads(1)
    from raytrain.cluster.alone import train_alone
    from raytrain.cluster.evaluate import embed_split, load_best, projected, projections, relevance_of
    from raytrain.config import build
    from raytrain.data.manifest import open_dataset
    from raytrain.methods import resolve

    start = time.perf_counter()
    dataset = open_dataset(task.data)
    given = build(overrides=task.overrides, data={"path": task.data}, train={"seed": task.seed})
    config = resolve(given, dataset.manifest)
    folder = Path(out) / "runs" / task.key()
    state = train_alone(config, dataset, folder)
    method = load_best(folder, config, dataset)
    by = relevance_of(dataset)
    split = embed_split(method, dataset, "test", config.data.views)
    found = split.retrieve(by)
    more: dict[str, float] = {}
    if projected(config):
        train = embed_split(method, dataset, "train", config.data.views)
        more["projected_map"] = next(iter(projections(train, split, by).values()))["mean"]["map"]
    if split.class_scores:
        more["top_1"] = float(np.mean(list(split.top_1().values())))
        more["within_r@1"] = float(np.mean([of["r@1"] for of in split.within(by).values()]))
    shutil.rmtree(folder)
    best = next(record for record in state.history if record["step"] == state.best_step)
    return {
        "key": task.key(),
        "variant": task.variant,
        "fold": task.fold,
        "seed": task.seed,
        "map": found.map,
        **more,
        "summary": found.summary(),
        "validation": state.best_score,
        "best_epoch": best["epoch"],
        "seconds": round(time.perf_counter() - start, 1),
    }


def annotated(task: Task) -> bool:
    """Whether training sees annotations."""
    from raytrain.config import build
    from raytrain.data.manifest import open_dataset
    from raytrain.methods import resolve

    given = build(overrides=task.overrides, data={"path": task.data})
    return resolve(given, open_dataset(task.data).manifest).data.annotation != "none"


def references(fold: str, data: str, *, labelled: bool) -> list[dict[str, Any]]:
    """The reference rows of a fold: they have no seed."""
    from raytrain.cluster.evaluate import REFERENCE_ROWS, relevance_of
    from raytrain.data.manifest import open_dataset
    from raytrain.data.shards import read_split
    from raytrain.evaluation.references import reference_rows

    dataset = open_dataset(data)
    by = relevance_of(dataset)
    train, test = read_split(dataset, "train"), read_split(dataset, "test")
    known = {"class": test.labels, "events": test.events, "pair": test.row}[by]
    assert known is not None
    rows = slice(0, REFERENCE_ROWS)
    views = {name: x[rows] for name, x in train.views.items()}
    labels = train.labels[rows] if labelled and train.labels is not None else None
    found = reference_rows(views, labels, test.views, known, by=by)
    return [
        {"variant": name, "fold": fold, "map": both.map, "summary": both.summary()}
        for name, both in found.items()
    ]


def group_names(data: str) -> list[str]:
    """All groups of a data set, in the order of their numbers where they are numbers."""
    from raytrain.data.manifest import open_dataset
    from raytrain.data.shards import read_split

    dataset = open_dataset(data)
    names: set[str] = set()
    for split in dataset.manifest.splits:
        groups = read_split(dataset, split, views=()).groups
        if groups is None:
            raise ValueError(f"{data} has no group ids, so it has no group folds; use --folds own")
        names |= set(groups.tolist())
    return sorted(names, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))


def folds(data: Path, how: str, num_folds: int, out: Path) -> Iterator[tuple[str, str]]:
    """(name of the fold, its data set)."""
    from raytrain.data.ingest import ingest
    from raytrain.data.options import IngestConfig

    if data.is_dir():
        if how != "own":
            raise ValueError(f"{data} is cut already; give the feature file for --folds {how}")
        yield "own", str(data)
        return

    def made(name: str, test_groups: tuple[str, ...]) -> str:
        target = out / "data" / name
        if not target.exists():
            ingest([data], target, config=IngestConfig(test_groups=test_groups))
        return str(target)

    own = made("own", ())
    if how == "own":
        yield "own", own
        return
    groups = group_names(own)
    for a, b in list(zip(groups[::2], groups[1::2], strict=False))[:num_folds]:
        yield f"groups {a},{b}", made(f"groups-{a}-{b}", (a, b))


def with_hidden_labels(
    cuts: Iterable[tuple[str, str]], share: float, num_draws: int, out: Path
) -> Iterator[tuple[str, str]]:
    """Of every fold, copies in which that share of the train labels is left, drawn with seeds 0, 1, ..."""
    from raytrain.data.hidden_labels import hide_labels
    from raytrain.data.manifest import open_dataset

    for name, path in cuts:
        dataset = open_dataset(path)
        for seed in range(num_draws):
            target = out / "data" / f"{dataset.fingerprint[:12]}-labels-{share:g}-{seed}"
            if not target.exists():
                hide_labels(dataset, target, share=share, seed=seed)
            yield f"{name}, draw {seed}", str(target)


def measure(
    tasks: list[Task], results: Results, out: Path, jobs: int, console: Console
) -> list[dict[str, Any]]:
    """The rows of all tasks; those that are missing are run, `jobs` at a time."""
    missing = [task for task in tasks if task.key() not in results.by_key]
    with (
        Progress(console=console, disable=not console.is_terminal) as bar,
        ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool,
    ):
        progress = bar.add_task("runs", total=len(missing))
        for done in as_completed([pool.submit(run, task, str(out)) for task in missing]):
            row = done.result()
            results.add(row)
            bar.advance(progress)
            if not console.is_terminal:
                console.print(
                    f"{row['variant']}, {row['fold']}, seed {row['seed']}: validation {row['validation']:.4f} "
                    f"({row['seconds']:.0f} s)",
                    highlight=False,
                )
    return [results.by_key[task.key()] for task in tasks]


def p_value(a: dict[tuple[str, int], float], b: dict[tuple[str, int], float]) -> float:
    """Of the paired sign-flip test over the pairs of (fold, seed)."""
    from raytrain.evaluation.statistics import sign_flip_test

    difference = np.array([a[pair] - b[pair] for pair in a])
    return sign_flip_test(difference, num_resamples=100_000, generator=np.random.default_rng(0))


def table_of(
    rows: list[dict[str, Any]],
    reference: list[dict[str, Any]],
    variants: list[str],
    baselines: list[str],
    metric: str,
) -> list[dict[str, Any]]:
    """One entry per variant, and per reference."""
    scores = {v: {(r["fold"], r["seed"]): r[metric] for r in rows if r["variant"] == v} for v in variants}
    selected = {v: float(np.mean([r["validation"] for r in rows if r["variant"] == v])) for v in variants}
    best = max(baselines, key=lambda v: selected[v]) if baselines else None
    fixed = {
        name: {row["fold"]: row["map"] for row in reference if row["variant"] == name} for name in REFERENCES
    }
    entries: list[dict[str, Any]] = []
    for variant in variants:
        own = [row for row in rows if row["variant"] == variant]
        entries.append(
            {
                "method": variant,
                **_means(own),
                "sd_over_seeds": _seed_sd(scores[variant]),
                "validation_mean": round(selected[variant], 4),
                "folds": len({fold for fold, _ in scores[variant]}),
                "seeds": len({seed for _, seed in scores[variant]}),
                "p_vs_best_baseline": None
                if best is None or variant == best
                else round(p_value(scores[variant], scores[best]), 4),
                "best_baseline": best,
                "p_vs_first": None
                if variant == variants[0]
                else round(p_value(scores[variants[0]], scores[variant]), 4),
                **{
                    f"p_vs_{name.replace(' ', '_').lower()}": round(
                        p_value(scores[variant], {pair: by_fold[pair[0]] for pair in scores[variant]}), 4
                    )
                    for name, by_fold in fixed.items()
                    if by_fold and metric.endswith("map")
                },
                "by_fold": {
                    fold: round(float(np.mean([m for (f, _), m in scores[variant].items() if f == fold])), 4)
                    for fold, _ in scores[variant]
                },
            }
        )
    for name in REFERENCES:
        found = fixed[name]
        if found:
            by_fold = {fold: round(value, 4) for fold, value in found.items()}
            mean = round(float(np.mean(list(found.values()))), 4)
            entries.append({"method": name, "map_mean": mean, "by_fold": by_fold})
    return entries


def _means(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """Mean and standard deviation of everything that was measured."""
    found: dict[str, float | None] = {}
    for name in MEASURES:
        if all(name in row for row in rows):
            values = np.array([row[name] for row in rows])
            found[f"{name}_mean"] = round(float(values.mean()), 4)
            found[f"{name}_sd"] = round(float(values.std(ddof=1)), 4) if len(values) > 1 else None
    return found


def _seed_sd(scores: dict[tuple[str, int], float]) -> float | None:
    """Standard deviation over seeds, pooled over folds."""
    by_fold: dict[str, list[float]] = {}
    for (fold, _), value in scores.items():
        by_fold.setdefault(fold, []).append(value)
    if any(len(values) < 2 for values in by_fold.values()):
        return None
    return round(float(np.sqrt(np.mean([np.var(values, ddof=1) for values in by_fold.values()]))), 4)


def show(entries: list[dict[str, Any]], console: Console) -> None:
    names = list(entries[0]["by_fold"])
    measured = [key for name in MEASURES for key in (f"{name}_mean", f"{name}_sd") if key in entries[0]]
    keys = [*measured, "sd_over_seeds", "validation_mean"]
    tests = [key for key in entries[0] if key.startswith("p_vs_")]
    table = Table("method", *keys, *names, *tests)
    for entry in entries:
        values = (
            [entry.get(key) for key in keys]
            + [entry["by_fold"][n] for n in names]
            + [entry.get(k) for k in tests]
        )
        table.add_row(entry["method"], *("" if value is None else f"{value:.4f}" for value in values))
    console.print(table)


def tested(
    cuts: Iterable[tuple[str, str]],
    variants: list[str],
    *,
    seeds: Iterable[int],
    overrides: tuple[str, ...],
    baselines: list[str] | None,
    metric: str,
    out: Path,
    jobs: int,
    console: Console,
) -> list[dict[str, Any]]:
    """Runs what is missing, and shows and returns the table.  `cuts`: name and data set of each fold."""
    from raytrain.cluster.study import Results

    cuts, seeds = list(cuts), list(seeds)
    own = {variant.partition(":")[0]: overrides_of(variant) for variant in variants}
    variants = list(own)
    if baselines is None:
        baselines = [variant for variant in variants if "method.name=metric" in own[variant]]
    results = Results(out / "results.jsonl")
    tasks = [
        Task(variant, fold, seed, path, (*overrides, *own[variant]))
        for seed in seeds
        for fold, path in cuts
        for variant in variants
    ]
    console.print(
        f"{len(tasks)} runs on {len(cuts)} folds, results in {out / 'results.jsonl'}", highlight=False
    )
    rows = measure(tasks, results, out, jobs, console)
    labelled = any(annotated(task) for task in tasks[: len(variants)])
    reference = [row for fold, path in cuts for row in references(fold, path, labelled=labelled)]
    entries = table_of(rows, reference, variants, baselines, metric)
    show(entries, console)
    return entries


def main() -> None:
    parser = argparse.ArgumentParser(
        formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__
    )
    parser.add_argument("--data", type=Path, help="feature file or data set; without it a small demo world")
    parser.add_argument("--methods", default="triplet,info-nce")
    parser.add_argument("--baselines", help="which of the methods are baselines; by default the plain losses")
    parser.add_argument("--folds", choices=["own", "group"], default="own")
    parser.add_argument("--num-folds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--labels", type=float, help="share of the train labels that is left")
    parser.add_argument("--label-draws", type=int, default=5)
    parser.add_argument("--metric", choices=MEASURES, default="map")
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument(
        "--short", action="store_true", help="two losses, two seeds, a small world, few epochs"
    )
    options = parser.parse_args()
    console = Console(width=None if Console().is_terminal else 200)
    out, overrides = options.out, tuple(options.overrides)
    if options.short:
        out, options.seeds = out / "short", 2
        overrides += ("train.epochs=3", "model.hidden=[64]")
    out.mkdir(parents=True, exist_ok=True)
    data = options.data
    if data is None:
        from raytrain.data.scene_config import SceneConfig
        from raytrain.data.scenes import generate_scenes

        data = out / "scenes"
        if not data.exists():
            generate_scenes(data, config=SceneConfig(clips=2000))
    variants = re.split(r",(?![^\[]*\])", options.methods)
    cuts = folds(data, options.folds, options.num_folds, out)
    if options.labels is not None:
        cuts = with_hidden_labels(cuts, options.labels, options.label_draws, out)
    entries = tested(
        cuts,
        variants,
        seeds=range(options.seeds),
        overrides=overrides,
        baselines=None if options.baselines is None else options.baselines.split(","),
        metric=options.metric,
        out=out,
        jobs=options.jobs,
        console=console,
    )
    print(json.dumps({"data": data.name, "results": entries}))


if __name__ == "__main__":
    main()

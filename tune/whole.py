"""A whole search: what is asked for is checked, trials run, seeds run, and all of it is written down."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from raytrain.cluster.local_ray import local_ray
from raytrain.cluster.precision import choose_precision
from raytrain.config import Config, build, load_values, nearest, override, parse_override, validate
from raytrain.data.manifest import Dataset, open_dataset
from raytrain.data.reading import Reading
from raytrain.methods import METHODS
from tune import finals
from tune.board import Board
from tune.driver import DIRECTIONS, Base, Objective, Search
from tune.nested import OBJECT_STORE_BYTES, Launched, run_nested
from tune.report import compared, mean_sd, write_report
from tune.rungs import Rungs
from tune.sampling import SAMPLERS, Memoryless, SamplerName
from tune.show import Shown, each, values_of
from tune.space import SPACES, TEACHER_KEYS, Choice, Space, described, ranges_of
from tune.storage import SEARCH, open_study, opened
from tune.teachers import KEY, SharedTeacher, draw_teachers, saving, student_space, train_teachers
from tune.workers import Here, Pool, Resources, actors

DEMO_CLIPS = 3000
DEMO_EPOCHS, EPOCHS = 9, 27
DEFAULT_METHOD = "psd" if "psd" in METHODS else "metric"
STARTUP_SHARE, STARTUP_MOST, STARTUP_LEAST = 4, 10, 4
"""A quarter of the trials is drawn at random first, 4 to 10 of them."""
MEMORY_SHARE = 0.5
"""Of this machine's memory, that the rows of all workers together may fill."""


@dataclass(frozen=True)
class Options:
    """As the command line has them."""

    data: str | None
    method: str | None
    trials: int
    sampler: str
    objectives: str
    epochs: int | None
    first_rung: int
    factor: float
    survivors: int
    seeds: int
    seed: int
    teachers: int
    workers_per_trial: int
    gpus_per_trial: float
    cpus_per_trial: int
    concurrency: int | None
    way: str
    file: Path | None
    overrides: tuple[str, ...]
    out: Path | None
    resume: bool


@dataclass(frozen=True)
class Asked:
    """What a search is, checked."""

    dataset: Dataset
    method: str
    values: dict[str, Any]
    space: Space
    fixed: dict[str, Any]
    sampler: SamplerName
    objectives: tuple[Objective, ...]
    epochs: int
    folder: Path


def run_search(options: Options) -> dict[str, Any]:
    """Runs or goes on with a search; returns what its final.json holds.

    Raises ValueError for whatever the user can mend.
    """
    console = Console(width=None if Console().is_terminal else 160)
    _check_numbers(options)
    asked = _asked(options, console)
    startup = max(STARTUP_LEAST, min(STARTUP_MOST, options.trials // STARTUP_SHARE))
    plan: dict[str, Any] = {
        "method": asked.method,
        "fingerprint": asked.dataset.fingerprint,
        "values": asked.values,
        "space": described(asked.space),
        "teachers": options.teachers if asked.method in TEACHER_KEYS else 0,
        "sampler": asked.sampler,
        "startup": startup,
        "seed": options.seed,
        "objectives": list(asked.objectives),
        "epochs": asked.epochs,
        "first_rung": options.first_rung,
        "factor": options.factor,
        "trials": options.trials,
    }
    begun = asked.folder / SEARCH
    if options.resume and begun.exists():  # what was decided then, not what would be decided now
        was = json.loads(begun.read_text())
        plan["startup"] = startup = was.get("startup", startup)
        asked.values["train"]["precision"] = (
            was.get("values", {}).get("train", {}).get("precision", "float32")
        )
    elif asked.values["train"]["precision"] == "auto":
        asked.values["train"]["precision"] = _precision(asked, options)
    one_objective = len(asked.objectives) == 1
    with opened(asked.folder, plan, resume=options.resume) as journal:
        for split in ("train", "validation"):
            asked.dataset.verify(split)
        way, why = _way(options, asked)
        with _pool(way, options, asked) as pool:
            sampler = Memoryless(
                asked.sampler,
                seed=options.seed,
                startup=startup,
                parallel=pool.slots > 1,
                common=asked.space.keys() - asked.fixed.keys(),
            )
            base, space, default = Base(asked.values, asked.dataset.manifest), asked.space, dict[str, Any]()
            teachers: list[SharedTeacher] = []
            if options.teachers and asked.method in TEACHER_KEYS:
                teachers = draw_teachers(
                    base,
                    asked.space,
                    asked.fixed,
                    count=options.teachers,
                    seed=options.seed,
                    epochs=asked.epochs,
                    folder=asked.folder,
                )
                space = student_space(asked.space, asked.method, teachers)
                default = {KEY: str(teachers[0].folder)}
                shared = {str(teacher.folder): teacher.student_values() for teacher in teachers}
                base = Base(asked.values, asked.dataset.manifest, shared)
            study = open_study(asked.folder, sampler, [DIRECTIONS[name] for name in asked.objectives])
            rungs = None
            if options.factor > 1 and one_objective:
                rungs = Rungs(options.first_rung, options.factor, asked.epochs)
            searched = Search(
                folder=asked.folder,
                journal=journal,
                study=study,
                space=space,
                fixed=asked.fixed,
                base=base,
                objectives=asked.objectives,
                rungs=rungs,
                epochs=asked.epochs,
                num_trials=options.trials,
                counts_stopped=asked.sampler == "gp",
                default=default,
            )
            console.print(
                f"{options.trials} trials of {asked.method} on {asked.dataset.manifest.name}"
                f"{' (SYNTHETIC)' if asked.dataset.manifest.synthetic else ''} with {asked.sampler}, up to "
                f"{asked.epochs} epochs each in {asked.values['train']['precision']}, into {asked.folder}",
                highlight=False,
            )
            console.print(f"way: {way}, {pool.slots} at a time, because {why}", highlight=False)
            say = partial(console.print, highlight=False)
            try:
                taught = train_teachers(base, teachers, journal, pool, say)
                with Shown(console, options.trials, asked.epochs) as shown:
                    searched.told = each([shown, Board(asked.folder)])
                    searched.on_begin = shown.begin
                    if isinstance(pool, Launched):
                        concurrency = options.concurrency or _slots(options)
                        run_nested(searched, concurrency=concurrency, score=_score_of(asked))
                    else:
                        searched.run(pool)
                if teachers:
                    say(saving(len(searched.trials), len(teachers), taught))
                found = finals.finish(
                    searched,
                    asked.dataset,
                    pool,
                    seeds=[options.seed + 1 + k for k in range(options.seeds)],
                    most=options.survivors,
                    told=say,
                )
            except KeyboardInterrupt:
                if searched.best is not None:
                    console.print(f"report so far: {write_report(searched, None)}", highlight=False)
                raise
        _print_final(found, console)
        console.print(f"report: {write_report(searched, found)}", highlight=False)
        console.print(
            f"next: raytrain train --config {asked.folder / finals.BEST_TOML}   tensorboard --logdir "
            f"{asked.folder / 'tensorboard'}   optuna-dashboard sqlite:///{asked.folder / 'study.db'}",
            highlight=False,
        )
        return found


def _check_numbers(options: Options) -> None:
    least = {
        "trials": 1,
        "epochs": 1,
        "first_rung": 1,
        "factor": 1,
        "survivors": 1,
        "seeds": 1,
        "seed": 0,
        "teachers": 0,
        "workers_per_trial": 1,
        "gpus_per_trial": 0,
        "cpus_per_trial": 1,
        "concurrency": 1,
    }
    for name, low in least.items():
        value = getattr(options, name)
        if value is not None and not value >= low:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; at least {low} is needed")


def _asked(options: Options, console: Console) -> Asked:
    sampler = _one_of("--sampler", options.sampler, SAMPLERS)
    objectives = tuple(_one_of("--objectives", name, DIRECTIONS) for name in options.objectives.split(","))
    if objectives[0] != "map" or len(set(objectives)) != len(objectives) or len(objectives) > 2:
        raise ValueError(f"--objectives is {options.objectives!r}; allowed: map, or map,time, or map,size")
    if len(objectives) == 2 and sampler == "cmaes":
        raise ValueError("--sampler cmaes has one objective; use tpe, gp or random with --objectives map,...")
    fixed = _fixed(options)
    method = str(fixed.get("method.name", DEFAULT_METHOD))
    space = SPACES.get(_one_of("--method", method, METHODS), {})
    if objectives[-1] == "size" and "model.embedding" in fixed:
        raise ValueError("--objectives map,size: the size is model.embedding, and it is set; leave it open")
    if not [key for key, _ in ranges_of(space) if key not in fixed]:
        raise ValueError(f"every key of the space of {method} is set; leave one open")
    epochs = options.epochs or fixed.get("train.epochs")
    if epochs is None:
        epochs = EPOCHS if options.data or fixed.get("data.path") else DEMO_EPOCHS
    if options.first_rung > epochs:
        raise ValueError(f"--first-rung is {options.first_rung}, a trial has {epochs} epochs; lower it")
    folder = options.out or Path("runs/search") / f"{Path(str(options.data or 'demo')).name}-{method}"
    path = options.data or fixed.get("data.path") or str(_demo_world(folder.parent / "demo-data", console))
    values: dict[str, Any] = {}
    fixed |= {
        "data.path": str(Path(str(path)).resolve()),
        "method.name": method,
        "train.epochs": epochs,
        "train.seed": options.seed,
    }
    if options.workers_per_trial > 1 or options.way == "nested":
        fixed |= {"train.workers": options.workers_per_trial, "train.cpus_per_worker": options.cpus_per_trial}
    fixed.setdefault("train.precision", "auto")
    for key, value in fixed.items():
        override(values, key.split("."), value)
    return Asked(
        open_dataset(str(path)), method, values, space, fixed, cast(SamplerName, sampler),
        cast(tuple[Objective, ...], objectives), epochs, folder,
    )  # fmt: skip


def _fixed(options: Options) -> dict[str, Any]:
    """What the user has set, by dotted key; checked as a run's configuration is."""
    values = load_values(options.file) if options.file else {}
    if options.method is not None:
        override(values, ["method", "name"], options.method)
    for text in options.overrides:
        override(values, *parse_override(text))
    validate(Config, values)
    flat: dict[str, Any] = {}
    for section, entries in values.items():
        for key, value in entries.items():
            flat |= _flat(f"{section}.{key}", value)
    for key in ("train.workers", "train.device", "train.seed"):
        if key in flat:
            raise ValueError(
                f"{key} is set, but a search decides it; use --workers-per-trial, --gpus-per-trial, --seed"
            )
    return flat


def _flat(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {key: value}
    return {k: v for name, entry in value.items() for k, v in _flat(f"{key}.{name}", entry).items()}


def _one_of(option: str, value: str, known: Any) -> str:
    if value not in known:
        raise ValueError(
            f"{option}: {value!r} is unknown; known: {', '.join(known)}.{nearest(value, list(known))}"
        )
    return value


def _demo_world(folder: Path, console: Console) -> Path:
    from raytrain.data.scene_config import SceneConfig
    from raytrain.data.scenes import generate_scenes

    if not folder.exists():
        console.print(f"a SYNTHETIC world of {DEMO_CLIPS:,} clips into {folder}", highlight=False)
        generate_scenes(folder, config=SceneConfig(clips=DEMO_CLIPS))
    return folder


def _precision(asked: Asked, options: Options) -> str:
    """Measured once, for the widest towers of the space: every trial then computes alike."""
    towers = asked.space.get("model.hidden")
    widest = max(towers.options.values(), key=max) if isinstance(towers, Choice) else (1024,)
    hidden = asked.fixed.get("model.hidden", widest)
    device = torch.device("cuda" if options.gpus_per_trial else "cpu")
    return choose_precision(build(model={"hidden": hidden}), device)


def _way(options: Options, asked: Asked) -> tuple[str, str]:
    """How trials are run, and why."""
    way = _one_of("--way", options.way, ("auto", "workers", "here", "nested"))
    rows = Reading.of(asked.dataset, "train", Base(asked.values, asked.dataset.manifest).config({})).nbytes
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    slots = options.concurrency or (os.cpu_count() or 1) // options.cpus_per_trial
    too_large = rows * slots > MEMORY_SHARE * memory
    if way == "here":
        if options.workers_per_trial > 1 or options.gpus_per_trial or (options.concurrency or 1) > 1:
            raise ValueError("--way here trains one trial at a time on this process's CPU; use --way workers")
        return way, "it was asked for"
    if way == "workers" and options.workers_per_trial > 1:
        raise ValueError(
            f"--way workers trains a trial in one process, --workers-per-trial is {options.workers_per_trial}; "
            "use --way nested"
        )
    if way != "auto":
        return way, "it was asked for"
    if options.workers_per_trial > 1:
        return "nested", f"a trial has {options.workers_per_trial} workers"
    if too_large:
        return (
            "nested",
            f"{rows / 2**30:.1f} GB of rows in each of {slots} processes are too much for its memory",
        )
    return "workers", f"{rows / 2**20:.0f} MB of rows stay in the memory of each process"


@contextmanager
def _pool(way: str, options: Options, asked: Asked) -> Iterator[Pool]:
    if way == "here":
        yield Here(asked.values["data"]["path"], threads=options.cpus_per_trial, device="cpu")
        return
    slots = options.concurrency or _slots(options)
    if way == "nested":
        cpus = max(os.cpu_count() or 1, slots * options.workers_per_trial * options.cpus_per_trial) + 1
        with local_ray(cpus, OBJECT_STORE_BYTES, dashboard=True):
            yield Launched(_score_of(asked))
        return
    resources = Resources(options.cpus_per_trial, options.gpus_per_trial)
    with actors(asked.values["data"]["path"], min(slots, options.trials), resources) as pool:
        yield pool


def _score_of(asked: Asked) -> str:
    """The score that selects, by its name in a run's history."""
    config = Base(asked.values, asked.dataset.manifest).config({})
    if METHODS[config.method["name"]].selected_by == "top-1":
        return "top-1"
    return "r@10" if config.data.annotation == "none" else "map"


def _slots(options: Options) -> int:
    if options.gpus_per_trial:
        return max(1, int(torch.cuda.device_count() / options.gpus_per_trial))
    return max(1, (os.cpu_count() or 1) // (options.cpus_per_trial * options.workers_per_trial))


def _print_final(found: dict[str, Any], console: Console) -> None:
    ways = list(found["against_default"])
    table = Table("", "validation", title=f"mean ± sd over seeds {found['seeds']}", title_justify="left")
    for by in ways:
        table.add_column(f"test MAP by {by}")
    for name, validation in sorted(found["validation"].items(), key=lambda of: -float(np.mean(of[1]))):
        test = found["test"].get("best" if name == found["best"] else name, {})
        mark = " (best)" if name == found["best"] else ""
        table.add_row(name + mark, mean_sd(validation), *(mean_sd(test[by]) for by in ways if by in test))
    for name, value in found["references"].items():
        table.add_row(name, "", f"{value:.4f}")
    console.print(table)
    console.print(f"best: {values_of(found['values'])}", highlight=False)
    for line in compared(found):
        console.print(line, highlight=False)

"""A whole search: what is asked for is checked, trials run, seeds run, and all of it is written down."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from tune import finals
from tune.asked import Options, checked
from tune.board import Board
from tune.driver import DIRECTIONS, Base, Search
from tune.nested import Launched, run_nested
from tune.report import compared, mean_sd, write_report
from tune.rungs import Rungs
from tune.sampling import Memoryless
from tune.show import Shown, each, values_of
from tune.space import TEACHER_KEYS, described
from tune.storage import SEARCH, open_study, opened
from tune.teachers import KEY, SharedTeacher, draw_teachers, saving, student_space, train_teachers
from tune.ways import pool_of, precision_of, score_of, slots_of, way_of

STARTUP_SHARE, STARTUP_MOST, STARTUP_LEAST = 4, 10, 4
"""A quarter of the trials is drawn at random first, 4 to 10 of them."""


def run_search(options: Options) -> dict[str, Any]:
    """Runs or goes on with a search; returns what its final.json holds.

    Raises ValueError for whatever the user can mend.
    """
    console = Console(width=None if Console().is_terminal else 160)
    asked = checked(options, console)
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
        asked.values["train"]["precision"] = precision_of(asked, options)
    one_objective = len(asked.objectives) == 1
    with opened(asked.folder, plan, resume=options.resume) as journal:
        for split in ("train", "validation"):
            asked.dataset.verify(split)
        way, why = way_of(options, asked)
        with pool_of(way, options, asked) as pool:
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
                        concurrency = options.concurrency or slots_of(options)
                        run_nested(searched, concurrency=concurrency, score=score_of(asked))
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

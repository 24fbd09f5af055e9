"""In which way trials run: long-lived workers, this process, or Ray Train inside Ray Tune."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from raytrain.cluster.local_ray import local_ray
from raytrain.cluster.precision import choose_precision
from raytrain.config import build
from raytrain.data.reading import Reading
from raytrain.methods import METHODS
from tune.asked import Asked, Options, one_of
from tune.driver import Base
from tune.nested import OBJECT_STORE_BYTES, Launched
from tune.space import Choice
from tune.workers import Here, Pool, Resources, actors

MEMORY_SHARE = 0.5
"""Of this machine's memory, that the rows of all workers together may fill."""


def precision_of(asked: Asked, options: Options) -> str:
    """Measured once, for the widest towers of the space: every trial then computes alike."""
    towers = asked.space.get("model.hidden")
    widest = max(towers.options.values(), key=max) if isinstance(towers, Choice) else (1024,)
    hidden = asked.fixed.get("model.hidden", widest)
    device = torch.device("cuda" if options.gpus_per_trial else "cpu")
    return choose_precision(build(model={"hidden": hidden}), device)


def way_of(options: Options, asked: Asked) -> tuple[str, str]:
    """How trials are run, and why."""
    way = one_of("--way", options.way, ("auto", "workers", "here", "nested"))
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
def pool_of(way: str, options: Options, asked: Asked) -> Iterator[Pool]:
    if way == "here":
        yield Here(asked.values["data"]["path"], threads=options.cpus_per_trial, device="cpu")
        return
    slots = options.concurrency or slots_of(options)
    if way == "nested":
        cpus = max(os.cpu_count() or 1, slots * options.workers_per_trial * options.cpus_per_trial) + 1
        with local_ray(cpus, OBJECT_STORE_BYTES, dashboard=True):
            yield Launched(score_of(asked))
        return
    resources = Resources(options.cpus_per_trial, options.gpus_per_trial)
    with actors(asked.values["data"]["path"], min(slots, options.trials), resources) as pool:
        yield pool


def score_of(asked: Asked) -> str:
    """The score that selects, by its name in a run's history."""
    config = Base(asked.values, asked.dataset.manifest).config({})
    if METHODS[config.method["name"]].selected_by == "top-1":
        return "top-1"
    return "r@10" if config.data.annotation == "none" else "map"


def slots_of(options: Options) -> int:
    if options.gpus_per_trial:
        return max(1, int(torch.cuda.device_count() / options.gpus_per_trial))
    return max(1, (os.cpu_count() or 1) // (options.cpus_per_trial * options.workers_per_trial))

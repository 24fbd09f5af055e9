"""What is asked of a search, checked before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from raytrain.config import Config, load_values, nearest, override, parse_override, validate
from raytrain.data.manifest import Dataset, open_dataset
from raytrain.methods import METHODS
from tune.driver import DIRECTIONS, Objective
from tune.sampling import SAMPLERS, SamplerName
from tune.space import SPACES, Space, ranges_of

DEMO_CLIPS = 3000
DEMO_EPOCHS, EPOCHS = 9, 27
DEFAULT_METHOD = "psd"


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


def checked(options: Options, console: Console) -> Asked:
    """Raises ValueError for whatever the user can mend."""
    _check_numbers(options)
    sampler = one_of("--sampler", options.sampler, SAMPLERS)
    objectives = tuple(one_of("--objectives", name, DIRECTIONS) for name in options.objectives.split(","))
    if objectives[0] != "map" or len(set(objectives)) != len(objectives) or len(objectives) > 2:
        raise ValueError(f"--objectives is {options.objectives!r}; allowed: map, or map,time, or map,size")
    if len(objectives) == 2 and sampler == "cmaes":
        raise ValueError("--sampler cmaes has one objective; use tpe, gp or random with --objectives map,...")
    fixed = _fixed(options)
    method = str(fixed.get("method.name", DEFAULT_METHOD))
    space = SPACES.get(one_of("--method", method, METHODS), {})
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


def one_of(option: str, value: str, known: Any) -> str:
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

"""Compositional distillation and its comparators on a student that has something to learn: top-1 of the student alone.

    python benchmarks/distillation.py --data ucf51_av.h5 [--seeds 5] [--noise 2 --labels 0.2] [--tune]
    python benchmarks/distillation.py --short

The audio view teaches, the visual view learns.  The student's view is degraded before anything is fitted, train and
test alike: columns at zero mean and unit deviation (those of the file's train rows), a random projection to
--dimensions (standard normal entries over the root of the number of columns), plus normal noise of --noise times the
deviation of the projected columns; both drawn from --corruption-seed.  The teacher's view is as it is in the file.
--labels is the share of the train labels, of every class, that is left, for student, teacher and composition alike: of
the other clips they have the two views.

--tune      three weights for each distillation (a third, once and three times its default) with seed 100 on the first
            fold, by the validation top-1.  Without it the weights in WEIGHTS are trained with, with --labels those in
            WEIGHTS_OF_FEW_LABELS: --tune has chosen both.

Everything else is `benchmarks/quality.py`: folds by groups of clips, equal epochs, selection on the validation split
(by the student's top-1), one process per job, results.jsonl under --out, paired sign-flip tests over folds x seeds of
compositional distillation against each other one.  The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import h5py
import numpy as np
import quality
from rich.console import Console

SETTINGS = (
    "train.epochs=20",
    "train.patience=off",
    "train.validate_every=2",
    "train.diagnose_every=off",
    "train.precision=bfloat16",
    "model.hidden=[512]",
)
"""Of every run."""

DEFAULTS: dict[str, dict[str, float]] = {
    "compositional": {"weight": 1.0},
    "fitnet": {"weight": 1.0},
    "pkt": {"weight": 100.0},
    "correlation": {"weight": 10.0},
    "rkd": {"distance_weight": 25.0, "angle_weight": 50.0},
    "crd": {"weight": 0.8},
    "information-flow": {"weight": 100.0},
    "cmc": {"weight": 1.0},
}
SCALES = (1 / 3, 1.0, 3.0)

WEIGHTS: dict[str, float] = {**dict.fromkeys(DEFAULTS, SCALES[0]), "compositional": 1.0, "fitnet": 1.0}
"""Multiple of the default weights, chosen by --tune."""

WEIGHTS_OF_FEW_LABELS: dict[str, float] = {
    **dict.fromkeys(("compositional", "fitnet", "rkd"), SCALES[2]),
    **dict.fromkeys(("pkt", "crd", "cmc"), SCALES[0]),
    **dict.fromkeys(("correlation", "information-flow"), SCALES[1]),
}
"""The same with --noise 2 --labels 0.2."""


def variant(name: str, scale: float) -> str:
    """As `quality.overrides_of` reads it."""
    section = name.replace("-", "_")
    weights = [f"method.{section}.{key}={scale * value:.4g}" for key, value in DEFAULTS[name].items()]
    return "+".join([f"{name}:compositional", f"method.distillation={name}", *weights])


BASELINE = "baseline:compositional+method.distillation=baseline"


def degrade(source: Path, target: Path, *, dimensions: int, noise: float, seed: int) -> None:
    """A copy of a feature file whose visual view is projected and noisy."""
    generator = np.random.default_rng(seed)
    with h5py.File(source) as given, h5py.File(target, "w") as made:
        for name in given:
            if not name.startswith("visual_"):
                given.copy(given[name], made, name)
        train = given["visual_train"][:].astype(np.float64)
        center, scale = train.mean(axis=0), np.maximum(train.std(axis=0), 1e-6)
        matrix = generator.normal(size=(train.shape[1], dimensions)) / np.sqrt(train.shape[1])
        spread = ((train - center) / scale @ matrix).std(axis=0)
        for split in ("train", "test"):
            rows = (given[f"visual_{split}"][:].astype(np.float64) - center) / scale @ matrix
            rows += noise * spread * generator.normal(size=rows.shape)
            made[f"visual_{split}"] = rows.astype(np.float32)


def demo_world(target: Path, scratch: Path) -> None:
    """A feature file of the demo world, for --short: no number of it says anything of real clips."""
    from raytrain.data.scene_config import SceneConfig
    from raytrain.data.scenes import generate_scenes
    from raytrain.data.shards import read_split

    dataset = generate_scenes(scratch, config=SceneConfig(clips=2000, visual_size=64))
    with h5py.File(target, "w") as file:
        for split in ("train", "test"):
            arrays = read_split(dataset, split)
            file[f"lab_{split}"] = arrays.labels
            for view, rows in arrays.views.items():
                file[f"{view}_{split}"] = rows


def chosen(
    folds: list[tuple[str, str]], overrides: tuple[str, ...], out: Path, jobs: int, console: Console
) -> dict[str, dict[str, float]]:
    """Validation top-1 of every distillation by the multiple of its weights."""
    variants = [f"{scale:.3g} x {variant(name, scale)}" for name in DEFAULTS for scale in SCALES]
    entries = quality.tested(
        folds[:1], variants, seeds=[100], overrides=overrides, baselines=[], metric="top_1", out=out,
        jobs=jobs, console=console,
    )  # fmt: skip
    found = {entry["method"]: entry["validation_mean"] for entry in entries if "validation_mean" in entry}
    return {name: {f"{scale:.3g}": found[f"{scale:.3g} x {name}"] for scale in SCALES} for name in DEFAULTS}


def main() -> None:
    parser = argparse.ArgumentParser(
        formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__
    )
    parser.add_argument("--data", type=Path, help="HDF5 with audio and visual features and groups")
    parser.add_argument("--dimensions", type=int, default=32)
    parser.add_argument("--noise", type=float, default=1.0)
    parser.add_argument("--corruption-seed", type=int, default=0)
    parser.add_argument("--labels", type=float, help="share of the train labels that is left")
    parser.add_argument("--num-folds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--short", action="store_true", help="a small world, one seed, two epochs")
    parser.add_argument("--out", type=Path, default=Path("runs/distillation"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    console = Console(width=None if Console().is_terminal else 200)
    if options.data is None and not options.short:
        parser.error("--data is missing: an HDF5 file, or --short for a small demo world")
    options.out.mkdir(parents=True, exist_ok=True)
    overrides: tuple[str, ...] = SETTINGS
    if options.short:
        overrides, options.seeds = (*SETTINGS, "train.epochs=2", "model.hidden=[64]"), 1
    if options.data is None:
        options.data = options.out / "demo.h5"
        if not options.data.exists():
            demo_world(options.data, options.out / "demo")
    name = f"{options.data.stem}-{options.dimensions}-{options.noise}-{options.corruption_seed}"
    out = options.out / name
    out.mkdir(exist_ok=True)
    degraded = out / f"{name}.h5"
    if not degraded.exists():
        degrade(
            options.data, degraded, dimensions=options.dimensions, noise=options.noise,
            seed=options.corruption_seed,
        )  # fmt: skip
    with h5py.File(degraded) as file:
        how = "group" if "group_train" in file else "own"
    folds = list(quality.folds(degraded, how, options.num_folds, out))
    if options.labels is not None:
        folds = list(quality.with_hidden_labels(folds, options.labels, 1, out))
    weights = WEIGHTS if options.labels is None else WEIGHTS_OF_FEW_LABELS
    result: dict[str, Any] = {"data": name, "settings": overrides}
    if options.tune:
        result["validation_top_1"] = chosen(folds, overrides, out, options.jobs, console)
    else:
        variants = [variant(name, weights[name]) for name in DEFAULTS]
        result["results"] = quality.tested(
            folds, [variants[0], BASELINE, *variants[1:]], seeds=range(options.seeds), overrides=overrides,
            baselines=["baseline"], metric="top_1", out=out, jobs=options.jobs, console=console,
        )  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()

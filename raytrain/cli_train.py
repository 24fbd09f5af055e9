"""`raytrain train` and `raytrain demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("data", required=False)
@click.option("--method", help="Method, see `raytrain methods`.")
@click.option("--loss", help="Loss of the method `metric`, see `raytrain losses`.")
@click.option("--workers", type=int, help="Ray Train workers.")
@click.option("--epochs", type=int, help="Passes over the train split.")
@click.option("--seed", type=int, help="Seed of everything random.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Run folder; by default runs/<data>-<method>-<n>."
)
@click.option("--config", "file", type=click.Path(path_type=Path), help="TOML file to start from.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override, e.g. optim.lr=3e-4.")
@click.option(
    "--teacher",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Start from the teacher and class graph that another run has trained.",
)
@click.option(
    "--resume", type=click.Path(path_type=Path), metavar="RUN", help="Go on with an interrupted run."
)
def train(
    data: str | None,
    method: str | None,
    loss: str | None,
    workers: int | None,
    epochs: int | None,
    seed: int | None,
    out: Path | None,
    file: Path | None,
    overrides: tuple[str, ...],
    teacher: Path | None,
    resume: Path | None,
) -> None:
    """Train on DATA, a folder that `raytrain ingest` wrote; the best weights by validation MAP are kept."""
    from rich.console import Console

    from raytrain.config import build

    console = Console()
    if resume is not None:
        if (
            any(
                value is not None for value in (data, method, loss, workers, epochs, seed, out, file, teacher)
            )
            or overrides
        ):
            raise click.UsageError("--resume goes on with the run's own configuration; give it alone")
        from raytrain.cluster.run_folder import read_config

        return _train(read_config(resume), resume, console, resume=True)
    sections: dict[str, dict[str, Any]] = {
        "data": _given(path=data),
        "method": _given(name=method, loss=loss),
        "train": _given(
            workers=workers,
            epochs=epochs,
            seed=seed,
            teacher=None if teacher is None else str(teacher),
        ),
    }
    config = build(file, overrides, **sections)
    if not config.data.path:
        raise click.UsageError(
            "no data set; give the folder that `raytrain ingest` wrote: raytrain train DATA"
        )
    return _train(config, out or _free_folder(config), console, resume=False)


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _free_folder(config: Any) -> Path:
    stem = f"{Path(config.data.path).name}-{config.method.get('name', 'metric')}"
    n = 1
    while (folder := Path("runs") / f"{stem}-{n}").exists():
        n += 1
    return folder


def _train(config: Any, folder: Path, console: Any, *, resume: bool) -> None:
    from raytrain.cluster.launch import train as launch

    try:
        result = launch(config, folder, console=console, resume=resume)
    except KeyboardInterrupt:
        console.print(f"go on with: raytrain train --resume {folder}", highlight=False)
        raise
    best = result["best"]
    scores = "  ".join(f"{k} {v:.4f}" for k, v in best.items() if k not in {"epoch", "step"} and "/" not in k)
    console.print(
        f"best of {result['steps']} steps: epoch {best['epoch']}, validation {scores}"
        f"{' (stopped early)' if result['stopped_early'] else ''}",
        highlight=False,
    )
    console.print(f"next: raytrain evaluate {folder}   tensorboard --logdir {folder}", highlight=False)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True)
@click.option("--clips", default=8000, show_default=True, help="Size of the generated world.")
@click.option("--workers", default=2, show_default=True, help="Ray Train workers.")
@click.option("--epochs", default=12, show_default=True, help="Passes over the train split.")
@click.option("--loss", default="info-nce", show_default=True, help="Loss of the method `metric`.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier demo.")
def demo(out: Path, clips: int, workers: int, epochs: int, loss: str, overwrite: bool) -> None:
    """Generate the demo world, train on it, evaluate, write a report: the whole path with one command."""
    import json
    import shutil

    from rich.console import Console

    from raytrain.cli_evaluate import print_scores
    from raytrain.cluster.evaluate import Options, evaluate
    from raytrain.cluster.run_folder import write_text
    from raytrain.config import build
    from raytrain.data.scene_config import SceneConfig
    from raytrain.data.scenes import generate_scenes
    from raytrain.evaluation.report import write_report

    console = Console()
    data, run = out / "data", out / "run"
    for folder in (data, run):
        if folder.exists() and not overwrite:
            raise ValueError(f"{folder} exists; replace it with --overwrite or give another --out")
    console.print(f"1/4  a SYNTHETIC world of {clips:,} clips into {data}", highlight=False)
    generate_scenes(data, config=SceneConfig(clips=clips), overwrite=overwrite)
    console.print(f"2/4  training with {loss} on {workers} Ray workers into {run}", highlight=False)
    if run.exists():
        shutil.rmtree(run)
    config = build(
        data={"path": str(data)},
        method={"name": "metric", "loss": loss},
        model={"hidden": [256, 256]},
        train={"workers": workers, "epochs": epochs},
    )
    _train(config, run, console, resume=False)
    console.print("3/4  ranking the test split", highlight=False)
    found = evaluate(run, Options())
    write_text(run / "evaluation-test.json", json.dumps(found, indent=1))
    print_scores(found)
    console.print(f"4/4  report: {write_report(run)}", highlight=False)

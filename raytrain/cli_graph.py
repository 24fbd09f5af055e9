"""`raytrain graph`: the class-dependency graph of a run or of a file of soft labels, with its uncertainty."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from raytrain.graph.accumulator import MomentAccumulator
    from raytrain.graph.dependency import Orientation, Sign


@click.command(short_help="draw the class dependencies of a run or file")
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Folder; default: beside SOURCE.")
@click.option(
    "--penalty", type=float, help="lambda of the BIC; 0.5 is the standard BIC. [default: the run's, 1]"
)
@click.option("--lift", type=float, help="z above which a class may cause a column. [default: the run's, 4]")
@click.option("--bootstraps", type=int, help="Random halves of the clips. [default: the run's, 100]")
@click.option(
    "--frequency", type=float, help="Edges as frequent as this are stable. [default: the run's, .75]"
)
@click.option(
    "--sign",
    type=click.Choice(["any", "positive"]),
    help="Whether edges with a negative partial effect count. [default: the run's, any]",
)
@click.option(
    "--min-effect",
    type=float,
    help="Partial effects, plus what --told adds, do not count below it. [default: the run's, 0]",
)
@click.option(
    "--told",
    type=click.FloatRange(min=0),
    help="Weight, beside the partial effect, of what clips say whose class is told in one view alone. "
    "[default: the run's, 0]",
)
@click.option(
    "--orientation",
    type=click.Choice(["search", "annotation"]),
    help="What gives edges their direction. [default: the run's, search]",
)
@click.option(
    "--one-view",
    type=click.FloatRange(min=0),
    help="Of a file with clips: count those whose class has a logit above 0 in one view and below minus this in the "
    "other. [default: all]",
)
@click.option("--top", default=20, show_default=True, help="Rows of the table to print.")
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--tensorboard/--no-tensorboard",
    default=None,
    help="Picture and table in TensorBoard too, in the folder tensorboard/; default: for a run.",
)
def graph(
    source: Path,
    out: Path | None,
    penalty: float | None,
    lift: float | None,
    bootstraps: int | None,
    frequency: float | None,
    sign: Sign | None,
    min_effect: float | None,
    told: float | None,
    orientation: Orientation | None,
    one_view: float | None,
    top: int,
    seed: int,
    tensorboard: bool | None,
) -> None:
    """Draw the class dependencies of SOURCE, a run or an .npz file, and print its stable edges.

    A run keeps its moments in moments.npz.  A file holds moments, or arrays `audio` and `visual` (logits, a row
    per clip) and `labels`, and perhaps `classes`.  Writes dependency.png, .svg, .json, .dot and .graphml.
    """
    import json

    import numpy as np

    from raytrain.graph.convert import to_dot, to_graphml
    from raytrain.graph.dependency import class_dependency
    from raytrain.graph.draw import dependency_figure, edge_table

    asked = {
        "penalty": penalty,
        "lift_threshold": lift,
        "bootstraps": bootstraps,
        "frequency": frequency,
        "sign": sign,
        "min_effect": min_effect,
        "told": told,
        "orientation": orientation,
    }
    settings = _settings(source) | {name: value for name, value in asked.items() if value is not None}
    moments, classes = _read(source, one_view, told=settings["told"] > 0)
    found = class_dependency(moments, seed=seed, **settings)
    folder = out or (source if source.is_dir() else source.parent)
    folder.mkdir(parents=True, exist_ok=True)
    figure = dependency_figure(found, classes)
    figure.savefig(folder / "dependency.png", dpi=150)
    figure.savefig(folder / "dependency.svg")
    names = [f"{name} (audio)" for name in classes] + [f"{name} (visual)" for name in classes]
    directed = found.direction_frequency > 0.2 * np.maximum(found.edge_frequency, 1e-9)
    mixed = found.stable & directed
    (folder / "dependency.dot").write_text(to_dot(mixed, names))
    (folder / "dependency.graphml").write_text(to_graphml(mixed, names))
    rows = edge_table(found, classes)
    summary = {
        "verdict": found.verdict, "false_bound": found.false_bound, "permuted_edges": found.permuted_edges,
        "frobenius": found.frobenius, "num_samples": found.num_samples, "complete": found.complete,
        "settings": settings, "edges": rows,
        "audio_to_visual": found.audio_to_visual.tolist(), "visual_to_audio": found.visual_to_audio.tolist(),
    }  # fmt: skip
    (folder / "dependency.json").write_text(json.dumps(summary, indent=1))
    click.echo(
        f"{found.verdict}: {len(rows)} stable edges, at most {found.false_bound:.1f} expected false, ",
        nl=False,
    )
    click.echo(f"{found.permuted_edges} under permuted labels; n = {found.num_samples:.0f}")
    click.echo("  " + ", ".join(f"{name} {value}" for name, value in settings.items()))
    for row in rows[:top]:
        click.echo(
            f"  {row['source']} -> {row['target']}  frequency {row['frequency']:.2f}  "
            f"direction {row['direction']:.2f}  effect {row['effect']:.2f}  weight {row['weight']:.2f}"
        )
    if len(rows) > top:
        click.echo(f"  and {len(rows) - top} more in {folder / 'dependency.json'}")
    click.echo(f"wrote {folder / 'dependency.png'} and .svg .json .dot .graphml")
    if source.is_dir() if tensorboard is None else tensorboard:
        _to_board(folder / "tensorboard", figure, rows)
        click.echo(f"see it: tensorboard --logdir {folder}")


def _settings(source: Path) -> dict[str, Any]:
    """Those of the search of a run, and what stands in for them elsewhere."""
    from raytrain.config import load_values
    from raytrain.methods.ili_settings import without_retired

    settings: dict[str, Any] = {
        "penalty": 1.0, "lift_threshold": 4.0, "bootstraps": 100, "frequency": 0.75, "sign": "any",
        "min_effect": 0.0, "told": 0.0, "orientation": "search",
    }  # fmt: skip
    config = source / "config.json"
    if config.exists():
        try:
            settings |= without_retired(load_values(config)["method"].get("search", {}))
        except ValueError as error:
            raise click.UsageError(f"{config}: {error}") from error
    return settings


def _to_board(folder: Path, figure: Figure, rows: list[dict[str, Any]]) -> None:
    """The picture, and the table of edges as Markdown."""
    from torch.utils.tensorboard import SummaryWriter

    head = ["source", "target", "frequency", "direction", "effect", "weight"]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    lines += [
        " | ".join(f"{row[key]:.2f}" if isinstance(row[key], float) else str(row[key]) for key in head)
        for row in rows
    ]
    with SummaryWriter(str(folder)) as writer:
        writer.add_figure("dependency/graph", figure)
        writer.add_text("dependency/edges", "\n".join(lines))


def _read(source: Path, one_view: float | None, *, told: bool) -> tuple[MomentAccumulator, list[str]]:
    import numpy as np

    from raytrain.graph.accumulator import MomentAccumulator

    file = source
    if source.is_dir():
        held = sorted(source.rglob("moments.npz"), key=lambda path: path.stat().st_mtime)
        if not held:
            raise click.UsageError(
                f"no moments in {source}; train a method with a dependency graph (ili), or name an .npz with "
                "audio, visual and labels"
            )
        file = held[-1]
    if file.suffix != ".npz":
        raise click.UsageError(f"{file} is no .npz file and no run; see `raytrain graph --help`")
    with np.load(file, allow_pickle=False) as data:
        arrays = {name: data[name] for name in data.files}
    try:
        if "outer" in arrays:
            if one_view is not None:
                raise ValueError(
                    "it holds moments, of which no clip can be taken back; train with method.one_view, or name an .npz "
                    "with audio, visual and labels"
                )
            moments = MomentAccumulator.from_arrays(arrays)
            if told and not moments.told:
                raise ValueError(
                    "it holds no sums by the view that tells the class, which --told needs; train with "
                    "method.search.told, or name an .npz with audio, visual and labels"
                )
        else:
            missing = [name for name in ("audio", "visual", "labels") if name not in arrays]
            if missing:
                raise ValueError(f"{', '.join(missing)} missing; it holds {', '.join(arrays) or 'nothing'}")
            moments = MomentAccumulator(arrays["audio"].shape[1], one_view=one_view, told=told)
            labels = arrays["labels"].astype(np.int64)
            moments.update(arrays["audio"], arrays["visual"], labels, np.arange(len(labels)))
    except ValueError as error:
        raise click.UsageError(f"{file}: {error}") from error
    classes = [str(name) for name in arrays.get("classes", [])]
    return moments, classes or [f"class {k}" for k in range(moments.num_classes)]

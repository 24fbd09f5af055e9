"""`raytrain interactions`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click


@click.command(short_help="what the graphs of ili runs did")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--without",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="A run of the same seed without a graph, one for each of RUNS, in their order.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder.  [default: the first run's]")
@click.option("--resamples", default=1000, show_default=True, help="Of the bootstrap over clips.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON only.")
def interactions(
    runs: tuple[Path, ...], without: tuple[Path, ...], out: Path | None, resamples: int, as_json: bool
) -> None:
    """What latent interactions did in RUNS, runs of ili, each against a run without them.

    By the last weights of each: edges and how many runs hold them, the distance of their graphs, how much nearer linked
    but unlabelled pairs of the test split lie, and MAP over epochs.  Writes interactions.json and interactions.png.
    """
    from raytrain.cluster.interactions import interactions as study
    from raytrain.cluster.run_folder import write_text
    from raytrain.evaluation.interactions_figure import interactions_figure

    found = study(list(runs), list(without), resamples=resamples)
    folder = out or runs[0]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "interactions.json", json.dumps(found, indent=1))
    interactions_figure(found).savefig(folder / "interactions.png", dpi=150)
    if as_json:
        click.echo(json.dumps(found))
        return
    _print(found)
    click.echo(f"written: {folder / 'interactions.json'}, {folder / 'interactions.png'}")


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else 160)
    tests = list(found["runs"][0]["nearer"])
    table = Table(
        "run", "graph", "edges", *(f"nearer: {name}" for name in tests), "class means", "MAP", "without"
    )
    for row in found["runs"]:
        intervals = [
            "" if test is None else f"{test['mean']:+.3f} ({test['low']:+.3f} to {test['high']:+.3f})"
            for test in row["nearer"].values()
        ]
        apart = f"{100 * (row['inter_over_without'] - 1):+.1f} % apart"
        table.add_row(
            row["run"],
            row["verdict"],
            str(row["edges"]),
            *intervals,
            apart,
            f"{row['map']:.4f}",
            f"{row['map_without']:.4f}",
        )
    console.print(table)
    if found["adjacency_distance"] is not None:
        console.print(
            f"mean Frobenius distance of the runs' graphs {found['adjacency_distance']:.2f}", highlight=False
        )
    for edge in found["edges"][:20]:
        console.print(
            f"  {' - '.join(edge['between'])}  in {100 * edge['runs']:.0f} % of the runs", highlight=False
        )

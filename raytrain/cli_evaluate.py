"""`raytrain evaluate` and `raytrain compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

COLUMNS = {
    "map": "MAP",
    "r@1": "R@1",
    "r@5": "R@5",
    "r@10": "R@10",
    "p@1": "P@1",
    "p@10": "P@10",
    "ndcg@10": "nDCG@10",
    "median_rank": "median rank",
    "running_map": "running MAP",
}

_split = click.option(
    "--split",
    default="test",
    show_default=True,
    type=click.Choice(["train", "validation", "test"]),
    help="Split to rank.",
)
_relevance = click.option(
    "--relevance",
    type=click.Choice(["class", "events", "pair"]),
    help="What makes an item relevant; by default true event sets where they exist, else the class, else the pair.",
)
_resamples = click.option(
    "--resamples", default=1000, show_default=True, help="Of the bootstrap over queries."
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON only.")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@_split
@_relevance
@_resamples
@click.option("--references/--no-references", default=True, help="Linear CCA and softmax matching beside it.")
@click.option("--per-class", is_flag=True, help="MAP by class.")
@_json
def evaluate(
    run: Path,
    split: str,
    relevance: Any,
    resamples: int,
    references: bool,
    per_class: bool,
    as_json: bool,
) -> None:
    """Rank a split with the best weights of RUN; writes evaluation-<split>.json and report.html into it."""
    from raytrain.cluster.evaluate import Options
    from raytrain.cluster.evaluate import evaluate as measure
    from raytrain.cluster.run_folder import write_text
    from raytrain.evaluation.report import write_report

    found = measure(run, Options(split, relevance, references, resamples))
    written = run / f"evaluation-{split}.json"
    write_text(written, json.dumps(found, indent=1))
    report = write_report(run) if split == "test" else None
    if as_json:
        click.echo(json.dumps(found))
        return
    print_scores(found)
    if per_class:
        for name, value in found["per_class"].items():
            click.echo(f"{value:.4f}  {name}")
    click.echo(f"written: {written}" + (f", {report}" if report else ""))


def _cell(values: dict[str, float], key: str) -> str:
    if key not in values:
        return ""
    return f"{values[key]:.1f}" if key == "median_rank" else f"{values[key]:.4f}"


def print_scores(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from raytrain.evaluation.report import rows_of

    relevant = {"class": "the same class", "events": "any event in common", "pair": "the clip's own pair"}
    table = Table(
        title=f"{found['dataset']}{' (SYNTHETIC)' if found['synthetic'] else ''}, {found['split']}: "
        f"{found['num_clips']:,} clips, relevant is {relevant[found['relevant_by']]}",
        title_justify="left",
    )
    table.add_column("")
    for label in COLUMNS.values():
        table.add_column(label, justify="right")
    for name, scores in rows_of(found).items():
        for way, values in scores.items():
            table.add_row(
                f"{name}, {way}",
                *(_cell(values, k) for k in COLUMNS),
                style="bold" if name == "this run" and way == "mean" else None,
            )
        table.add_section()
    console = Console(width=None if Console().is_terminal else 160)
    console.print(table)
    if found["interval"] is not None:
        low, high = found["interval"]
        mean = found["scores"]["mean"]["map"]
        console.print(f"MAP {mean:.4f}, 95 % interval over queries {low:.4f} to {high:.4f}", highlight=False)
    for view, value in found["top_1"].items():
        console.print(f"top-1 of {view} alone {value:.4f}", highlight=False)
    missing = sum(scores["num_without_relevant"] for way, scores in found["scores"].items() if way != "mean")
    if missing:
        console.print(f"{missing:.0f} queries have no relevant item and count in no mean", highlight=False)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@_split
@_relevance
@_resamples
@_json
def compare(runs: tuple[Path, ...], split: str, relevance: Any, resamples: int, as_json: bool) -> None:
    """Compare RUNS on the same queries, each against the first: paired bootstrap and permutation test."""
    from raytrain.cluster.evaluate import Options, compare_runs

    if len(runs) < 2:
        raise click.UsageError("compare takes two or more runs")
    found = compare_runs(list(runs), Options(split, relevance, references=False, resamples=resamples))
    if as_json:
        click.echo(json.dumps(found))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("run", "MAP", "difference", "95 % interval", "p", "clips better / worse")
    for row in found["runs"]:
        cells = [row["run"], f"{row['scores']['mean']['map']:.4f}"]
        if "against_first" in row:
            test = row["against_first"]
            low, high = test["interval"]
            cells += [
                f"{test['difference']:+.4f}",
                f"{low:+.4f} to {high:+.4f}",
                f"{test['p_value']:.4f}",
                f"{test['clips_better']} / {test['clips_worse']}",
            ]
        table.add_row(*cells)
    Console(width=None if Console().is_terminal else 120).print(table)

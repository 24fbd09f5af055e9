"""A run's numbers as one self-contained HTML page; reads the files of the run and nothing else."""

from __future__ import annotations

import base64
import html
import io
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

REPORT = "report.html"
METRICS = {"map": "MAP", "r@1": "R@1", "r@5": "R@5", "r@10": "R@10", "p@10": "P@10", "ndcg@10": "nDCG@10"}
INK, SOFT = "#1b4965", "#9fb8c8"

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; margin: .5rem 0 } td, th { padding: .25rem .8rem; border-bottom: 1px solid #ddd }
td, th { text-align: right; font-variant-numeric: tabular-nums }
td:first-child, th:first-child { text-align: left }
.note { background: #fff4d6; padding: .6rem 1rem; border-left: 4px solid #e0a800 } img { max-width: 100% }
pre { background: #f6f6f6; padding: 1rem; overflow-x: auto; font-size: 12px }
"""


def write_report(run: Path) -> Path:
    """`report.html` of an evaluated run: scores beside the references, learning curves, classes, configuration."""
    evaluation = json.loads((run / "evaluation-test.json").read_text())
    config = json.loads((run / "config.json").read_text())
    environment = json.loads((run / "environment.json").read_text())
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    parts = [f"<h1>{html.escape(_title(config, environment))}</h1>"]
    if environment["dataset"]["synthetic"]:
        parts.append('<p class="note">Synthetic data: no number here says anything of real clips.</p>')
    parts += [
        f"<h2>Retrieval on the {evaluation['split']} split</h2>",
        f"<p>{html.escape(_protocol(evaluation))}</p>",
        _table(evaluation),
        *_map_beside(evaluation),
        _top_1(evaluation),
        "<h2>Training</h2>",
        _image(_curves(history), "Loss and validation scores by epoch"),
    ]
    if evaluation["per_class"]:
        parts += [
            "<h2>Classes</h2>",
            _image(_classes(evaluation["per_class"]), "MAP by class, both directions"),
        ]
    parts += [
        "<h2>Configuration</h2>",
        f"<pre>{html.escape(json.dumps(config, indent=1))}</pre>",
        "<h2>Environment</h2>",
        f"<pre>{html.escape(json.dumps(environment, indent=1))}</pre>",
    ]
    page = f"<!doctype html><html lang=en><meta charset=utf-8><title>raytrain report</title><style>{STYLE}</style>"
    path = run / REPORT
    path.write_text(page + "\n".join(parts) + "</html>\n")
    return path


def _title(config: dict[str, Any], environment: dict[str, Any]) -> str:
    method = config["method"]
    loss = f" ({method['loss']})" if "loss" in method else ""
    return f"{method['name']}{loss} on {environment['dataset']['name']}"


def _protocol(evaluation: dict[str, Any]) -> str:
    relevant = {
        "class": "the same class",
        "events": "any event in common",
        "pair": "the clip's own pair",
    }[evaluation["relevant_by"]]
    return (
        f"Full ranking of {evaluation['num_clips']:,} clips by cosine, relevant is {relevant}, the query's own pair "
        "stays in the gallery, ties count against us. Weights selected on the validation split "
        f"(epoch {evaluation['selected']['epoch']})."
    )


def rows_of(evaluation: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Scores by what gave them and by direction: this run, within a view, after a projection, the references."""
    within = {f"{view}->{view}, own clip left out": of for view, of in evaluation["within"].items()}
    found = {
        "this run": {**evaluation["scores"], **within},
        **{f"this run {name}": scores for name, scores in evaluation["projections"].items()},
        **evaluation["references"],
    }
    return {name: scores for name, scores in found.items() if scores}


def _top_1(evaluation: dict[str, Any]) -> str:
    found = ", ".join(f"{view} alone {value:.4f}" for view, value in evaluation["top_1"].items())
    return f"<h2>Classification</h2><p>Top-1 of {html.escape(found)}.</p>" if found else ""


def _table(evaluation: dict[str, Any]) -> str:
    rows = []
    for name, scores in rows_of(evaluation).items():
        for way, values in scores.items():
            cells = "".join(
                f"<td>{values[key]:.4f}</td>" if key in values else "<td></td>" for key in METRICS
            )
            rows.append(f"<tr><td>{html.escape(name)}, {html.escape(way)}</td>{cells}</tr>")
    head = "".join(f"<th>{label}</th>" for label in METRICS.values())
    return f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"


def _map_beside(evaluation: dict[str, Any]) -> list[str]:
    """The picture of the MAP; none of a run of one view."""
    if evaluation["interval"] is None:
        return []
    return [_image(_bars(evaluation), "MAP beside the references, with 95 % intervals over queries")]


def _bars(evaluation: dict[str, Any]) -> Figure:
    means = {name: scores["mean"]["map"] for name, scores in rows_of(evaluation).items()}
    names, values = list(means), list(means.values())
    figure, axes = plt.subplots(figsize=(7, 0.55 * len(names) + 0.9), layout="constrained")
    axes.barh(names, values, color=[INK, *[SOFT] * (len(names) - 1)], height=0.6)
    low, high = evaluation["interval"]
    axes.errorbar([values[0]], [0], xerr=[[values[0] - low], [high - values[0]]], color="#d1495b", capsize=4)
    for i, value in enumerate(values):
        axes.text(0.005, i, f"{value:.3f}", va="center", color="white" if i == 0 else "black")
    axes.invert_yaxis()
    axes.set(xlabel="MAP, mean of both directions")
    _frame(axes)
    return figure


def _curves(history: list[dict[str, Any]]) -> Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    epochs = [record["epoch"] for record in history]
    left.plot(epochs, [record["loss"] for record in history], color=INK)
    left.set(xlabel="epoch", ylabel="training loss")
    scores = [key for key in history[0] if key.startswith("map") or key in {"r@10", "top-1"}]
    for key in scores:
        right.plot(epochs, [record[key] for record in history], label=key, lw=2 if key == "map" else 1)
    right.set(xlabel="epoch", ylabel="validation")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        _frame(axes)
    return figure


def _classes(per_class: dict[str, float]) -> Figure:
    ordered = sorted(per_class.items(), key=lambda entry: entry[1])
    figure, axes = plt.subplots(figsize=(7, 0.18 * len(ordered) + 0.8), layout="constrained")
    axes.barh([name for name, _ in ordered], [value for _, value in ordered], color=INK, height=0.7)
    axes.set(xlabel="MAP", ylim=(-0.7, len(ordered) - 0.3))
    axes.tick_params(axis="y", labelsize=7)
    _frame(axes)
    return figure


def _frame(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)


def _image(figure: Figure, caption: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    plt.close(figure)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{data}"></figure>'

"""MAP over epochs with and without latent interactions, and how much nearer linked pairs lie."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {"with": "#1f6f8b", "without": "#c4551d"}


def interactions_figure(found: dict[str, Any]) -> Figure:
    """Of what `cluster.interactions.interactions` returns."""
    from matplotlib.figure import Figure as NewFigure

    figure = NewFigure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _curves(left, found)
    _distances(right, found)
    synthetic = " (synthetic)" if found["synthetic"] else ""
    figure.suptitle(
        f"{found['dataset']}{synthetic}: {len(found['runs'])} run(s) with and without latent interactions"
    )
    return figure


def _curves(axes: Axes, found: dict[str, Any]) -> None:
    for name, color in COLORS.items():
        runs = found["map_over_epochs"][name]
        for run in runs:
            axes.plot(*zip(*run, strict=True), color=color, alpha=0.25 if len(runs) > 1 else 1, lw=1)
        common = sorted(set.intersection(*({epoch for epoch, _ in run} for run in runs)))
        mean = [np.mean([dict(map(tuple, run))[epoch] for run in runs]) for epoch in common]
        axes.plot(common, mean, color=color, lw=2, label=f"{name} LIR")
    axes.axvline(found["t_teach"] * found["epochs"], color="#888888", ls=":", lw=1, label="t_teach")
    axes.set(xlabel="epoch", ylabel="validation MAP")
    axes.legend(frameon=False)


def _distances(axes: Axes, found: dict[str, Any]) -> None:
    place, labels = 0, []
    for row in found["runs"]:
        for name, test in row["nearer"].items():
            if test is None:
                continue
            color = COLORS["with"] if name == "linked" else "#6a8f3c"
            axes.plot([test["low"], test["high"]], [place, place], color=color, lw=2)
            axes.plot(test["mean"], place, "o", color=color)
            labels.append(name)
            place += 1
    axes.axvline(0, color="#888888", lw=1)
    axes.set_yticks(range(place), labels)
    axes.invert_yaxis()
    axes.set(xlabel="nearer with LIR (1 - cos), 95 % interval")

"""A search as one self-contained HTML page: figures are SVG inside it, nothing is fetched."""

from __future__ import annotations

import html
import io
import math
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from raytrain.cluster.run_folder import write_text
from raytrain.evaluation.report import INK, SOFT, STYLE
from tune.importance import importances
from tune.show import number, values_of
from tune.space import Choice

if TYPE_CHECKING:
    from pathlib import Path

    from tune.driver import Search, Trial

REPORT = "report.html"
COLOURS = "viridis"
MOST_PARAMETERS = 12
MOST_CURVES = 200
MARKS = {"complete": "o", "stopped": "x"}


def write_report(search: Search, final: dict[str, Any] | None) -> Path:
    """`report.html` in the folder of the search; `final` is what final.json holds, None before there is one."""
    trials = [trial for _, trial in sorted(search.trials.items())]
    scored = [trial for trial in trials if math.isfinite(trial.score)]
    manifest, method = search.base.manifest, search.base.values["method"]["name"]
    parts = [f"<h1>{html.escape(f'Search of {method} on {manifest.name}')}</h1>"]
    if manifest.synthetic:
        parts.append('<p class="note">Synthetic data: no number here says anything of real clips.</p>')
    parts.append(f"<p>{html.escape(_summary(trials))}</p>")
    if final is not None:
        parts += ["<h2>The best against the default</h2>", _final(final)]
    if scored:
        parts += ["<h2>History</h2>", _svg(_history(scored), "history")]
        parts += ["<h2>Learning curves</h2>", _svg(_curves(scored), "curves")]
        if len(search.objectives) == 2:
            parts += [
                "<h2>Pareto front</h2>",
                _svg(_front(search, scored), "front"),
                _front_table(search, scored),
            ]
        for title, found in importances(search).items():
            parts += [f"<h2>Importance: {html.escape(title)}</h2>", _svg(_bars(found), f"bars {title}")]
        keys = _keys(scored)
        parts += ["<h2>Parallel coordinates</h2>", _svg(_parallel(search, scored, keys), "parallel")]
        parts += ["<h2>Slices</h2>", _svg(_slices(search, scored, keys), "slices")]
    parts += ["<h2>Trials</h2>", _table(trials)]
    page = f"<!doctype html><html lang=en><meta charset=utf-8><title>raytrain search</title><style>{STYLE}</style>"
    path = search.folder / REPORT
    write_text(path, page + "\n".join(parts) + "</html>\n")
    return path


def _summary(trials: list[Trial]) -> str:
    count = {
        state: sum(t.state == state for t in trials) for state in ("complete", "stopped", "failed", "running")
    }
    states = ", ".join(f"{n} {state}" for state, n in count.items() if n)
    epochs = sum(trial.epoch for trial in trials)
    return (
        f"{len(trials)} trials ({states}), {epochs:,} epochs, {sum(t.busy_s for t in trials):,.0f} s of training. "
        "Scores are of the validation split, the best of each trial's epochs."
    )


def _final(final: dict[str, Any]) -> str:
    ways, rows = list(final["against_default"]), []
    for name, validation in final["validation"].items():
        test = final["test"].get("best" if name == final["best"] else name, {})
        cells = [mean_sd(validation), *(mean_sd(test[by]) if by in test else "" for by in ways)]
        best = " (best)" if name == final["best"] else ""
        rows.append(_row([html.escape(name + best), *cells]))
    rows += [_row([html.escape(name), "", f"{value:.4f}"]) for name, value in final["references"].items()]
    head = _row(["", "validation", *(f"test MAP by {by}" for by in ways)], "th")
    said = "".join(f"<p>{html.escape(line)}</p>" for line in compared(final))
    values = html.escape(values_of(final["values"]))
    return f"<table>{head}{''.join(rows)}</table><p>Best: <code>{values}</code></p>{said}"


def _row(cells: list[str], kind: str = "td") -> str:
    return f"<tr>{''.join(f'<{kind}>{cell}</{kind}>' for cell in cells)}</tr>"


def compared(final: dict[str, Any]) -> list[str]:
    """The best against the default, in words."""
    seeds, reads = len(final["seeds"]), final["test_reads"]
    said = []
    for by, against in final["against_default"].items():
        low, high = against["interval"]
        said.append(
            f"best against default, by {by}: {against['difference']:+.4f} test MAP (95 % {low:+.4f} to {high:+.4f}, "
            f"p = {against['p_value']:.3g}, paired by seed; {seeds} seeds, which no trial had)"
        )
    if len(said) == 2:
        said.append("training and selection saw the annotated class alone, never the true events of a clip")
    said.append(f"the test split was read {'once' if reads == 1 else f'{reads} times'}, for this table")
    return said


def mean_sd(values: list[float]) -> str:
    deviation = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{deviation}"


def _history(scored: list[Trial]) -> Figure:
    figure, axes = plt.subplots(figsize=(9, 3.2), layout="constrained")
    for state, mark in MARKS.items():
        of = [trial for trial in scored if trial.state == state]
        axes.plot([t.number for t in of], [t.score for t in of], mark, color=SOFT, label=state, ms=5)
    best = np.maximum.accumulate([trial.score for trial in scored])
    axes.step([trial.number for trial in scored], best, where="post", color=INK, label="best so far")
    axes.set(xlabel="trial", ylabel="validation")
    axes.legend(frameon=False, fontsize=8)
    _frame(axes)
    return figure


def _curves(scored: list[Trial]) -> Figure:
    figure, axes = plt.subplots(figsize=(9, 3.4), layout="constrained")
    best = max(scored, key=lambda trial: trial.score)
    for trial in sorted(scored, key=lambda t: t.score)[-MOST_CURVES:]:
        style: dict[str, Any] = {"color": INK, "lw": 2} if trial is best else {"color": SOFT, "lw": 0.8}
        mark = "o" if len(trial.curve) == 1 else None
        axes.plot(range(1, len(trial.curve) + 1), trial.curve, marker=mark, ms=2, **style)
    axes.set(xlabel="epoch", ylabel="validation", title=f"best: trial {best.number}")
    _frame(axes)
    return figure


def front_of(search: Search, scored: list[Trial]) -> list[Trial]:
    """Trials that no other is at least as good as in both objectives and better in one."""
    signs = np.array([1.0 if search.maximises(name) else -1.0 for name in search.objectives])
    at = np.array([[search.value(t, name) for name in search.objectives] for t in scored]) * signs
    front = [
        trial
        for trial, own in zip(scored, at, strict=True)
        if not ((at >= own).all(axis=1) & (at > own).any(axis=1)).any()
    ]
    return sorted(front, key=lambda trial: -trial.score)


def _front(search: Search, scored: list[Trial]) -> Figure:
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    other = search.objectives[1]
    front = front_of(search, scored)
    for of, colour in ((scored, SOFT), (front, INK)):
        axes.plot([search.value(t, other) for t in of], [t.score for t in of], "o", color=colour, ms=5)
    axes.set(
        xlabel={"time": "seconds of an epoch", "size": "size of the embedding"}[other], ylabel="validation"
    )
    _frame(axes)
    return figure


def _front_table(search: Search, scored: list[Trial]) -> str:
    other = search.objectives[1]
    rows = "".join(
        f"<tr><td>{t.number}</td><td>{t.score:.4f}</td><td>{search.value(t, other):.4g}</td>"
        f"<td>{html.escape(values_of(t.values))}</td></tr>"
        for t in front_of(search, scored)
    )
    return f"<table><tr><th>trial</th><th>validation</th><th>{other}</th><th>values</th></tr>{rows}</table>"


def _bars(found: dict[str, float]) -> Figure:
    figure, axes = plt.subplots(figsize=(7, 0.28 * len(found) + 0.8), layout="constrained")
    axes.barh(list(found), list(found.values()), color=INK, height=0.65)
    axes.invert_yaxis()
    axes.set(xlabel="share of the variance of the score (fANOVA)")
    _frame(axes)
    return figure


def _keys(scored: list[Trial]) -> list[str]:
    """Keys by how many trials have them, those that all have first."""
    count: dict[str, int] = {}
    for trial in scored:
        for key in trial.values:
            count[key] = count.get(key, 0) + 1
    return sorted(count, key=lambda key: -count[key])[:MOST_PARAMETERS]


def _places(search: Search, key: str, of: list[Trial]) -> tuple[list[float], bool, dict[float, str]]:
    """Where the values of a key lie on an axis, whether it is logarithmic, and the words of a choice."""
    known = search.range_of(key)
    values = [trial.values[key] for trial in of]
    if isinstance(known, Choice):
        place = {number(value): float(i) for i, value in enumerate(known.options.values())}
        words = dict(zip(place.values(), known.options, strict=True))
        return [place[number(value)] for value in values], False, words
    return [float(value) for value in values], known.log, {}


def _parallel(search: Search, scored: list[Trial], keys: list[str]) -> Figure:
    common = [key for key in keys if all(key in trial.values for trial in scored)]
    figure, axes = plt.subplots(figsize=(10, 3.8), layout="constrained")
    columns, ends = [], []
    for key in common:
        at, log, words = _places(search, key, scored)
        scale = np.log10(at) if log else np.array(at)
        low, high = float(scale.min()), float(scale.max())
        columns.append((scale - low) / (high - low or 1.0))
        ends.append((words.get(min(at), number(min(at))), words.get(max(at), number(max(at)))))
    scores = np.array([trial.score for trial in scored])
    spread = float(np.ptp(scores)) or 1.0
    order = np.argsort(scores)
    for i in order:
        colour = plt.get_cmap(COLOURS)((scores[i] - scores.min()) / spread)
        axes.plot(range(len(common)), [column[i] for column in columns], color=colour, lw=1, alpha=0.8)
    axes.set_xticks(range(len(common)), [key.replace(".", ".\n") for key in common], fontsize=7)
    axes.set_yticks([])
    for x, (low_word, high_word) in enumerate(ends):
        axes.text(x, -0.06, low_word, ha="center", fontsize=7)
        axes.text(x, 1.03, high_word, ha="center", fontsize=7)
        axes.axvline(x, color="#ccc", lw=0.8, zorder=0)
    axes.spines[:].set_visible(False)
    mapped = plt.cm.ScalarMappable(plt.Normalize(scores.min(), scores.max()), COLOURS)
    figure.colorbar(mapped, ax=axes, label="validation")
    return figure


def _slices(search: Search, scored: list[Trial], keys: list[str]) -> Figure:
    rows = math.ceil(len(keys) / 4)
    figure, grid = plt.subplots(
        rows, 4, figsize=(11, 2.4 * rows), layout="constrained", sharey=True, squeeze=False
    )
    for axes in grid.flat[len(keys) :]:
        axes.set_visible(False)
    for axes, key in zip(grid.flat, keys, strict=False):
        of = [trial for trial in scored if key in trial.values]
        at, log, words = _places(search, key, of)
        points = axes.scatter(at, [t.score for t in of], c=[t.number for t in of], cmap=COLOURS, s=12)
        axes.set(xscale="log" if log else "linear")
        axes.set_xlabel(key, fontsize=7)
        axes.tick_params(labelsize=6)
        if words:
            axes.set_xticks(list(words), list(words.values()), rotation=30, fontsize=6)
        _frame(axes)
        points.set_rasterized(False)
    return figure


def _table(trials: list[Trial]) -> str:
    rows = []
    for trial in sorted(trials, key=lambda t: -t.score):
        score = f"{trial.score:.4f}" if math.isfinite(trial.score) else ""
        told = [str(trial.number), trial.state, score, str(trial.epoch), f"{trial.busy_s:.1f}"]
        cells = "".join(f"<td>{cell}</td>" for cell in told)
        rest = "".join(
            f"<td style='text-align:left'>{html.escape(cell)}</td>"
            for cell in (values_of(trial.values), trial.why)
        )
        rows.append(f"<tr>{cells}{rest}</tr>")
    head = "".join(
        f"<th>{name}</th>" for name in ("trial", "state", "validation", "epochs", "seconds", "values", "why")
    )
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _frame(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def _svg(figure: Figure, name: str) -> str:
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):  # ids that no other figure of the page has
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return f'<figure aria-label="{html.escape(name)}">{text[text.index("<svg") :]}</figure>'

"""ILI on generated worlds with the co-occurrence of a real label table and planted dependencies.  Resumable.

    python benchmarks/planted.py --labels llp_weak_labels.npz [--clips 11849] [--seeds 5] [--short]

Every seed draws a world of its own for each kind of world, and trains every method on it with the same seed.  Events
are drawn with the statistics of the table; one event of a clip is annotated, the rest is hidden; planted audio-visual
dependencies bring more.  Training and calibration see the annotation alone; true event sets measure.  All runs have the
same epochs, towers and batches and are measured with their last weights: nothing is selected.

    MAP         of the test split, relevant where two clips share a true event; mean of both directions
    nearer      by how much pairs that share a true event but not the annotation lie nearer with LIR than without it
                (1 - cos, paired bootstrap over clips), and the distance of class means, with over without
    graph       the run's own: F1 of planted adjacencies among all cross-modal, cross-class pairs, and the directions

Without --labels the tables' classes are generated.  The last line is JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from rich.console import Console
from rich.table import Table

WORLDS: dict[str, dict[str, Any]] = {
    "table, noise .25": {"label_model": "resample", "hidden": None, "noise": 0.25},
    "fit, 60 % hidden, noise .25": {"label_model": "fit", "hidden": 0.6, "noise": 0.25},
    "table, noise .5": {"label_model": "resample", "hidden": None, "noise": 0.5},
    "table, noise .25, 12 planted": {"label_model": "resample", "hidden": None, "noise": 0.25, "edges": 12},
}
SIZES = {"audio_size": 128, "visual_size": 256}

ILI = ("method.name=ili", "method.loss=info-nce")
PSD = (
    "method.name=psd",
    "method.metric=info-nce",
    "method.metric_temperature=0.05",
    "method.label=cross-entropy",
    "method.alignment=classes",
    "method.temperature=1",
    "method.dis=off",
)
PSD_OF_ILI = (*PSD, "method.metric_temperature=0.1")
"""LIR wants a softer student than PSD by itself does."""
ILI_PSD = (
    "method.name=ili",
    "method.loss=psd",
    *(setting.replace("method.", "method.psd.") for setting in PSD_OF_ILI[1:]),
)
METHODS: dict[str, tuple[str, ...]] = {
    "info-nce": ("method.name=metric", "method.loss=info-nce"),
    "info-nce, tau .05": ("method.name=metric", "method.loss=info-nce", "method.info_nce.temperature=0.05"),
    "triplet": ("method.name=metric", "method.loss=triplet"),
    "psd": ("method.name=psd",),
    "psd, info-nce": PSD,
    "psd, info-nce, tau .1": PSD_OF_ILI,
    "psd, info-nce, r = 1": (*PSD, "method.r_schedule=constant"),
    "ili": ILI,
    "ili, psd": ILI_PSD,
    "ili, permuted graph": (*ILI, "method.graph=permuted"),
    "ili, psd, permuted graph": (*ILI_PSD, "method.graph=permuted"),
    "ili, lift": (*ILI, "method.graph=lift"),
    "ili without LIR": (*ILI, "method.graph=none"),
}
"""What is trained; settings beyond these come from --set, for ILI with a graph from --ili."""


def without_lir(method: str) -> str | None:
    """The same student without LIR."""
    if not method.startswith("ili") or method == "ili without LIR":
        return None
    return "psd, info-nce, tau .1" if method.startswith("ili, psd") else "ili without LIR"


RUN = ("model.hidden=[128]", "model.embedding=64", "train.patience=off", "train.diagnose_every=off",
       "train.ema_decay=off", "train.validate_every=1000", "train.precision=bfloat16")  # fmt: skip


def world_of(name: str, clips: int, seed: int, labels: Path | None, out: Path) -> Path:
    """The data set of a world, generated once."""
    from raytrain.data.scene_config import SceneConfig
    from raytrain.data.scenes import generate_scenes

    knobs = {**WORLDS[name], "label_table": str(labels)}
    if labels is None:
        knobs = {**WORLDS[name], "classes": 25}
        del knobs["label_model"], knobs["hidden"]
    config = SceneConfig(clips=clips, seed=seed, **SIZES, **knobs)
    digest = hashlib.sha256(config.model_dump_json(exclude={"label_table"}).encode()).hexdigest()[:10]
    folder = out / "worlds" / digest
    if not folder.exists():
        generate_scenes(folder, config=config, processes=1)
    return folder


def overrides_of(method: str, seed: int, common: tuple[str, ...], ili: tuple[str, ...]) -> tuple[str, ...]:
    name, *settings = method.split("+")
    own = METHODS[name]
    if own[0] == ILI[0] and "method.graph=none" not in own:  # without a graph the teacher changes nothing
        own = (*own, *ili)
    if "method.graph=permuted" in own:
        own = (*own, f"method.permutation={seed}")
    return (*RUN, *common, *own, *settings)


def run(
    data: Path, overrides: tuple[str, ...], seed: int, key: str, out: Path, *, until_graph: bool
) -> dict[str, Any]:
    """Trains with the loop of a run without Ray; measures the last weights on the test split."""
    import torch

    torch.set_num_threads(1)
    from raytrain.cluster.alone import Held
    from raytrain.cluster.embed import embed
    from raytrain.cluster.run_folder import MOMENTS
    from raytrain.config import build
    from raytrain.data.manifest import open_dataset
    from raytrain.data.scene_truth import read_truth
    from raytrain.data.shards import read_split
    from raytrain.evaluation.moments import members_of, spread_of
    from raytrain.evaluation.retrieval import retrieve_both_ways
    from raytrain.methods import resolve

    dataset = open_dataset(str(data))
    given = build(overrides=overrides, data={"path": str(data)}, train={"seed": seed})
    config = resolve(given, dataset.manifest)
    start = time.process_time()
    held = Held.of(config, dataset, torch.device("cpu"))
    folder = out / "runs" / key
    training, source = held.prepare(config, folder)
    until, batches = None, training.order.num_batches
    if until_graph and (plan := training.method.graph_plan(training.num_steps, batches)) is not None:
        until = (plan.refreshes[0] + plan.lag) // batches + 1
    training.run(source, held.validation, None, until=until)
    seconds = time.process_time() - start
    test = read_split(dataset, "test")
    views = {name: torch.from_numpy(x) for name, x in test.views.items()}
    z = embed(training.method, views, torch.device("cpu"))
    assert test.labels is not None and test.events is not None
    members = members_of(torch.from_numpy(test.labels), None, dataset.manifest.num_classes)
    row: dict[str, Any] = {
        "map": retrieve_both_ways(z, test.events, by="events").map,
        "map_annotated": retrieve_both_ways(z, test.labels, by="class").map,
        "inter": spread_of(z, members)["inter"],
        "cpu_s": round(seconds, 1),
    }
    if training.teaching.graph is not None:
        strength = read_truth(dataset, "train").graph.strength > 0
        row["graph"] = marks(training.teaching.graph, folder / MOMENTS, strength)
    (out / "embeddings").mkdir(exist_ok=True)
    np.savez(out / "embeddings" / f"{key}.npz", audio=z["audio"].numpy(), visual=z["visual"].numpy())
    shutil.rmtree(folder)
    return row


def marks(found: Any, moments: Path, planted: np.ndarray) -> dict[str, Any]:
    """How right a graph of the run is, beside lift from the same moments at the threshold that suits it best."""
    from raytrain.evaluation.latent import pair_f1
    from raytrain.graph.accumulator import MomentAccumulator
    from raytrain.graph.dependency import cross_modal

    across = cross_modal(len(planted) // 2)
    frequent = across & (found.edge_frequency >= 0.5)
    way = found.direction_frequency
    told = [way[x, y] > way[y, x] for x, y in zip(*np.nonzero(planted & frequent), strict=True)]
    with np.load(moments, allow_pickle=False) as arrays:
        sums = MomentAccumulator.from_arrays({name: arrays[name] for name in arrays.files})
    z = np.tile(sums.moments().lift(), (2, 1))
    return {
        "f1": pair_f1(frequent, planted, across),
        "f1_stable": pair_f1(found.stable, planted, across),
        "edges": int(frequent.sum()) // 2,
        "hits": int((frequent & (planted | planted.T)).sum()) // 2,
        "planted": int(planted.sum()),
        "direction": float(np.mean(told)) if told else None,
        "f1_lift": pair_f1(z > 4, planted, across),
        "f1_lift_best": max(pair_f1(z > t, planted, across) for t in (2, 4, 8, 16, 32, 64)),
        "verdict": found.verdict,
        "adjacency": np.flatnonzero(frequent).tolist(),
    }


def nearer(with_lir: str, without: str, data: Path, out: Path) -> dict[str, float]:
    """Of pairs that share a true event but not the annotation: how much nearer LIR brings them."""
    from raytrain.data.manifest import open_dataset
    from raytrain.data.shards import read_split
    from raytrain.evaluation.latent import distance_test, unlike_labels

    test = read_split(open_dataset(str(data)), "test", views=())
    assert test.labels is not None and test.events is not None
    events = test.events.astype(np.float32)
    partners = (events @ events.T > 0) & unlike_labels(test.labels, test.labels)
    pairs = []
    for key in (without, with_lir):
        with np.load(out / "embeddings" / f"{key}.npz") as z:
            pairs.append((np.asarray(z["audio"]), np.asarray(z["visual"])))
    found = distance_test(
        pairs[0], pairs[1], partners, level=0.95, num_resamples=2000, generator=np.random.default_rng(0)
    )
    return {"nearer": found.difference, "low": found.interval.low, "high": found.interval.high}


def summary(
    rows: list[dict[str, Any]], worlds: list[str], methods: list[str], out: Path
) -> list[dict[str, Any]]:
    """One entry per world and method."""
    from raytrain.evaluation.latent import adjacency_distance
    from raytrain.evaluation.statistics import sign_flip_test

    def of(world: str, method: str, name: str) -> np.ndarray:
        return np.array([r[name] for r in rows if (r["world"], r["method"]) == (world, method)], dtype=float)

    entries: list[dict[str, Any]] = []
    for world in [*worlds, "all worlds"]:
        names = worlds if world == "all worlds" else [world]
        maps = {m: np.concatenate([of(w, m, "map") for w in names]) for m in methods}
        plain = [m for m in ("info-nce", "info-nce, tau .05", "triplet") if m in methods]
        distilled = [m for m in methods if m.startswith("psd")]
        best, best_psd = (
            max(group, key=lambda m, maps=maps: float(maps[m].mean()), default=None)
            for group in (plain, distilled)
        )
        for method in methods:
            mine = [r for r in rows if r["method"] == method and r["world"] in names]
            entry: dict[str, Any] = {"world": world, "method": method, "num": len(maps[method])}
            entry["map_mean"] = round(float(maps[method].mean()), 4)
            entry["map_sd"] = round(float(maps[method].std(ddof=1)), 4) if len(maps[method]) > 1 else None
            control = without_lir(method)
            against: dict[str, str | None] = {
                "best plain": best,
                "psd": best_psd,
                "without LIR": control or "ili without LIR",
            }
            for name, other in against.items():
                if other is not None and other in methods and other != method:
                    difference = maps[method] - maps[other]
                    p = sign_flip_test(difference, num_resamples=100_000, generator=np.random.default_rng(0))
                    entry[f"vs {name}"] = [round(float(difference.mean()), 4), round(p, 4)]
            without = [r for r in rows if r["method"] == control and r["world"] in names]
            if without:
                tests = [
                    nearer(a["key"], b["key"], Path(a["data"]), out)
                    for a, b in zip(mine, without, strict=True)
                ]
                entry["nearer"] = round(float(np.mean([t["nearer"] for t in tests])), 4)
                entry["nearer_above_0"] = f"{sum(t['low'] > 0 for t in tests)} of {len(tests)}"
                ratios = [a["inter"] / b["inter"] for a, b in zip(mine, without, strict=True)]
                entry["inter_ratio"] = round(float(np.mean(ratios)), 4)
            graphs = [r["graph"] for r in mine if "graph" in r]
            if graphs:
                keys = ("f1", "f1_stable", "f1_lift", "f1_lift_best", "edges", "hits")
                entry["graph"] = {k: round(float(np.mean([g[k] for g in graphs])), 3) for k in keys}
                told = [g["direction"] for g in graphs if g["direction"] is not None]
                entry["graph"]["direction"] = round(float(np.mean(told)), 3) if told else None
                entry["graph"]["linked"] = f"{sum(g['verdict'] == 'linked' for g in graphs)} of {len(graphs)}"
                if len(graphs) > 1 and world != "all worlds":
                    matrices = [np.isin(np.arange(2500), g["adjacency"]) for g in graphs]
                    entry["graph"]["adjacency_distance"] = round(adjacency_distance(matrices), 2)
            entries.append(entry)
    return entries


def show(entries: list[dict[str, Any]], console: Console) -> None:
    table = Table("world", "method", "runs", "MAP", "sd", "vs best plain (p)", "vs psd (p)", "vs without LIR (p)",
                  "nearer", "above 0", "inter", "graph F1", "lift", "direction", "linked")  # fmt: skip
    for e in entries:
        versus = [e.get(f"vs {name}") for name in ("best plain", "psd", "without LIR")]
        graph = e.get("graph", {})
        cells = [e["world"], e["method"], e["num"], e["map_mean"], e["map_sd"],
                 *("" if v is None else f"{v[0]:+.4f} ({v[1]:.3f})" for v in versus),
                 e.get("nearer"), e.get("nearer_above_0"), e.get("inter_ratio"), graph.get("f1"),
                 graph.get("f1_lift_best"), graph.get("direction"), graph.get("linked")]  # fmt: skip
        table.add_row(*("" if cell is None else str(cell) for cell in cells))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__
    )
    parser.add_argument("--labels", type=Path, help="multi-hot label table (.npz)")
    parser.add_argument("--worlds", default=";".join(WORLDS), help="names of worlds, ';' between them")
    parser.add_argument(
        "--methods",
        default=";".join(METHODS),
        help="names of methods, ';' between them, each perhaps with settings: 'ili+method.t_teach=0.2'",
    )
    parser.add_argument("--clips", type=int, default=11_849)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=10, help="settings were looked for on seed 1")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument(
        "--ili", action="append", default=[], metavar="KEY=VALUE", help="settings of ILI with a graph"
    )
    parser.add_argument(
        "--until-graph",
        action="store_true",
        help="runs with a graph end with the epoch in which it is adopted, and MAP is of the weights then",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/planted"))
    parser.add_argument("--short", action="store_true", help="one small world, one seed, few epochs")
    options = parser.parse_args()
    worlds, methods = options.worlds.split(";"), options.methods.split(";")
    if options.short:
        worlds, options.clips, options.seeds, options.epochs = worlds[:1], 3000, 1, 4
        options.out = options.out / "short"
    for given, known in ((worlds, WORLDS), ([method.split("+")[0] for method in methods], METHODS)):
        if unknown := [name for name in given if name not in known]:
            raise SystemExit(f"{unknown[0]!r} is unknown; known: {', '.join(known)}")
    options.out.mkdir(parents=True, exist_ok=True)
    from raytrain.cluster.study import Results

    results, rows = Results(options.out / "results.jsonl"), []
    console = Console(width=None if Console().is_terminal else 200)
    common = (f"train.epochs={options.epochs}", *options.overrides)
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for world in worlds:
            data = world_of(world, options.clips, seed, options.labels, options.out)
            for method in methods:
                overrides = overrides_of(method, seed, common, tuple(options.ili))
                text = json.dumps([data.name, overrides, seed] + ["until graph"] * options.until_graph)
                key = hashlib.sha256(text.encode()).hexdigest()[:16]
                if key not in results.by_key:
                    found = run(data, overrides, seed, key, options.out, until_graph=options.until_graph)
                    row = {
                        "key": key,
                        "world": world,
                        "method": method,
                        "seed": seed,
                        "data": str(data),
                        **found,
                    }
                    results.add(row)
                    f1 = f", graph F1 {found['graph']['f1']:.3f}" if "graph" in found else ""
                    console.print(
                        f"{world}, {method}, seed {seed}: {found['map']:.4f}{f1}, {found['cpu_s']} CPU s",
                        highlight=False,
                    )
                rows.append(results.by_key[key])
    entries = summary(rows, worlds, methods, options.out)
    show(entries, console)
    print(json.dumps({"clips": options.clips, "epochs": options.epochs, "results": entries}))


if __name__ == "__main__":
    main()

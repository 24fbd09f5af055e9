"""`raytrain index` and `raytrain search`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from raytrain.cluster.bundle import Index


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the index.")
@click.option(
    "--split",
    default="test",
    show_default=True,
    type=click.Choice(["train", "validation", "test", "all"]),
    help="Clips that can be found.",
)
def index(run: Path, out: Path, split: str) -> None:
    """Embed a split with the best weights of RUN: model and embeddings in one folder that can be searched."""
    from raytrain.cluster.bundle import splits_named, write_index

    number = write_index(run, out, splits_named(split))
    click.echo(f"{number:,} clips in {out}; search them with `raytrain search {out} --clip ID`")


@click.command()
@click.argument("folder", metavar="INDEX", type=click.Path(path_type=Path))
@click.option("--clip", help="Query by a clip of the index.")
@click.option(
    "--features",
    type=click.Path(path_type=Path),
    help="Query by feature vectors: a .npy of one (f) or several (q, f), unscaled.",
)
@click.option("--from", "source", help="View of the query; by default the first one.")
@click.option("--to", "target", help="View that is searched; by default the last one.")
@click.option("-k", "count", default=10, show_default=True, help="Clips to find.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON only.")
def search(
    folder: Path,
    clip: str | None,
    features: Path | None,
    source: str | None,
    target: str | None,
    count: int,
    as_json: bool,
) -> None:
    """Find the clips of INDEX that are nearest to a clip or to feature vectors, across the views."""
    from raytrain.cluster.bundle import open_index

    if (clip is None) == (features is None):
        raise click.UsageError("give either --clip or --features")
    index = open_index(folder)
    views = list(index.embeddings)
    source, target = source or views[0], target or views[-1]
    if clip is not None:
        names, query = [clip], index.of_clip(source, clip)
    else:
        assert features is not None
        rows = _read(features)
        names, query = [f"row {i}" for i in range(len(rows))], index.embed(source, rows)
    found = index.search(query, view=target, count=count)
    answers = [
        {"query": name, "found": [_hit(index, *hit) for hit in zip(items, cosines, strict=True)]}
        for name, items, cosines in zip(names, found.item.tolist(), found.cosine.tolist(), strict=True)
    ]
    if as_json:
        click.echo(json.dumps(answers))
        return
    for answer in answers:
        _print(answer, source, target)


def _hit(index: Index, item: int, cosine: float) -> dict[str, Any]:
    label = None if index.labels is None else int(index.labels[item])
    known = label is not None and label >= 0
    return {
        "clip": index.clips[item],
        "cosine": cosine,
        "class": index.manifest.classes[label] if known and label is not None else None,
    }


def _read(path: Path) -> Any:
    import numpy as np

    from raytrain.data.readers.npy import NpyReader

    if path.suffix != ".npy" or not path.is_file():
        raise ValueError(f"{path} is not a .npy file; save the feature vectors with numpy.save")
    reader = NpyReader(path)
    try:
        (name, info), *_ = reader.arrays().items()
        if len(info.shape) not in (1, 2) or info.dtype.kind not in "fiu":
            raise ValueError(
                f"{path} holds {info.dtype} of shape {info.shape}; allowed are numbers (f) or (q, f)"
            )
        return np.atleast_2d(reader.read(name, 0, info.shape[0])).astype(np.float32)
    finally:
        reader.close()


def _print(answer: dict[str, Any], source: str, target: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{source} of {answer['query']} -> {target}", title_justify="left")
    for column in ("", "clip", "class", "cosine"):
        table.add_column(column, justify="right" if column in ("", "cosine") else "left")
    for place, hit in enumerate(answer["found"], 1):
        table.add_row(str(place), hit["clip"], hit["class"] or "", f"{hit['cosine']:.4f}")
    Console(width=None if Console().is_terminal else 120).print(table)

"""Embeddings and class scores of many rows, a chunk at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from raytrain.collectives import gather_rows, num_ranks, rank
from raytrain.data.order import share
from raytrain.methods.base import Method

CHUNK_ROWS = 8192

Views = Mapping[str, Float[Tensor, "n _"]]


def embed(method: Method, views: Views, device: torch.device) -> dict[str, Float[Tensor, "n d"]]:
    """Unit-norm embeddings by view, on the device, on every rank; each rank computes its share of the rows."""
    method.eval()
    return _by_chunks(method.embed, views, device)


def class_scores(method: Method, views: Views, device: torch.device) -> dict[str, Float[Tensor, "n c"]]:
    """Class scores by view, likewise; nothing where the method is no classifier."""
    method.eval()
    return _by_chunks(method.class_scores, views, device)


@torch.no_grad()
def _by_chunks(
    made_of: Callable[[Mapping[str, Tensor]], dict[str, Tensor]], views: Views, device: torch.device
) -> dict[str, Float[Tensor, "n _"]]:
    num_rows = len(next(iter(views.values())))
    parts = [share(num_rows, r, num_ranks()) for r in range(num_ranks())]
    own = parts[rank()]
    chunks: dict[str, list[Tensor]] = {}
    for start in range(own.start, max(own.stop, own.start + 1), CHUNK_ROWS):
        rows = slice(start, min(start + CHUNK_ROWS, own.stop))
        for name, z in made_of({name: x[rows].to(device) for name, x in views.items()}).items():
            chunks.setdefault(name, []).append(z.float())
    sizes = tuple(part.stop - part.start for part in parts)
    return {name: gather_rows(torch.cat(of), sizes) for name, of in chunks.items()}

"""Whether linked but unlabelled pairs lie nearer to each other: the false-negative distance test, and graphs compared.

The diagnostics of the appendix of ILI (Zeng et al.): mean distance over co-activated pairs with and without LIR with
an interval, edge frequencies over runs, and the mean Frobenius distance of their adjacencies.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float, Int

from raytrain.evaluation.statistics import Comparison, compare
from raytrain.types import UNANNOTATED


def co_activated(
    source: Float[np.ndarray, "q c"],
    target: Float[np.ndarray, "g c"],
    edges: Bool[np.ndarray, "c c"],
    *,
    threshold: float,
) -> Bool[np.ndarray, "q g"]:
    """Whether (n, m) is in P_ij = {s_n[i] > tau, s_m[j] > tau} for some edge i -> j."""
    active_source, active_target = (np.asarray(s > threshold, np.float32) for s in (source, target))
    return active_source @ edges.astype(np.float32) @ active_target.T > 0


def unlike_labels(query: Int[np.ndarray, " q"], gallery: Int[np.ndarray, " g"]) -> Bool[np.ndarray, "q g"]:
    """Whether both are annotated, and with different classes."""
    known = (query != UNANNOTATED)[:, None] & (gallery != UNANNOTATED)[None, :]
    return known & (query[:, None] != gallery[None, :])


def distance_to_partners(
    query: Float[np.ndarray, "q d"], gallery: Float[np.ndarray, "g d"], partners: Bool[np.ndarray, "q g"]
) -> Float[np.ndarray, " q"]:
    """Mean of 1 - cos from each row to its partners; NaN where it has none.  Rows are unit-norm."""
    number = partners.sum(axis=1)
    total = number - ((partners.astype(query.dtype) @ gallery) * query).sum(axis=1)
    return np.divide(total, number, out=np.full(len(query), np.nan), where=number > 0)


def distance_test(
    without: tuple[Float[np.ndarray, "q d"], Float[np.ndarray, "g d"]],
    with_lir: tuple[Float[np.ndarray, "q d"], Float[np.ndarray, "g d"]],
    partners: Bool[np.ndarray, "q g"],
    *,
    level: float,
    num_resamples: int,
    generator: np.random.Generator,
) -> Comparison:
    """By how much the partners of a row lie nearer with LIR than without: above 0 is nearer.

    Paired by row: the interval is a bootstrap over rows.  Raises ValueError where no row has a partner.
    """
    rows = [distance_to_partners(*pair, partners) for pair in (without, with_lir)]
    return compare(rows[0], rows[1], level=level, num_resamples=num_resamples, generator=generator)


def edge_frequency(graphs: list[Bool[np.ndarray, "v v"]]) -> Float[np.ndarray, "v v"]:
    """Share of the graphs (of seeds, of refreshes) in which x and y are adjacent."""
    return np.mean([graph | graph.T for graph in graphs], axis=0)


def adjacency_distance(graphs: list[Float[np.ndarray, "v v"]] | list[Bool[np.ndarray, "v v"]]) -> float:
    """Mean Frobenius distance over all pairs of graphs.  Raises ValueError for fewer than two."""
    if len(graphs) < 2:
        raise ValueError(f"got {len(graphs)} graph; a distance needs at least two")
    numbers = [np.asarray(graph, np.float64) for graph in graphs]
    return float(np.mean([np.linalg.norm(a - b) for a, b in combinations(numbers, 2)]))


def pair_f1(
    found: Bool[np.ndarray, "v v"], planted: Bool[np.ndarray, "v v"], among: Bool[np.ndarray, "v v"]
) -> float:
    """F1 of adjacencies, direction aside, over the pairs in `among`; 0 where nothing is right."""
    found, planted = (found | found.T) & among, (planted | planted.T) & among
    return float(2 * (found & planted).sum() / max(int(found.sum() + planted.sum()), 1))

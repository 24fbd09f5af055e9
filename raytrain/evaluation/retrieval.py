"""Cross-modal retrieval: the metrics of a full ranking, per query, one way and both ways.

The query's own pair stays in the gallery.  Scores are float32 cosines.  Ties are broken against us: among
items of equal score the relevant ones stand last, so a collapsed model gets the worst value and the order of
rows decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from raytrain.evaluation.ranking import Ranking, rank
from raytrain.evaluation.relevance import By, Relevance
from raytrain.types import UNANNOTATED

Embeddings = Float[np.ndarray, "_ _"] | Float[Tensor, "_ _"]
"""Rows by dimensions; sizes that do not fit are refused by name."""
Known = Integer[np.ndarray, "..."] | Bool[np.ndarray, "..."] | Integer[Tensor, "..."] | Bool[Tensor, "..."]

ELEMENTS_AT_ONCE = 2**24


@dataclass(frozen=True)
class Retrieval:
    """One direction.  Per query, NaN where nothing is relevant: such queries count in no mean, and are
    counted."""

    ranking: Ranking
    relevance: Relevance

    @property
    def ap(self) -> Float[np.ndarray, " q"]:
        """Average precision of each query over the full ranking; NaN where nothing is relevant."""
        return self.ranking.ap

    @property
    def map(self) -> float:
        """Mean average precision over the full ranking."""
        return _mean(self.ranking.ap)

    @property
    def running_map(self) -> float:
        """The running MAP of some released code: AP@j averaged over every cut-off j.  Not MAP; it reads
        higher."""
        return _mean(self.ranking.running_ap)

    def recall_at(self, k: int) -> float:
        """Share of the queries with a relevant item among the first k: R@k as the field uses it.

        By pair, the one relevant item is the query's own.
        """
        first = self.ranking.first[self._some]
        return _mean((first <= k).astype(np.float64))

    def precision_at(self, k: int) -> float:
        """Relevant items among the first k, over k."""
        return _mean(self._top(k).sum(axis=1) / k)

    def ndcg_at(self, k: int) -> float:
        """Discounted cumulative gain of the first k with gain 1 and discount log2(rank + 1), over the best
        possible.

        Järvelin & Kekäläinen, TOIS 2002.
        """
        discount = 1 / np.log2(np.arange(2, k + 2))  # [k]
        top = self._top(k)
        best = np.cumsum(discount)[np.minimum(self.ranking.num_relevant[self._some], k) - 1]
        return _mean((top * discount[: top.shape[1]]).sum(axis=1) / best)

    @property
    def median_rank(self) -> float:
        """Median rank of the first relevant item, counted from 1."""
        first = self.ranking.first[self._some]
        return float(np.median(first)) if len(first) else float("nan")

    @property
    def num_queries(self) -> int:
        return len(self.ranking.ap)

    @property
    def num_without_relevant(self) -> int:
        return int(np.sum(self.ranking.num_relevant == 0))

    def per_class(self) -> dict[int, float]:
        """MAP of the queries of each class, or of those that have the event; classes without such a query are
        left out.  Raises ValueError for relevance by pair."""
        known = self.relevance.query
        if self.relevance.by == "pair":
            raise ValueError("per-class MAP needs classes or events, but relevance is by 'pair'")
        if self.relevance.by == "events":
            members = {c: known[:, c] > 0 for c in range(known.shape[1])}
        else:
            members = {int(c): known == c for c in np.unique(known) if c != UNANNOTATED}
        return {c: _mean(self.ap[of]) for c, of in members.items() if np.any(self._some & of)}

    def summary(self) -> dict[str, float]:
        return {
            "map": self.map,
            "running_map": self.running_map,
            **{f"r@{k}": self.recall_at(k) for k in (1, 5, 10)},
            **{f"p@{k}": self.precision_at(k) for k in (1, 10)},
            "ndcg@10": self.ndcg_at(10),
            "median_rank": self.median_rank,
            "num_queries": self.num_queries,
            "num_without_relevant": self.num_without_relevant,
        }

    @property
    def _some(self) -> Bool[np.ndarray, " q"]:
        return self.ranking.num_relevant > 0

    def _top(self, k: int) -> Bool[np.ndarray, "q k"]:
        from_all = self.ranking.top.shape[1]
        assert k <= from_all or from_all == len(self.relevance.gallery), f"only {from_all} items are kept"
        return self.ranking.top[self._some, :k]


@dataclass(frozen=True)
class BothWays:
    """Both directions between two views, by name, the first view asking first."""

    views: tuple[str, str]
    there: Retrieval
    back: Retrieval

    @property
    def map(self) -> float:
        """Mean of the MAP of both directions."""
        return (self.there.map + self.back.map) / 2

    @property
    def ap(self) -> Float[np.ndarray, " q"]:
        """Of each clip, the mean AP of its two queries: what a comparison of two runs resamples."""
        return (self.there.ap + self.back.ap) / 2

    def summary(self) -> dict[str, dict[str, float]]:
        there, back = self.there.summary(), self.back.summary()
        first, second = self.views
        both = {key: (there[key] + back[key]) / 2 for key in there if not key.startswith("num_")}
        return {f"{first}->{second}": there, f"{second}->{first}": back, "mean": both}


@dataclass(frozen=True)
class AllWays:
    """Both directions between every two of some views; of one view there are none."""

    pairs: tuple[BothWays, ...]

    @property
    def ways(self) -> dict[tuple[str, str], Retrieval]:
        """By (query's view, gallery's view)."""
        found: dict[tuple[str, str], Retrieval] = {}
        for pair in self.pairs:
            first, second = pair.views
            found |= {(first, second): pair.there, (second, first): pair.back}
        return found

    @property
    def map(self) -> float:
        """Mean of the MAP of all directions; NaN of one view."""
        return float(np.mean([way.map for way in self.ways.values()])) if self.pairs else float("nan")

    def ap_of_clips(self) -> Float[np.ndarray, " n"]:
        """AP of each clip: the mean over its queries that have an answer; NaN where none has."""
        ap = np.stack([way.ap for way in self.ways.values()])
        some = ~np.isnan(ap).all(axis=0)
        mean = np.full(ap.shape[1], np.nan)
        mean[some] = np.nanmean(ap[:, some], axis=0)
        return mean

    def per_class(self) -> dict[int, float]:
        """MAP by class, mean of all directions; classes without a query in one of them are left out."""
        found = [way.per_class() for way in self.ways.values()]
        return {c: sum(of[c] for of in found) / len(found) for c in found[0] if all(c in of for of in found)}

    def summary(self) -> dict[str, dict[str, float]]:
        """By direction, and `mean` over them; nothing of one view."""
        found = {f"{query}->{gallery}": way.summary() for (query, gallery), way in self.ways.items()}
        if not found:
            return {}
        every = list(found.values())
        keys = [key for key in every[0] if not key.startswith("num_")]
        return {**found, "mean": {key: sum(of[key] for of in every) / len(every) for key in keys}}


def retrieve(
    query: Embeddings, gallery: Embeddings, query_known: Known, gallery_known: Known, *, by: By
) -> Retrieval:
    """Rank the whole gallery for every query by cosine, highest first, and see where the relevant items
    stand.

    `query`, `gallery`: embeddings of any norm, numpy or torch; on a GPU they are ranked there.  `*_known`: a
    class per row (by='class'), a multi-hot row (by='events'), a row id (by='pair').
    Raises ValueError for an empty side, rows that do not match, and NaN or infinite embeddings.
    """
    relevance = Relevance(by, _as_array(query_known), _as_array(gallery_known))
    for side, rows, known in (("query", query, relevance.query), ("gallery", gallery, relevance.gallery)):
        if len(rows) == 0:
            raise ValueError(f"retrieval: the {side} side has no rows; give at least one clip")
        if len(rows) != len(known):
            raise ValueError(
                f"retrieval: {len(rows)} {side} embeddings but {len(known)} rows of {by}; "
                "there must be one row per clip"
            )
    if query.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"retrieval: queries have {query.shape[1]} dimensions and the gallery {gallery.shape[1]}; "
            "both views must be embedded in the same space"
        )
    return Retrieval(rank(_unit(query, "query"), _unit(gallery, "gallery"), relevance), relevance)


def retrieve_both_ways(embeddings: Mapping[str, Embeddings], known: Known, *, by: By) -> BothWays:
    """Both directions between the two views of the same clips; row i of either view is clip i.

    With by='pair' and row ids in `known` it is paired retrieval, which needs no labels.
    """
    if len(embeddings) != 2:
        raise ValueError(
            f"retrieval needs two views, got {len(embeddings)}: {', '.join(embeddings) or 'none'}"
        )
    (first, second) = embeddings
    there = retrieve(embeddings[first], embeddings[second], known, known, by=by)
    back = retrieve(embeddings[second], embeddings[first], known, known, by=by)
    return BothWays((first, second), there, back)


def retrieve_all_ways(embeddings: Mapping[str, Embeddings], known: Known, *, by: By) -> AllWays:
    """Both directions between every two views of the same clips; row i of every view is clip i."""
    pairs = combinations(embeddings, 2)
    return AllWays(
        tuple(retrieve_both_ways({a: embeddings[a], b: embeddings[b]}, known, by=by) for a, b in pairs)
    )


def recall_within(
    embeddings: Embeddings, known: Known, *, by: By, ks: tuple[int, ...] = (1, 5, 10)
) -> dict[str, float]:
    """R@k of one view: every clip asks for the other clips of the split, its own left out.

    The share of queries with a relevant clip among the first k, of those that have a relevant clip at all; NaN where
    there is none.  Ties count against us.  By pair nothing is relevant but the clip that is left out: refused.
    """
    if by == "pair":
        raise ValueError("retrieval within a view needs classes or events: the clip's own pair is left out")
    known = _as_array(known)
    relevance, rows = Relevance(by, known, known), _unit(embeddings, "query")
    rows = rows.cpu().numpy() if isinstance(rows, Tensor) else rows
    first = np.full(len(rows), np.nan)
    step = max(1, ELEMENTS_AT_ONCE // len(rows))
    for start in range(0, len(rows), step):
        here = slice(start, min(start + step, len(rows)))
        scores, relevant = rows[here] @ rows.T, relevance.block(here)
        own = np.arange(len(rows))[None, :] == np.arange(here.start, here.stop)[:, None]
        best = np.where(relevant & ~own, scores, -np.inf).max(axis=1, keepdims=True)
        ahead = ((scores >= best) & ~relevant & ~own).sum(axis=1)
        first[here] = np.where(np.isfinite(best[:, 0]), ahead + 1.0, np.nan)
    some = first[~np.isnan(first)]
    return {f"r@{k}": _mean((some <= k).astype(np.float64)) for k in ks}


def _unit(rows: Embeddings, side: str) -> Embeddings:
    """Rows of norm one in float32, the norm taken in float64; a row of zeros stays, at cosine 0 from
    everything."""
    if isinstance(rows, Tensor):
        precise = rows.detach().double()
        if not precise.isfinite().all():
            raise ValueError(_not_finite(side, int((~precise.isfinite().all(dim=1)).sum())))
        norm = precise.norm(dim=1, keepdim=True)
        return (precise / torch.where(norm > 0, norm, 1)).float()
    exact = rows.astype(np.float64)
    finite = np.isfinite(exact).all(axis=1)
    if not finite.all():
        raise ValueError(_not_finite(side, int((~finite).sum())))
    length = np.linalg.norm(exact, axis=1, keepdims=True)
    return (exact / np.where(length > 0, length, 1)).astype(np.float32)


def _not_finite(side: str, count: int) -> str:
    return (
        f"retrieval: {count} {side} embeddings are NaN or infinite; "
        "the model has diverged or its input is broken"
    )


def _as_array(known: Known) -> np.ndarray:
    return known.cpu().numpy() if isinstance(known, Tensor) else np.asarray(known)


def _mean(values: Float[np.ndarray, " q"]) -> float:
    """Mean over the queries that have a relevant item; NaN where there is none."""
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if len(kept) else float("nan")

"""The score by which a run is selected: retrieval or top-1 on the validation split, never on the test split."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from raytrain.cluster.embed import class_scores, embed
from raytrain.cluster.sources import batch_of
from raytrain.collectives import num_ranks, rank
from raytrain.data.reading import Annotation, Reading
from raytrain.evaluation.classification import top_1
from raytrain.evaluation.geometry import cheap_geometry
from raytrain.evaluation.moments import members_of, spread_of
from raytrain.evaluation.relevance import By
from raytrain.evaluation.retrieval import retrieve_all_ways
from raytrain.methods.base import Method

RELEVANT_BY: dict[Annotation, By] = {"label": "class", "events": "events", "none": "pair"}
"""Selection sees what training sees: never the hidden events of a clip."""


class Validation:
    """MAP where the run may see labels, recall of the clip's own pair where it may not; a classifier's top-1."""

    def __init__(self, reading: Reading, device: torch.device):
        self.rows = batch_of(reading.whole())
        """Without what training may not see."""
        self._by = RELEVANT_BY[reading.annotation]
        self._device = device
        self.classes = reading.dataset.manifest.classes
        self.num_classes = reading.dataset.manifest.num_classes

    def selects_by(self, method: Method) -> str:
        """The score that selects the method's weights."""
        if method.selected_by == "top-1":
            return "top-1"
        return "r@10" if self._by == "pair" else "map"

    def score(self, method: Method) -> dict[str, float]:
        """The scores, and `diagnostics/validation/...`, on every rank; rank 0 ranks.

        Retrieval is a mean over all ordered pairs of views, top-1 over the views that are classified.
        """
        embeddings = embed(method, self.rows.views, self._device)
        scored = class_scores(method, self.rows.views, self._device)
        found = [{**self._top_1(scored), **self._across(embeddings)} if rank() == 0 else {}]
        if num_ranks() > 1:
            dist.broadcast_object_list(found, src=0, device=self._device)
        seen = {**self._spread(embeddings), **cheap_geometry(embeddings)}
        return {**found[0], **{f"diagnostics/validation/{name}": value for name, value in seen.items()}}

    def _across(self, embeddings: dict[str, Tensor]) -> dict[str, float]:
        known = {"class": self.rows.labels, "events": self.rows.events, "pair": self.rows.row}[self._by]
        assert known is not None, "the reading has the annotation that it names"
        found = retrieve_all_ways(embeddings, known, by=self._by)
        if not found.pairs:
            return {}
        mean = found.summary()["mean"]
        if self._by == "pair":
            return {name: mean[name] for name in ("r@10", "r@1", "median_rank")}
        ways = {f"map_{query}_to_{gallery}": way.map for (query, gallery), way in found.ways.items()}
        return {**{name: mean[name] for name in ("map", "r@1", "r@10")}, **ways}

    def _top_1(self, scored: dict[str, Tensor]) -> dict[str, float]:
        labels = self.rows.labels
        if not scored or labels is None:
            return {}
        found = [top_1(scores, labels.to(scores.device)) for scores in scored.values()]
        return {"top-1": sum(found) / len(found)}

    def _spread(self, embeddings: dict[str, Tensor]) -> dict[str, float]:
        members = members_of(self.rows.labels, self.rows.events, self.num_classes)
        return spread_of(embeddings, None if members is None else members.to(self._device))

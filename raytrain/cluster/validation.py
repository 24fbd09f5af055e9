"""The score by which a run is selected: retrieval on the validation split, never on the test split."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from raytrain.cluster.embed import embed
from raytrain.cluster.sources import batch_of
from raytrain.collectives import num_ranks, rank
from raytrain.data.reading import Annotation, Reading
from raytrain.evaluation.geometry import cheap_geometry
from raytrain.evaluation.moments import members_of, spread_of
from raytrain.evaluation.relevance import By
from raytrain.evaluation.retrieval import retrieve_both_ways
from raytrain.methods.base import Method

RELEVANT_BY: dict[Annotation, By] = {"label": "class", "events": "events", "none": "pair"}
"""Selection sees what training sees: never the hidden events of a clip."""


class Validation:
    """MAP where the run may see labels; recall of the clip's own pair among ten where it may not."""

    def __init__(self, reading: Reading, device: torch.device):
        self.rows = batch_of(reading.whole())
        """Without what training may not see."""
        self._by = RELEVANT_BY[reading.annotation]
        self._device = device
        self.classes = reading.dataset.manifest.classes
        self.num_classes = reading.dataset.manifest.num_classes
        self.selects_by = "r@10" if self._by == "pair" else "map"

    def score(self, method: Method) -> dict[str, float]:
        """The scores, and `diagnostics/validation/...`, on every rank; rank 0 ranks."""
        embeddings = embed(method, self.rows.views, self._device)
        first, second = embeddings
        paired = self._by == "pair"
        ways = [] if paired else [f"map_{first}_to_{second}", f"map_{second}_to_{first}"]
        means = ["r@10", "r@1", "median_rank"] if paired else ["map", "r@1", "r@10"]
        values = torch.zeros(len(means + ways), dtype=torch.float64, device=self._device)
        if rank() == 0:
            known = {"class": self.rows.labels, "events": self.rows.events, "pair": self.rows.row}[
                self._by
            ]
            assert known is not None, "the reading has the annotation that it names"
            found = retrieve_both_ways(embeddings, known, by=self._by)
            mean = found.summary()["mean"]
            scores = [mean[name] for name in means] + ([] if paired else [found.there.map, found.back.map])
            values.copy_(torch.tensor(scores, dtype=torch.float64))
        if num_ranks() > 1:
            dist.broadcast(values, src=0)
        seen = {**self._spread(embeddings), **cheap_geometry(embeddings)}
        return {
            **dict(zip(means + ways, values.tolist(), strict=True)),
            **{f"diagnostics/validation/{name}": value for name, value in seen.items()},
        }

    def _spread(self, embeddings: dict[str, Tensor]) -> dict[str, float]:
        members = members_of(self.rows.labels, self.rows.events, self.num_classes)
        return spread_of(embeddings, None if members is None else members.to(self._device))

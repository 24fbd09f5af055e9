"""Moments of soft labels: all that a dependency graph needs of them (`graph.accumulator` gathers them)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

Kind = Literal["context", "within", "total"]
Sums = tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."], Float[np.ndarray, "..."]]


@dataclass(frozen=True)
class Moments:
    """Sums over clips, and what follows from them.  v = 2c columns, audio before visual."""

    count: Float[np.ndarray, " c"]
    total: Float[np.ndarray, "c v"]
    squares: Float[np.ndarray, "c v"]
    outer: Float[np.ndarray, "v v"]
    num_samples: float
    """n_eff = (sum w)^2 / sum w^2, at most the clips that there are."""
    ridge: float
    uncut: Sums | None = None
    """Count (c), total and squares (c, v) of all clips and of uncut columns; None where nothing was cut or left out,
    and of permuted labels."""
    told: Sums | None = None
    """Count (2, c), total (2, c, v) and squares (2, v) by the one view that tells the annotated class."""

    def covariance(self, kind: Kind) -> Float[np.ndarray, "p p"]:
        """Covariance of the columns: `total`; `within` classes; or `context`, where c one-hot label columns
        stand before them."""
        n = self.count.sum()
        mean = self.total.sum(axis=0) / n
        columns = self.outer / n - np.outer(mean, mean)
        if kind == "within":
            inside = np.maximum(self.count, 1e-300)
            columns = self.outer / n - (self.total / inside[:, None]).T @ self.total / n
        columns = columns + np.eye(len(columns)) * self.ridge * np.diag(columns).mean()
        if kind != "context":
            return columns
        share = self.count / n
        cross = self.total / n - np.outer(share, mean)
        return np.block([[np.diag(share) - np.outer(share, share), cross], [cross.T, columns]])

    def lift(self) -> Float[np.ndarray, "c v"]:
        """z[k, y] = (m_k - median over classes of m) / (s_k / sqrt n_k): how far column y rises with class k."""
        count = np.maximum(self.count, 1.0)[:, None]
        mean = self.total / count
        variance = np.maximum(self.squares / count - mean**2, 0.0) + 1e-12
        scale = np.sqrt(variance / count * (self.count.sum() / self.num_samples))
        return np.where(self.count[:, None] > 1, (mean - np.median(mean, axis=0)) / scale, 0.0)

    def rise(self) -> Float[np.ndarray, "c v"]:
        """[k, y]: by how many standard deviations of column y its mean over class k exceeds that of the median class;
        uncut and of all clips.

        Where i -> j is a dependency, clips that are annotated with the cause hold the effect more than clips that
        are annotated with the effect hold the cause: rise[i, y of j] > rise[j, x of i].
        """
        clips, total, squares = self.uncut or (self.count, self.total, self.squares)
        count = np.maximum(clips, 1.0)[:, None]
        mean, n = total / count, clips.sum()
        spread = np.sqrt(np.maximum(squares.sum(axis=0) / n - (total.sum(axis=0) / n) ** 2, 0.0)) + 1e-12
        seen = clips > 0
        middle = np.median(mean[seen], axis=0) if seen.any() else 0.0
        return np.where(seen[:, None], (mean - middle) / spread, 0.0)

    def told_correlation(self) -> Float[np.ndarray, "v v"]:
        """[x, y]: correlation of column y with the annotation of class(x), over the clips whose annotated class is told
        in the view of x alone; those annotated with class(y) are left out.  0 where no clip tells, and within a class.

        Such a clip holds class(x) for certain and in the view of x alone, so that what y says in the other view is not
        drowned by it.  Raises ValueError where no such sums were kept.
        """
        if self.told is None:
            raise ValueError(
                "these moments hold no sums by the view that tells the class; make them with told=True"
            )
        count, total, squares = self.told
        c = count.shape[1]
        own = np.tile(np.arange(c), 2)  # class of a column
        clips, sums = count.sum(axis=1), total.sum(axis=1)
        others = clips[:, None, None] - count[:, own][:, None, :] - count[:, :, None]
        rest = sums[:, None, :] - total[:, own, np.arange(2 * c)][:, None, :] - total
        raised = total / np.maximum(count, 1.0)[:, :, None] - rest / np.maximum(others, 1.0)
        clips = np.maximum(clips, 1.0)
        spread = np.sqrt(np.maximum(squares / clips[:, None] - (sums / clips[:, None]) ** 2, 0.0)) + 1e-12
        share = np.sqrt(count / clips[:, None])[:, :, None]
        known = (count > 0)[:, :, None] & (others > 0) & (np.arange(c)[:, None] != own)
        return np.where(known, raised / spread[:, None, :] * share, 0.0).reshape(2 * c, 2 * c)

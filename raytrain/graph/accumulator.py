"""How moments of soft labels are gathered, so that no soft label is ever stored.

Per annotated class k, over its clips: the weight n_k, the sums and the sums of squares of the 2c columns; over
all clips: the sums of outer products.  Columns are the c audio logits, then the c visual logits, less a fixed
shift.  Everything is a sum, so moments of ranks add up and forgetting multiplies.

Clips are spread over G groups by a hash of their id.  Drawing groups with replacement is a bootstrap that
needs no clip.  A second set of class sums under permuted labels gives the graph of no dependency.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64

from raytrain.graph.moments import Moments, Sums

FIELDS = (
    "weight",
    "weight_of_squares",
    "count",
    "total",
    "squares",
    "null_count",
    "null_total",
    "null_squares",
    "outer",
)
UNCUT = ("uncut_count", "uncut_total", "uncut_squares")
"""Beside them, of all clips and of uncut columns, where the others are of some clips or of cut columns."""
TOLD = ("told_count", "told_total", "told_squares", "null_told_count", "null_told_total")
"""By the one view in which the annotated class is told, and over the clips of these."""


class MomentAccumulator:
    """Sums of soft labels in G groups of clips.

    num_classes  c
    inputs       `logits`; or `probabilities`, which are taken to centred log-ratios per modality, a matrix of
                 rank c - 1, so that the covariance gets a ridge of 1 % of its mean variance
    decay        factor on everything before each update; 1 forgets nothing
    num_groups   G; memory is 12 G c^2 floats: 0.7 MB at c = 15 and G = 32, 290 MB at c = 309
    num_clips    clips of the data set, which bounds n: seeing a clip twice makes no second clip
    shift        subtracted from every row, for precision; the same on every rank
    bounds       (low, high) where columns are cut before anything else; None: nowhere.  How far a logit is beyond them
                 tells how loud an event is rather than whether it is there, and loud events hide the others.  Class
                 means of the uncut columns are kept for `Moments.rise`, a third more memory
    one_view     only clips count whose annotated class is told in one view: its logit is above 0 there and below
                 -one_view in the other; None: all.  A class that is heard and seen is louder than what happens beside
                 it, which is then not annotated, and a teacher learns it to be absent there.  Class means for
                 `Moments.rise` are of all clips
    told         whether sums for `Moments.told_correlation` are kept, two thirds more memory
    """

    def __init__(
        self,
        num_classes: int,
        *,
        inputs: Literal["logits", "probabilities"] = "logits",
        decay: float | int = 1.0,
        num_groups: int = 32,
        num_clips: int | None = None,
        shift: Float[np.ndarray, " v"] | None = None,
        bounds: tuple[float, float] | None = None,
        one_view: float | None = None,
        told: bool = False,
        seed: int = 0,
    ) -> None:
        if num_classes < 2 or num_groups < 2 or not 0 < decay <= 1:
            raise ValueError(
                f"got num_classes {num_classes}, num_groups {num_groups}, decay {decay}; allowed are at least 2 "
                "classes, at least 2 groups and a decay in (0, 1]"
            )
        c, g, v = num_classes, num_groups, 2 * num_classes
        self.num_classes, self.num_groups, self.num_clips = c, g, num_clips
        if bounds is not None and not bounds[0] < bounds[1]:
            raise ValueError(f"bounds are {bounds}; the lower one comes first, e.g. (-2, 1)")
        if one_view is not None and one_view < 0:
            raise ValueError(
                f"one_view is {one_view}; a distance of logits below 0 is allowed, e.g. 1, or None"
            )
        self.inputs, self.decay, self.seed = inputs, float(decay), seed
        self.one_view = None if one_view is None else float(one_view)
        self.bounds = None if bounds is None else (float(bounds[0]), float(bounds[1]))
        self.told = told
        self.shift = np.zeros(v) if shift is None else np.asarray(shift, np.float64)
        if self.shift.shape != (v,):
            raise ValueError(f"shift has shape {self.shift.shape}; allowed is ({v},), audio before visual")
        self.weight = np.zeros(g)
        self.weight_of_squares = np.zeros(g)
        self.count = np.zeros((g, c))
        self.total = np.zeros((g, c, v))
        self.squares = np.zeros((g, c, v))
        self.null_count = np.zeros((g, c))
        self.null_total = np.zeros((g, c, v))
        self.null_squares = np.zeros((g, c, v))
        self.outer = np.zeros((g, v, v))
        if self._keeps_uncut:
            self.uncut_count = np.zeros((g, c))
            self.uncut_total = np.zeros((g, c, v))
            self.uncut_squares = np.zeros((g, c, v))
        if told:
            self.told_count = np.zeros((g, 2, c))
            self.told_total = np.zeros((g, 2, c, v))
            self.told_squares = np.zeros((g, 2, v))
            self.null_told_count = np.zeros((g, 2, c))
            self.null_told_total = np.zeros((g, 2, c, v))

    @property
    def _keeps_uncut(self) -> bool:
        return self.bounds is not None or self.one_view is not None

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the arrays that hold sums."""
        return FIELDS + UNCUT * self._keeps_uncut + TOLD * self.told

    def update(
        self,
        audio: Float[np.ndarray, "n c"],
        visual: Float[np.ndarray, "n c"],
        labels: Int[np.ndarray, " n"],
        clips: Int[np.ndarray, " n"],
        permuted: Int[np.ndarray, " n"] | None = None,
    ) -> None:
        """Adds rows: soft labels of both modalities, the annotated class, the id of the clip.

        `permuted` are the labels under which nothing depends on anything; by default those of these rows, permuted.
        Ranks that share a batch permute over all of it and give each its part.

        Rows without a class (label -1) are left out: they have no context.  Raises ValueError on rows of a
        softmax, on values that are not finite and on labels out of range.
        """
        audio, visual = np.asarray(audio, np.float64), np.asarray(visual, np.float64)
        c = self.num_classes
        for name, rows in (("audio", audio), ("visual", visual)):
            if rows.shape != (len(labels), c):
                raise ValueError(
                    f"{name} has shape {rows.shape}; allowed is ({len(labels)}, {c}), a row per clip"
                )
            if not np.isfinite(rows).all():
                raise ValueError(f"{name} holds values that are not finite; look at the loss of the teacher")
            if self.inputs == "logits":
                refuse_softmax(rows, name)
        if len(labels) and (labels.min() < -1 or labels.max() >= c):
            raise ValueError(
                f"labels lie in [{labels.min()}, {labels.max()}]; allowed are 0..{c - 1}, and -1 for no class"
            )
        if self.inputs == "probabilities":
            audio, visual = centred_log_ratio(audio), centred_log_ratio(visual)
        if self.decay < 1:
            for name in self.fields:
                getattr(self, name).__imul__(self.decay ** (2 if name == "weight_of_squares" else 1))
        if permuted is None:
            permuted = permuted_labels(labels, clips, self.seed)
        known = labels >= 0
        uncut = np.concatenate([audio, visual], axis=1)[known]
        rows = (uncut if self.bounds is None else np.clip(uncut, *self.bounds)) - self.shift
        labels, shuffled = labels[known], permuted[known]
        own = columns_of_class(uncut, labels)
        counted = self._counted(own)
        told, view = (own > 0).sum(axis=1) == 1, own.argmax(axis=1)
        group = (hashed(clips[known], self.seed) % np.uint64(self.num_groups)).astype(np.int64)
        for g in np.unique(group):
            here = group == g
            if self._keeps_uncut:
                np.add.at(self.uncut_count[g], labels[here], 1.0)
                np.add.at(self.uncut_total[g], labels[here], uncut[here])
                np.add.at(self.uncut_squares[g], labels[here], uncut[here] ** 2)
            if self.told:
                k = here & told
                self._tell(int(g), view[k], labels[k], shuffled[k], rows[k])
            here &= counted
            x = rows[here]
            for count, total, squares, names in (
                (self.count, self.total, self.squares, labels[here]),
                (self.null_count, self.null_total, self.null_squares, shuffled[here]),
            ):
                np.add.at(count[g], names, 1.0)
                np.add.at(total[g], names, x)
                np.add.at(squares[g], names, x * x)
            self.outer[g] += x.T @ x
            self.weight[g] += len(x)
            self.weight_of_squares[g] += len(x)

    def _tell(
        self,
        g: int,
        view: Int[np.ndarray, " n"],
        labels: Int[np.ndarray, " n"],
        shuffled: Int[np.ndarray, " n"],
        x: Float[np.ndarray, "n v"],
    ) -> None:
        """Adds rows whose class one view alone tells, to group g."""
        np.add.at(self.told_count[g], (view, labels), 1.0)
        np.add.at(self.told_total[g], (view, labels), x)
        np.add.at(self.told_squares[g], view, x * x)
        np.add.at(self.null_told_count[g], (view, shuffled), 1.0)
        np.add.at(self.null_told_total[g], (view, shuffled), x)

    def _counted(self, own: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, " n"]:
        """The rows whose annotated class is told in one view; all of them where `one_view` is None."""
        if self.one_view is None:
            return np.ones(len(own), bool)
        return (own.max(axis=1) > 0) & (own.min(axis=1) < -self.one_view)

    def merge(self, other: MomentAccumulator) -> None:
        """Adds the moments of another part of the clips; ValueError unless both were made alike."""
        mine, theirs = self._made(), other._made()
        if mine != theirs or not np.array_equal(self.shift, other.shift):
            raise ValueError(f"moments made with {theirs} cannot be added to moments made with {mine}")
        for name in self.fields:
            getattr(self, name).__iadd__(getattr(other, name))

    def _made(self) -> dict[str, object]:
        return {
            "num_classes": self.num_classes,
            "num_groups": self.num_groups,
            "inputs": self.inputs,
            "bounds": self.bounds,
            "one_view": self.one_view,
            "told": self.told,
            "seed": self.seed,
        }

    def flat(self) -> Float[np.ndarray, " m"]:
        """Every sum as one array: the sum of the `flat` of the ranks is the `flat` of the world."""
        return np.concatenate([getattr(self, name).ravel() for name in self.fields])

    def with_flat(self, flat: Float[np.ndarray, " m"]) -> MomentAccumulator:
        """An accumulator made like this one that holds these sums."""
        other = MomentAccumulator.from_arrays(self.to_arrays())
        first = 0
        for name in self.fields:
            field = getattr(other, name)
            field[...] = flat[first : first + field.size].reshape(field.shape)
            first += field.size
        if first != len(flat):
            raise ValueError(
                f"got {len(flat)} sums; these moments hold {first}: all ranks must make them alike"
            )
        return other

    def to_arrays(self) -> dict[str, np.ndarray]:
        """For `np.savez`, or for the state of a teacher."""
        arrays = {name: getattr(self, name).copy() for name in self.fields}
        arrays["shift"] = self.shift.copy()
        arrays["decay"] = np.array(self.decay)
        arrays["seed"] = np.array(self.seed)
        arrays["num_clips"] = np.array(-1 if self.num_clips is None else self.num_clips)
        arrays["probabilities"] = np.array(self.inputs == "probabilities")
        if self.bounds is not None:
            arrays["bounds"] = np.array(self.bounds)
        if self.one_view is not None:
            arrays["one_view"] = np.array(self.one_view)
        return arrays

    @staticmethod
    def from_arrays(arrays: dict[str, np.ndarray]) -> MomentAccumulator:
        """The inverse of `to_arrays`, bit for bit."""
        missing = [name for name in (*FIELDS, "shift", "decay", "seed") if name not in arrays]
        if missing:
            raise ValueError(f"these arrays are no moments: {', '.join(missing)} missing; save `to_arrays()`")
        groups, classes = arrays["count"].shape
        made = MomentAccumulator(
            classes,
            inputs="probabilities" if bool(arrays["probabilities"]) else "logits",
            decay=float(arrays["decay"]),
            num_groups=groups,
            num_clips=None if int(arrays["num_clips"]) < 0 else int(arrays["num_clips"]),
            shift=np.array(arrays["shift"]),
            bounds=tuple(arrays["bounds"].tolist()) if "bounds" in arrays else None,
            one_view=float(arrays["one_view"]) if "one_view" in arrays else None,
            told="told_count" in arrays,
            seed=int(arrays["seed"]),
        )
        arrays = {"uncut_count": arrays["count"], **arrays}  # it is not in moments from before `one_view`
        for name in made.fields:
            setattr(made, name, np.array(arrays[name], np.float64))
        return made

    def moments(self, groups: Float[np.ndarray, " g"] | None = None, *, permuted: bool = False) -> Moments:
        """The sums over all groups, or over groups with these multiplicities; of permuted labels on request, which have
        none of uncut columns."""
        times = np.ones(self.num_groups) if groups is None else groups
        names = ("null_count", "null_total", "null_squares") if permuted else ("count", "total", "squares")
        count, total, squares = self._summed(times, names)
        weight, of_squares = float(times @ self.weight), float(times @ self.weight_of_squares)
        if weight <= 1:
            remedy = (
                "update them first"
                if self.one_view is None
                else f"lower one_view, which is {self.one_view:g}"
            )
            raise ValueError(f"the moments hold {weight:g} clips; at least 2 are needed: {remedy}")
        size = weight**2 / of_squares
        if self.num_clips is not None:
            size = min(size, float(self.num_clips) * float(times.sum()) / self.num_groups)
        ridge = 0.01 if self.inputs == "probabilities" else 0.0
        outer = np.tensordot(times, self.outer, 1)
        uncut = told = None
        if self._keeps_uncut and not permuted:
            uncut = self._summed(times, UNCUT)
        if self.told:
            null = "null_" if permuted else ""
            told = self._summed(times, (f"{null}told_count", f"{null}told_total", "told_squares"))
        return Moments(count, total, squares, outer, size, ridge, uncut, told)

    def _summed(self, times: Float[np.ndarray, " g"], names: tuple[str, str, str]) -> Sums:
        """Count, total and squares of these names over groups with these multiplicities."""
        count, total, squares = (np.tensordot(times, getattr(self, name), 1) for name in names)
        return count, total, squares


def columns_of_class(
    columns: Float[np.ndarray, "n v"], labels: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "n 2"]:
    """Of each row its own class, in the audio and in the visual."""
    row = np.arange(len(labels))
    return np.stack([columns[row, labels], columns[row, columns.shape[1] // 2 + labels]], axis=1)


def refuse_softmax(rows: Float[np.ndarray, "n c"], name: str) -> None:
    """ValueError where every row is a distribution."""
    if len(rows) and (rows >= 0).all() and np.abs(rows.sum(axis=1) - 1).max() < 1e-3:
        raise ValueError(
            f"the {name} rows sum to one: these are softmax probabilities, whose covariance is singular and whose "
            "dependencies are those of the sum; pass logits, or inputs='probabilities' to use centred log-ratios"
        )


def centred_log_ratio(probabilities: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
    """clr(p)_k = log p_k - mean_j log p_j (Aitchison 1986); probabilities below 1e-12 count as that."""
    if (probabilities < 0).any() or (probabilities > 1 + 1e-6).any():
        raise ValueError("probabilities must lie in [0, 1]; for logits make the moments with inputs='logits'")
    logs = np.log(np.maximum(probabilities, 1e-12))
    return logs - logs.mean(axis=1, keepdims=True)


def permuted_labels(
    labels: Int[np.ndarray, " n"], clips: Int[np.ndarray, " n"], seed: int
) -> Int[np.ndarray, " n"]:
    """The classes of the rows in another order, by a hash of the clip ids; rows without a class stay without."""
    permuted = labels.copy()
    known = labels >= 0
    permuted[known] = labels[known][np.argsort(hashed(clips[known], seed + 1), kind="stable")]
    return permuted


def hashed(clips: Int[np.ndarray, " n"], seed: int) -> UInt64[np.ndarray, " n"]:
    """splitmix64 of the clip ids."""
    with np.errstate(over="ignore"):
        z = clips.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15) * np.uint64(seed + 1)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))

"""From moments of soft labels to the weights of class dependencies, with their uncertainty.

Variables of the search: c one-hot label columns (roots), then c audio and c visual columns.  The annotated class
is a common cause of all columns, so it must be among the variables; the lift mask allows an edge between columns
of different classes only from a class whose clips raise the other column.  Directions that follow from roots and
mask are knowledge that was put in, not found.
"""

from __future__ import annotations

from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from raytrain.graph.accumulator import MomentAccumulator
from raytrain.graph.moments import Moments
from raytrain.graph.search import Dependency, dependency_search

Resample = Literal["bootstrap", "halves"]
Sign = Literal["any", "positive"]
"""Which edges count by the sign of their partial effect."""
Orientation = Literal["search", "annotation"]
"""What gives an edge its direction: the search, or which of the two rises more where the other is annotated."""


@dataclass(frozen=True)
class ClassDependency:
    """Edges between the v = 2c columns, audio before visual, and what may be believed of them."""

    audio_to_visual: Float[np.ndarray, "c c"]
    """A^: row i, the dependency of what is seen on hearing class i; each row sums to 1, or is zero."""
    visual_to_audio: Float[np.ndarray, "c c"]
    edge_frequency: Float[np.ndarray, "v v"]
    """Share of the resamples in which x and y are adjacent; symmetric."""
    direction_frequency: Float[np.ndarray, "v v"]
    """[x, y]: share of the resamples with x -> y; an undirected edge counts half each way."""
    effects: Float[np.ndarray, "v v"]
    """Mean absolute partial effect over the resamples that hold the edge."""
    stable: Bool[np.ndarray, "v v"]
    """Cross-modal, cross-class pairs whose edge frequency reaches the threshold."""
    false_bound: float
    """Meinshausen and Buehlmann (2010), eq. (9): expected false stable pairs <= q^2 / ((2 pi - 1) m)."""
    frobenius: float
    """Mean Frobenius distance between the adjacencies of two resamples."""
    permuted_edges: int
    """Stable pairs that permuted labels give."""
    verdict: Literal["linked", "unlinked"]
    """`unlinked` where the stable pairs are no more than permuted labels and the bound explain."""
    num_samples: float
    order: Int[np.ndarray, " p"]
    """Of the whole data: the warm start of the next refresh."""
    complete: bool


def lift_mask(lift: Float[np.ndarray, "c v"], threshold: float | int) -> Bool[np.ndarray, "v v"]:
    """Which edges x -> y between columns may be: all within a class, else where class(x) lifts y."""
    mask = np.tile(lift > threshold, (2, 1)) | ~unlike(len(lift))
    np.fill_diagonal(mask, False)
    return mask


def context_search(
    moments: Moments,
    *,
    penalty: float | int,
    lift_threshold: float | int | None,
    restarts: int,
    seed: int,
    init_order: Int[np.ndarray, " p"] | None = None,
) -> Dependency:
    """The search with label columns as roots; a threshold of None leaves the lift mask out."""
    c = len(moments.count)
    forbidden = np.zeros((3 * c, 3 * c), np.bool_)
    if lift_threshold is not None:
        forbidden[c:, c:] = ~lift_mask(moments.lift(), lift_threshold)
    return dependency_search(
        moments.covariance("context"), moments.num_samples, penalty=penalty, seed=seed, restarts=restarts,
        forbidden=forbidden, roots=range(c), init_order=init_order,
    )  # fmt: skip


def resample(num_groups: int, number: int, *, method: Resample, seed: int) -> list[Float[np.ndarray, " g"]]:
    """Multiplicities of the groups: draws with replacement, or complementary halves."""
    generator = np.random.default_rng(seed)
    draws: list[np.ndarray] = []
    while len(draws) < number:
        if method == "bootstrap":
            draws.append(generator.multinomial(num_groups, np.full(num_groups, 1 / num_groups)).astype(float))
            continue
        half = np.zeros(num_groups)
        half[generator.permutation(num_groups)[: num_groups // 2]] = 1.0
        draws += [half, 1.0 - half]
    return draws[:number]


def class_dependency(
    accumulator: MomentAccumulator,
    *,
    penalty: float | int = 1.0,
    lift_threshold: float | int | None = 4.0,
    bootstraps: int = 50,
    method: Resample = "halves",
    frequency: float | int = 0.75,
    weight_frequency: float | int = 0.5,
    top_k: int = 3,
    weights: Literal["search", "lift"] = "search",
    sign: Sign = "any",
    min_effect: float | int = 0.0,
    told: float | int = 0.0,
    orientation: Orientation = "search",
    seed: int = 0,
    init_order: Int[np.ndarray, " p"] | None = None,
    executor: Executor | None = None,
    num_threads: int = 1,
) -> ClassDependency:
    """The dependency weights of `methods/ili`, with edge and direction frequencies and a verdict.

    A^_ij = freq_ij |effect_ij| on cross-modal, cross-class edges of frequency >= weight_frequency, the top_k of
    each row, rows summing to 1.  `method` "halves" is what the bound of stability selection is stated for.
    With `weights` "lift" A^ is the baseline instead: the lift z in place of freq |effect|, where it exceeds the
    threshold (4 where the mask is off); all else stays that of the search.
    With `sign` "positive" an edge of a resample counts where its partial effect is: classes that compete for the one
    annotation of a clip depend on each other too, but do not happen together.  With `min_effect` it counts where its
    partial effect is at least that: soft labels are events seen through noise, which leaves weak dependencies
    between all that a strong one touches, and many clips make them significant.  With `told` pairs of unlike
    modality and class need that effect plus `told` times what the annotation says of them (`by_annotation`).
    `orientation` "annotation" gives cross-class edges the direction of the larger `Moments.rise` instead of the
    search's, which noise in the soft labels takes the v-structures from.
    """
    if bootstraps < 2 or not 0.5 < frequency <= 1:
        raise ValueError(
            f"got bootstraps {bootstraps} and frequency {frequency}; at least 2 bootstraps and a frequency in "
            "(0.5, 1] are needed: at 0.5 the bound on false edges is infinite"
        )
    whole = context_search(
        accumulator.moments(), penalty=penalty, lift_threshold=lift_threshold, restarts=3, seed=seed,
        init_order=init_order,
    )  # fmt: skip
    draws = resample(accumulator.num_groups, bootstraps, method=method, seed=seed)
    settings = Resampled(penalty, lift_threshold, sign, float(min_effect), float(told), orientation)
    jobs = [(accumulator, draw, False, settings, seed + i) for i, draw in enumerate(draws)]
    null_jobs = [(accumulator, draw, True, settings, seed + i) for i, draw in enumerate(draws)]
    if executor is None:
        with ThreadPoolExecutor(num_threads) as pool:
            found = list(pool.map(one_resample, jobs + null_jobs))
    else:
        found = list(executor.map(one_resample, jobs + null_jobs))
    c, v = accumulator.num_classes, 2 * accumulator.num_classes
    directed = np.stack([graph for graph, _, _ in found[:bootstraps]])
    effects = np.stack([effect for _, effect, _ in found[:bootstraps]])
    adjacent = directed + directed.transpose(0, 2, 1)
    edge_frequency = adjacent.mean(axis=0)
    direction_frequency = directed.mean(axis=0)
    held = np.maximum((directed > 0).sum(axis=0), 1)
    effect = (np.abs(effects) * (directed > 0)).sum(axis=0) / held
    across = cross_modal(c)
    stable = across & (edge_frequency >= frequency)
    chosen = float((adjacent * across).sum(axis=(1, 2)).mean()) / 2
    bound = chosen**2 / ((2 * float(frequency) - 1) * (across.sum() / 2))
    null = np.stack([graph for graph, _, _ in found[bootstraps:]])
    null_frequency = (null + null.transpose(0, 2, 1)).mean(axis=0)
    permuted = int((across & (null_frequency >= frequency)).sum()) // 2
    raw = np.where(across & (edge_frequency >= weight_frequency), direction_frequency * effect, 0.0)
    if weights == "lift":
        z = np.tile(accumulator.moments().lift(), (2, 1))
        raw = np.where(across & (z > (4.0 if lift_threshold is None else lift_threshold)), z, 0.0)
    distances = [np.linalg.norm(a - b) for a, b in zip(directed[0::2], directed[1::2], strict=False)]
    return ClassDependency(
        audio_to_visual=normalised_top(raw[:c, c:], top_k),
        visual_to_audio=normalised_top(raw[c:, :c], top_k),
        edge_frequency=edge_frequency,
        direction_frequency=direction_frequency,
        effects=effect.reshape(v, v),
        stable=stable,
        false_bound=bound,
        frobenius=float(np.mean(distances)),
        permuted_edges=permuted,
        verdict="linked" if stable.sum() / 2 > permuted + bound else "unlinked",
        num_samples=accumulator.moments().num_samples,
        order=whole.order,
        complete=whole.complete and all(complete for _, _, complete in found),
    )


class Resampled(NamedTuple):
    """What `one_resample` is told of `class_dependency`'s settings."""

    penalty: float | int
    lift_threshold: float | int | None
    sign: Sign
    min_effect: float
    told: float
    orientation: Orientation


def one_resample(
    job: tuple[MomentAccumulator, Float[np.ndarray, " g"], bool, Resampled, int],
) -> tuple[Float[np.ndarray, "v v"], Float[np.ndarray, "v v"], bool]:
    """Directed adjacency (an undirected edge is a half each way) and effects of one resample, labels left out."""
    accumulator, groups, permuted, settings, seed = job
    moments = accumulator.moments(groups, permuted=permuted)
    found = context_search(
        moments, penalty=settings.penalty, lift_threshold=settings.lift_threshold, restarts=1, seed=seed
    )
    c = accumulator.num_classes
    effects = (found.strengths + found.strengths.T)[c:, c:]
    directed = halved(found.cpdag)[c:, c:]
    if settings.sign == "positive":
        directed = directed * (effects > 0)
    strength = np.abs(effects)
    if settings.told > 0:
        strength = strength + settings.told * by_annotation(moments)
    directed = directed * (strength >= settings.min_effect)
    if settings.orientation == "annotation":
        forth = np.tile(moments.rise(), (2, 1))  # [x y]: of y, with the class of x
        directed = np.where(unlike(c), _by_rise(directed + directed.T, forth), directed)
    return directed, effects, found.complete


def by_annotation(moments: Moments) -> Float[np.ndarray, "v v"]:
    """What the annotation says of pairs of unlike modality and class, free of what the search has to explain away.

    q_xy + q_yx less half of the same of the mirrored pair (the classes of x and y with their modalities exchanged), q
    the signed root of `Moments.told_correlation`: where x brings y, clips annotated with either raise the other.
    Classes that go together do so in both pairs of unlike modality alike.
    """
    c = len(moments.count)
    correlation = moments.told_correlation()
    root = np.sign(correlation) * np.sqrt(np.abs(correlation))
    both = root + root.T
    mirrored = np.roll(both, (c, c), axis=(0, 1))
    return np.where(cross_modal(c), both - mirrored / 2, 0.0)


def _by_rise(adjacent: Float[np.ndarray, "v v"], forth: Float[np.ndarray, "v v"]) -> Float[np.ndarray, "v v"]:
    """x -> y where class(x) raises y more than class(y) raises x; a half each way where neither does."""
    return adjacent * np.where(forth > forth.T, 1.0, np.where(forth < forth.T, 0.0, 0.5))


def halved(mixed: Bool[np.ndarray, "p p"]) -> Float[np.ndarray, "p p"]:
    """1 for x -> y, a half each way for x - y."""
    return mixed * np.where(mixed & mixed.T, 0.5, 1.0)


def cross_modal(num_classes: int) -> Bool[np.ndarray, "v v"]:
    """The pairs of columns of unlike modality and unlike class."""
    other = np.repeat([False, True], num_classes)
    return unlike(num_classes) & (other[:, None] != other[None, :])


def unlike(num_classes: int) -> Bool[np.ndarray, "v v"]:
    """The pairs of columns of unlike class."""
    return np.tile(~np.eye(num_classes, dtype=bool), (2, 2))


def normalised_top(weights: Float[np.ndarray, "c c"], top_k: int) -> Float[np.ndarray, "c c"]:
    """The `top_k` largest of each row, divided by their sum; empty rows stay zero."""
    kept = np.zeros_like(weights)
    best = np.argsort(-weights, axis=1, kind="stable")[:, :top_k]
    np.put_along_axis(kept, best, np.take_along_axis(weights, best, axis=1), axis=1)
    total = kept.sum(axis=1, keepdims=True)
    return np.divide(kept, total, out=np.zeros_like(kept), where=total > 0)

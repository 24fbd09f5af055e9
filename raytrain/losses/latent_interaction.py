r"""The latent interaction regulariser: rows that dependent classes link are drawn together (Zeng et al., ILI).

    LIR = sum_{i -> j} A_ij  mean_{(n, m) in S_ij} s_n[i] s_m[j] D(z_n, z_m),     D = 1 - cos
    S_ij = { (n, m) : s_n[i] > tau, s_m[j] > tau, y_n != y_m }

n is a row of the source view, m of the target view, s are soft labels of these views, A the weights of dependencies.
A row that nobody annotated differs in class from every row but itself.  Both forms return this rank's part, the sum
over its own rows n; the sum over ranks is LIR.  S_ij is counted over the world, from soft labels that carry no
gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from raytrain.losses.masks import blocks
from raytrain.types import UNANNOTATED


@dataclass(frozen=True)
class Latent:
    """What is known of the rows of the world beside their embeddings."""

    source: Float[Tensor, "n c"]
    """Soft labels in the source view."""
    target: Float[Tensor, "n c"]
    labels: Int[Tensor, " n"]
    row: Int[Tensor, " n"]

    def kinds(self) -> Int[Tensor, " n"]:
        """Equal for two rows that may not be linked: of one class, or one clip."""
        return torch.where(self.labels == UNANNOTATED, -2 - self.row, self.labels)


def activated(soft: Float[Tensor, "n c"], *, threshold: float) -> Float[Tensor, "n c"]:
    """s where s > tau, else 0."""
    return torch.where(soft > threshold, soft, 0.0)


def num_linked(latent: Latent, *, threshold: float) -> Float[Tensor, "c c"]:
    """|S_ij| over the world: all activated pairs, less those of one class and those of one unannotated clip."""
    source, target = ((s > threshold).to(s.dtype) for s in (latent.source, latent.target))
    known = latent.labels != UNANNOTATED
    classes = F.one_hot(latent.labels.clamp(min=0), source.shape[1]).to(source.dtype) * known[:, None]
    total = source.sum(dim=0)[:, None] * target.sum(dim=0)[None, :]
    same = (classes.T @ source).T @ (
        classes.T @ target
    )  # sum over k of (rows of k with i) (rows of k with j)
    itself = (source * ~known[:, None]).T @ target
    return total - same - itself


def latent_interaction(
    query: Float[Tensor, "b d"],
    keys: Float[Tensor, "n d"],
    latent: Latent,
    weights: Float[Tensor, "c c"],
    *,
    first: int,
    threshold: float,
) -> Float[Tensor, " b"]:
    """LIR over all pairs of S_ij: the part of each row n of this rank, which is row `first` + n of the world.

    The edges fold into one product, W_nm = sum_ij s_n[i] (A_ij / |S_ij|) s_m[j]: O(b n (c + d)) time in blocks of
    [k n], whatever the number of edges.  Rows are unit-norm; they are taken as given.
    """
    share = weights / num_linked(latent, threshold=threshold).clamp(min=1)
    left = activated(latent.source, threshold=threshold)[first : first + len(query)] @ share  # [b c]
    right = activated(latent.target, threshold=threshold)
    kinds = latent.kinds()
    own = kinds[first : first + len(query)]
    return _WeightedDistance.apply(query, keys, left, right, own, kinds)


class _WeightedDistance(torch.autograd.Function):
    """value_n = sum_m W_nm (1 - q_n . k_m),  W = (left right') where the kinds differ; W again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, keys: Tensor, left: Tensor, right: Tensor, own: Tensor, kinds: Tensor
    ) -> Tensor:
        value, slope = query.new_empty(len(query)), torch.empty_like(query)
        for here in _blocks(query, keys):
            w = _pair_weights(left[here], right, own[here], kinds)  # [k n]
            slope[here] = -(w @ keys)
            value[here] = w.sum(dim=1) + (query[here] * slope[here]).sum(dim=1)
        ctx.save_for_backward(query, keys, left, right, own, kinds, slope)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        query, keys, left, right, own, kinds, slope = ctx.saved_tensors
        weight = upstream[0][:, None]  # [b 1]
        slope_keys = torch.zeros_like(keys) if ctx.needs_input_grad[1] else None
        if slope_keys is not None:
            for here in _blocks(query, keys):
                w = _pair_weights(left[here], right, own[here], kinds)
                slope_keys.addmm_(w.T, weight[here] * query[here], alpha=-1)
        return weight * slope, slope_keys, None, None, None, None


def _pair_weights(
    left: Float[Tensor, "k c"], right: Float[Tensor, "n c"], own: Int[Tensor, " k"], kinds: Int[Tensor, " n"]
) -> Float[Tensor, "k n"]:
    return (left @ right.T).mul_(own[:, None] != kinds[None, :])


def _blocks(query: Tensor, keys: Tensor) -> list[slice]:
    return [slice(*block) for block in blocks(len(query), len(keys), query.device)]


def sampled_latent_interaction(
    query: Float[Tensor, "b d"],
    keys: Float[Tensor, "n d"],
    latent: Latent,
    weights: Float[Tensor, "c c"],
    draws: Float[Tensor, "2 c k s"],
    *,
    first: int,
    threshold: float,
) -> Float[Tensor, ""]:
    """LIR from s drawn pairs for each of the k strongest edges of a class: this rank's part, in expectation all pairs'.

    `draws` are uniform in [0, 1) and the same on every rank.  They pick a row n with s_n[i] > tau and a row m with
    s_m[j] > tau; a draw of two rows of one class is dropped, and the mean is over those that are kept, so that each
    kept draw is uniform on S_ij.  An edge without a kept draw adds nothing.
    """
    num_edges = draws.shape[2]
    weight, target = weights.topk(num_edges, dim=1)  # [c k]
    source_rows, source_active = _drawn(latent.source > threshold, draws[0])
    # the rows of the target class of every edge
    ordered, count = _ordered(latent.target > threshold)
    place = (draws[1] * count[target][..., None]).long()  # [c k s]
    target_rows = ordered[place, target[..., None].expand_as(place)]
    kinds = latent.kinds()
    kept = (kinds[source_rows] != kinds[target_rows]) & source_active & (count[target] > 0)[..., None]
    classes = torch.arange(len(weights), device=weights.device)[:, None, None]
    both = latent.source[source_rows, classes] * latent.target[target_rows, target[..., None]]  # [c k s]
    share = weight[..., None] * both * kept / kept.sum(dim=2, keepdim=True).clamp(min=1)
    mine = (source_rows >= first) & (source_rows < first + len(query))
    place = (source_rows - first).clamp(0, len(query) - 1)
    distance = 1 - (query[place] * keys[target_rows]).sum(dim=-1)  # [c k s]
    return (share * mine * distance).sum()


def _ordered(active: Bool[Tensor, "n c"]) -> tuple[Int[Tensor, "n c"], Int[Tensor, " c"]]:
    """Row numbers with the active rows of each class first, and how many these are."""
    return torch.sort(active.to(torch.uint8), dim=0, descending=True, stable=True).indices, active.sum(dim=0)


def _drawn(
    active: Bool[Tensor, "n c"], draws: Float[Tensor, "c k s"]
) -> tuple[Int[Tensor, "c k s"], Bool[Tensor, "c k s"]]:
    """For class i, rows that are active in it; False where there is none to draw."""
    ordered, count = _ordered(active)
    place = (draws * count[:, None, None]).long()
    classes = torch.arange(active.shape[1], device=active.device)[:, None, None].expand_as(place)
    return ordered[place, classes], (count > 0)[:, None, None].expand_as(place)

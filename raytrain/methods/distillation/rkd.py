"""RKD, relational knowledge distillation: Park et al., CVPR 2019 (arXiv:1904.05068).

    distances   psi_ij = ||x_i - x_j|| / mu,  mu the mean over all pairs;     l_D = mean_{i != j} Huber(psi_t, psi_s)
    angles      psi_jik = cos of the angle at i between j and k;              l_A = mean_{i,j,k}  Huber(psi_t, psi_s)

Huber's bound is 1.  Both in means, as in the authors' code, where the paper has sums; weights 25 and 50 as there.
Angles cost n^2 d per row and are made for a few rows at a time, again in the backward pass.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from raytrain.config import Section
from raytrain.losses import distances
from raytrain.losses.masks import Relation, blocks
from raytrain.methods.distillation.base import Distillation, Pair, Term, mean
from raytrain.types import Progress


class RkdSettings(Section):
    distance_weight: float = Field(25.0, ge=0)
    angle_weight: float = Field(50.0, ge=0)


def relative_distances(query: Float[Tensor, "b d"], keys: Float[Tensor, "n d"]) -> Float[Tensor, "b n"]:
    """Distances over the mean distance of all pairs of keys; `keys` are the rows of the world."""
    num = keys.shape[0]
    scale = distances.euclidean(keys, keys).sum() / max(num * (num - 1), 1)
    return distances.euclidean(query, keys) / torch.where(scale > 0, scale, 1)


def angles(vertex: Float[Tensor, "k d"], ends: Float[Tensor, "n d"]) -> Float[Tensor, "k n n"]:
    """Cosines of the angles at each vertex between every two ends; 0 where an end is the vertex."""
    edges = ends[None, :, :] - vertex[:, None, :]  # [k n d]
    edges = distances.unit(edges.flatten(0, 1)).unflatten(0, edges.shape[:2])
    return edges @ edges.mT


def angle_error(
    student: Float[Tensor, "k d"],
    students: Float[Tensor, "n d"],
    teacher: Float[Tensor, "k d"],
    teachers: Float[Tensor, "n d"],
) -> Float[Tensor, " k"]:
    """The mean over ordered pairs of other rows of Huber's loss of the angles at each row."""
    num = students.shape[0]
    error = F.smooth_l1_loss(angles(student, students), angles(teacher, teachers), reduction="none")
    return error.sum(dim=(1, 2)) / max((num - 1) * (num - 2), 1)


class Rkd(Distillation):
    Settings = RkdSettings

    def loss(self, here: Pair, world: Pair, relation: Relation, progress: Progress) -> dict[str, Term]:
        num = len(relation.world)
        apart = F.smooth_l1_loss(
            relative_distances(here.student, world.student),
            relative_distances(here.teacher, world.teacher),
            reduction="none",
        )
        distance = mean(apart.sum(dim=1) / max(num - 1, 1), relation)
        rows, size = here.student.shape
        errors = [
            checkpoint(
                angle_error,
                here.student[start:stop],
                world.student,
                here.teacher[start:stop],
                world.teacher,
                use_reentrant=False,
            )
            for start, stop in blocks(rows, num * max(num, size), here.student.device)
        ]
        return {
            "rkd_distance": Term(self.settings.distance_weight, distance),
            "rkd_angle": Term(self.settings.angle_weight, mean(torch.cat(errors), relation)),
        }

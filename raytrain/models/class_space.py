"""Embeddings that hold what is seen and which class it is: classes beside the embedding, in one cosine."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def beside_classes(
    embedding: Float[Tensor, "b d"], logits: Float[Tensor, "b c"], *, share: float
) -> Float[Tensor, "b _"]:
    r"""e = [sqrt(1 - s) z ; sqrt(s) q / ||q||_2],  q = softmax(u), of unit norm, s the `share` of classes.

        cos(e, e') = (1 - s) cos(z, z') + s cos(q, q')

    With s = 1 it is softmax matching by this head; with s = 0 the embedding itself, unchanged.
    """
    if share == 0:
        return embedding
    classes = F.normalize(logits.softmax(dim=1), dim=1)
    return torch.cat([math.sqrt(1 - share) * embedding, math.sqrt(share) * classes], dim=1)

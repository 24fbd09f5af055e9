"""Two towers that meet in one space: features in, unit-norm embeddings and class logits out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from raytrain.config import Model
from raytrain.models.dropout import Dropout
from raytrain.models.norm import Scaling, WorldBatchNorm

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}
NORMS: dict[str, type[nn.Module]] = {"batch": WorldBatchNorm, "layer": nn.LayerNorm, "none": nn.Identity}


@dataclass(frozen=True)
class ViewInput:
    """What a tower must know of its view: the constants of the scaler, both of the view's size f."""

    shift: Float[Tensor, " f"]
    scale: Float[Tensor, " f"]

    @property
    def size(self) -> int:
        return self.shift.shape[0]


def tower(view: ViewInput, model: Model) -> nn.Sequential:
    """Scaling, then hidden layers [Linear, norm, activation, dropout], then a linear layer to the embedding."""
    layers: list[nn.Module] = [Scaling(view.shift, view.scale)]
    if model.input_dropout:
        layers.append(Dropout(model.input_dropout))
    width = view.size
    for hidden in model.hidden:
        layers += [
            nn.Linear(width, hidden, bias=model.norm != "batch"),
            NORMS[model.norm](hidden),
            ACTIVATIONS[model.activation](),
            Dropout(model.dropout),
        ]
        width = hidden
    layers.append(nn.Linear(width, model.embedding))
    return nn.Sequential(*layers)


class Towers(nn.Module):
    """A tower for every view and, where the data has classes, one linear head that all views share."""

    def __init__(self, views: Mapping[str, ViewInput], model: Model, *, num_classes: int | None):
        super().__init__()
        self.towers = nn.ModuleDict({name: tower(view, model) for name, view in views.items()})
        self.head = nn.Linear(model.embedding, num_classes) if num_classes else None

    def features(self, views: Mapping[str, Float[Tensor, "b _"]]) -> dict[str, Float[Tensor, "b d"]]:
        """The towers' outputs before they are set to unit norm."""
        return {name: self.towers[name](x) for name, x in views.items() if name in self.towers}

    def scaled(self, view: str, x: Float[Tensor, "b f"]) -> Float[Tensor, "b f"]:
        """The features of a view as its tower's first layer sees them."""
        scaling = self.towers[view][0]  # type: ignore[index]
        assert isinstance(scaling, Scaling)
        return scaling(x)

    def forward(
        self, views: Mapping[str, Float[Tensor, "b _"]]
    ) -> tuple[dict[str, Float[Tensor, "b d"]], dict[str, Float[Tensor, "b c"]]]:
        """Unit-norm embeddings and class logits by view."""
        features = {name: wide(h) for name, h in self.features(views).items()}
        embeddings = {name: F.normalize(h, dim=1) for name, h in features.items()}
        logits = {name: wide(self.head(h)) for name, h in features.items()} if self.head is not None else {}
        return embeddings, logits


def wide(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Half precision as float32: norms, probabilities and errors are taken in it."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x

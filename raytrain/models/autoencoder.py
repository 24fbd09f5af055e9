"""Encoders with a code and a projection, and the decoders that read the code: the networks of HSC-MAE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from raytrain.config import Model
from raytrain.models.dropout import Dropout
from raytrain.models.norm import Scaling, WorldBatchNorm
from raytrain.models.towers import ACTIVATIONS, NORMS, Towers, ViewInput


class Encoder(nn.Module):
    """BatchNorm of the scaled input - [Linear, norm, activation, dropout] ... Linear, norm - projector.

    `model.hidden` are the widths of the linear layers; the last one is the code's.  The input's batch norm has no
    scale and shift of its own: the linear layer after it has both.
    """

    def __init__(self, view: ViewInput, model: Model):
        super().__init__()
        self.scaling = Scaling(view.shift, view.scale)
        self.norm = WorldBatchNorm(view.size).requires_grad_(False)
        layers: list[nn.Module] = []
        width = view.size
        for last, hidden in enumerate(model.hidden, 1 - len(model.hidden)):
            layers += [nn.Linear(width, hidden, bias=model.norm != "batch"), NORMS[model.norm](hidden)]
            if last < 0:
                layers += [ACTIVATIONS[model.activation](), Dropout(model.dropout)]
            width = hidden
        self.trunk = nn.Sequential(*layers)
        self.projector = nn.Linear(width, model.embedding)

    def code(
        self, normalised: Float[Tensor, "b f"], kept: Bool[Tensor, "b f"] | None = None
    ) -> Float[Tensor, "b h"]:
        """The code of rows of which some values are hidden: a hidden value is 0, the mean."""
        return self.trunk(normalised if kept is None else normalised * kept)

    def forward(self, x: Float[Tensor, "b f"]) -> Float[Tensor, "b d"]:
        return self.projector(self.code(self.norm(self.scaling(x))))


class Encoders(Towers):
    """Two encoders as towers: no class head, unit-norm projections."""

    def __init__(self, views: Mapping[str, ViewInput], model: Model):
        nn.Module.__init__(self)
        self.towers = nn.ModuleDict({name: Encoder(view, model) for name, view in views.items()})
        self.head = None

    def __getitem__(self, view: str) -> Encoder:
        encoder = self.towers[view]
        assert isinstance(encoder, Encoder)
        return encoder

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles what training calls, the trunks, and not the whole."""
        for view in self.towers:
            self[view].trunk.compile(*args, **kwargs)


class Decoders(nn.Module):
    """Decoders by (source, target) view: three linear layers, tanh and dropout between them."""

    def __init__(
        self,
        pairs: Sequence[tuple[str, str]],
        sizes: Mapping[str, int],
        *,
        code: int,
        width: int,
        dropout: float,
    ):
        super().__init__()
        self.pairs = tuple(pairs)
        self.decoders = nn.ModuleList(
            nn.Sequential(
                nn.Linear(code, width),
                nn.Tanh(),
                Dropout(dropout),
                nn.Linear(width, width),
                nn.Tanh(),
                Dropout(dropout),
                nn.Linear(width, sizes[target]),
            )
            for _, target in pairs
        )

    def forward(
        self, codes: Mapping[str, Float[Tensor, "b h"]]
    ) -> dict[tuple[str, str], Float[Tensor, "b _"]]:
        return {
            (source, target): decode(codes[source])
            for (source, target), decode in zip(self.pairs, self.decoders, strict=True)
        }

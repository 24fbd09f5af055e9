"""The exponential moving average of a module: the slow copy that teaches and that is evaluated."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

_Module = TypeVar("_Module", bound=nn.Module)

_Place = tuple[dict[str, Tensor], str]
"""Where a module keeps a tensor."""


def slow_copy(fast: _Module) -> _Module:
    """A copy in evaluation mode that no gradient moves; a `Follower` does."""
    return copy.deepcopy(fast).requires_grad_(False).eval()


class Follower:
    """Moves a slow module towards a fast one of the same shape: slow <- decay slow + (1 - decay) fast.

    Float buffers are averaged as parameters are, or copied; other buffers are copied.  A deterministic function of
    the synchronised weights, so every rank keeps a bit-identical replica without traffic.

    Modules are walked once, here.  Tensors are looked up at each step: a module that moves to another device gets
    new buffers.
    """

    def __init__(self, slow: nn.Module, fast: nn.Module, *, buffers: Literal["averaged", "copied"]):
        self._average_buffers = buffers == "averaged"
        self._parameters = list(zip(_places(slow, "_parameters"), _places(fast, "_parameters"), strict=True))
        self._buffers = list(zip(_places(slow, "_buffers"), _places(fast, "_buffers"), strict=True))

    @torch.no_grad()
    def move(self, decay: float) -> None:
        averaged = _tensors(self._parameters)
        for slow, fast in _tensors(self._buffers):
            if self._average_buffers and slow.is_floating_point():
                averaged.append((slow, fast))
            else:
                slow.copy_(fast)
        if averaged:
            torch._foreach_lerp_([slow for slow, _ in averaged], [fast for _, fast in averaged], 1.0 - decay)


class Ema:
    """The average of a module's parameters, its buffers beside them as they are."""

    def __init__(self, source: nn.Module, decay: float):
        self.module = slow_copy(source)
        self.decay = decay
        self._follower = Follower(self.module, source, buffers="copied")

    def update(self) -> None:
        self._follower.move(self.decay)

    def state_dict(self) -> dict[str, Tensor]:
        return self.module.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.module.load_state_dict(state)


def _places(module: nn.Module, kind: Literal["_parameters", "_buffers"]) -> Iterator[_Place]:
    """Of every tensor of a kind, shared ones once."""
    seen = set()
    for part in module.modules():
        held: dict[str, Tensor | None] = getattr(part, kind)
        for name, tensor in held.items():
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield held, name  # type: ignore[misc]


def _tensors(pairs: list[tuple[_Place, _Place]]) -> list[tuple[Tensor, Tensor]]:
    return [(slow[mine], fast[theirs]) for (slow, mine), (fast, theirs) in pairs]

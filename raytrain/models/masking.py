"""Masks that belong to a row: the same whoever draws them, in whatever order, on however many ranks."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

LANES = 4
"""Features that share a word of 64 bits, 16 bits each."""

_MULTIPLIERS = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def kept_features(
    row: Int[Tensor, " b"], size: int, *, ratio: float, seed: tuple[int, ...]
) -> Bool[Tensor, "b {size}"]:
    """False with probability `ratio`, independently for every row id and feature.

    A counter-based generator: the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) on a mixture of
    the words of `seed`, the row id and the group of LANES features.  So a row's mask is a function of these alone.
    `ratio` is rounded to a multiple of 2^-16.
    """
    key = 0
    for word in seed:
        key = _mixed(key + _MULTIPLIERS[0] + word % 2**64)
    rows = _mix((row + _signed(key)) * _signed(_MULTIPLIERS[0]))  # [b]
    groups = torch.arange(-(-size // LANES), device=row.device)
    groups = _mix((groups + 1) * _signed(_MULTIPLIERS[1]))  # [size / LANES]
    bits = _mix(rows[:, None] + groups[None, :]).view(torch.int16)[:, :size]  # uniform in -2^15 .. 2^15 - 1
    threshold = round(ratio * 2**16) - 2**15
    return bits >= threshold if threshold < 2**15 else torch.zeros_like(bits, dtype=torch.bool)


def _mix(x: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """SplitMix64's finaliser on 64-bit words that wrap around."""
    for shift, multiplier in ((30, _MULTIPLIERS[1]), (27, _MULTIPLIERS[2])):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * _signed(multiplier)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def _mixed(word: int) -> int:
    """The same of one Python integer."""
    word %= 2**64
    for shift, multiplier in ((30, _MULTIPLIERS[1]), (27, _MULTIPLIERS[2])):
        word = ((word ^ (word >> shift)) * multiplier) % 2**64
    return word ^ (word >> 31)


def _signed(word: int) -> int:
    """A 64-bit word as the signed integer of the same bits."""
    return (word + 2**63) % 2**64 - 2**63

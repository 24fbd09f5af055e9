"""A fingerprint of the rows that a run was trained on, in the order of training."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

_BASE = 0x9E3779B97F4A7C15 | 1
_WORD = 2**64


class RowStream:
    """Hash of the concatenated row ids r_1 ... r_N of all steps so far:  sum_i mix(r_i) B^(N - i)  mod 2^64.

    A step with n rows makes  h B^n + sum_i mix(r_i) B^(n - i)  of  h,  so where batches and ranks cut the stream does
    not matter, and their order does.  `mix` is the finaliser of splitmix64 (Steele et al., OOPSLA 2014).  It tells
    accidents, not an adversary: the rows of a step are added on the device and nobody waits for them.
    """

    def __init__(self) -> None:
        self.count = 0
        self._hash: Int[Tensor, ""] = torch.zeros((), dtype=torch.int64)
        self._powers: dict[int, Int[Tensor, " n"]] = {}

    def add(self, rows: Int[Tensor, " n"]) -> None:
        """The rows of the world, in rank order."""
        n = rows.shape[0]
        if n not in self._powers:
            self._powers[n] = _powers(n).to(rows.device)
        powers = self._powers[n]
        self._hash = self._hash.to(rows.device) * powers[0] + (_mix(rows) * powers[1:]).sum()
        self.count += n

    def __str__(self) -> str:
        """`<rows>:<hash>`; waits for the device."""
        return f"{self.count}:{int(self._hash) % _WORD:016x}"

    def restore(self, text: str) -> None:
        """The inverse of `str`."""
        count, _, digits = text.partition(":")
        self.count = int(count)
        self._hash = torch.from_numpy(np.array(int(digits, 16), dtype=np.uint64).view(np.int64))


def _powers(n: int) -> Int[Tensor, " n1"]:
    """B^n, then B^(n-1) ... B^0."""
    powers = [1]
    for _ in range(n):
        powers.append(powers[-1] * _BASE % _WORD)
    return torch.from_numpy(np.array([*powers[:0:-1], 1], dtype=np.uint64).view(np.int64))


def _mix(rows: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    z = rows.long() + _signed(_BASE)
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shifted(z, 31)


def _shifted(z: Int[Tensor, " n"], by: int) -> Int[Tensor, " n"]:
    """To the right, zeros coming in; torch's own shift of signed words brings the sign."""
    return (z >> by) & (2 ** (64 - by) - 1)


def _signed(word: int) -> int:
    return word - _WORD if word >= _WORD // 2 else word

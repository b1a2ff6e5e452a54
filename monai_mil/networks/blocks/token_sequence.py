"""A sequence of tokens that is too long to be kept: parts of it are made whenever somebody asks for them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Rows = Callable[[int, int], Tensor]
"""Tokens ``start`` to ``stop`` of a sequence, ``[b, stop - start, D]``."""


class TokenSequence:
    """Tokens made a block at a time, of which the two made last are kept: enough for who reads on, looking around.

    Args:
        make: gives the tokens from a start to a stop, anew each time.
        count: their number.
        step: tokens of a block.
    """

    def __init__(self, make: Rows, count: int, step: int) -> None:
        self.count = count
        self._make = make
        self._step = step
        self._kept: dict[int, Tensor] = {}

    def rows(self, start: int, stop: int) -> Tensor:
        """Tokens ``start`` to ``stop``, ``[b, stop - start, D]``; none of them may lie outside the sequence."""
        parts = []
        for number in range(start // self._step, -(-stop // self._step)):
            first = number * self._step
            parts.append(self._block(number)[:, max(0, start - first) : stop - first])
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _block(self, number: int) -> Tensor:
        if number not in self._kept:
            if len(self._kept) == 2:
                del self._kept[next(iter(self._kept))]
            first = number * self._step
            self._kept[number] = self._make(first, min(first + self._step, self.count))
        return self._kept[number]

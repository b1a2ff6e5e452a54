"""A slide in blocks of pixels of any size, so that nothing as large as the slide is ever held."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

Window = tuple[float, float, float, float]


@dataclass(frozen=True)
class BlockGrid:
    """Square pixels over a whole slide from its upper-left corner, in square blocks.

    Attributes:
        size: width and height of the slide in level-0 pixels.
        pixel: side of a pixel in level-0 pixels; the last row and column may reach past the slide.
        block: side of a block in pixels.
    """

    size: tuple[int, int]
    pixel: float
    block: int = 2048

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of pixels."""
        width, height = self.size
        return math.ceil(height / self.pixel - 1e-9), math.ceil(width / self.pixel - 1e-9)

    @property
    def blocks(self) -> tuple[int, int]:
        """Rows and columns of blocks."""
        rows, columns = self.shape
        return -(-rows // self.block), -(-columns // self.block)

    def box(self, row: int, column: int) -> tuple[int, int, int, int]:
        """A block's x0, y0, x1, y1 in pixels of this grid."""
        rows, columns = self.shape
        x, y = column * self.block, row * self.block
        return x, y, min(x + self.block, columns), min(y + self.block, rows)

    def window(self, row: int, column: int) -> tuple[Window, tuple[int, int]]:
        """A block's x0, y0, x1, y1 in level-0 pixels, and its rows and columns of pixels."""
        x0, y0, x1, y1 = self.box(row, column)
        return (x0 * self.pixel, y0 * self.pixel, x1 * self.pixel, y1 * self.pixel), (y1 - y0, x1 - x0)

    def meeting(self, boxes: np.ndarray) -> np.ndarray:
        """Which blocks meet one of ``boxes`` ``[m, 4]`` in level-0 pixels; bool ``[rows, columns]`` of blocks."""
        met = np.zeros(self.blocks, bool)
        side = self.block * self.pixel
        first = np.maximum(np.floor(boxes[:, :2] / side), 0).astype(int)
        last = np.ceil(boxes[:, 2:] / side).astype(int)
        for (left, top), (right, bottom) in zip(first.tolist(), last.tolist(), strict=True):
            met[top:bottom, left:right] = True
        return met

    def chosen(self, met: np.ndarray) -> Iterator[tuple[int, int]]:
        """Row and column of the blocks that are True in ``met``, row by row."""
        return ((row, column) for row, column in np.argwhere(met).tolist())

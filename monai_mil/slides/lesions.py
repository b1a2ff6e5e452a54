"""The separate lesions of a ground truth that is too large to be held: components joined across blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from monai_mil.slides.blocks import BlockGrid
from monai_mil.slides.truth import Truth


@dataclass(frozen=True, eq=False)
class Lesions:
    """Lesions of a slide on a grid of pixels; made by :func:`find_lesions`.

    Attributes:
        truth: where they come from.
        grid: the pixels.
        area: pixels of each from top to bottom, int64 ``[m]``.
        box: x0, y0, x1, y1 around each in pixels of the grid, int64 ``[m, 4]``.
        names: for every block with truth, which lesion (1 to ``m``) each of its own components belongs to; 0 first.
    """

    truth: Truth
    grid: BlockGrid
    area: np.ndarray
    box: np.ndarray
    names: dict[tuple[int, int], np.ndarray]

    def __len__(self) -> int:
        return len(self.area)

    def labels(self, row: int, column: int) -> np.ndarray:
        """Number of the lesion every pixel of a block belongs to, 0 for none; int32 ``[rows, columns]``."""
        names = self.names.get((row, column))
        if names is None:
            return np.zeros(self.grid.window(row, column)[1], np.int32)
        return names[_components(self.truth, self.grid, row, column)[1]]


def find_lesions(truth: Truth, grid: BlockGrid) -> Lesions:
    """Components of a truth, pixels that touch at a corner joined.

    Blocks are labelled one by one and joined along their borders (union-find), so the answer is that of the whole mask
    at the grid's full resolution; what is held is one block, the last row of pixels above it and a few numbers for
    every component of a block.
    """
    parent, areas, boxes = [0], [0], [(-1, -1, 0, 0)]
    names: dict[tuple[int, int], np.ndarray] = {}
    above, current = np.zeros(grid.shape[1], np.int64), np.zeros(grid.shape[1], np.int64)
    left, left_place = np.zeros(0, np.int64), (-1, -1)
    last_row = -1
    for row, column in grid.chosen(grid.meeting(truth.boxes())):
        if row != last_row:
            above = current if row == last_row + 1 else np.zeros_like(current)
            current, last_row = np.zeros_like(current), row
        count, labels, stats = _components(truth, grid, row, column)
        x0, y0, x1, _ = grid.box(row, column)
        first = len(parent)
        numbers = np.concatenate([[0], np.arange(first, first + count)])
        names[row, column] = numbers
        parent.extend(range(first, first + count))
        areas.extend(stats[:, 4].tolist())
        boxes.extend((x0 + x, y0 + y, x0 + x + w, y0 + y + h) for x, y, w, h, _ in stats.tolist())
        _join(parent, numbers[labels[0]], above[max(x0 - 1, 0) : x1 + 1], x0 - max(x0 - 1, 0))
        if left_place == (row, column - 1):
            _join(parent, numbers[labels[:, 0]], left, 0)
        left, left_place = numbers[labels[:, -1]], (row, column)
        current[x0:x1] = numbers[labels[-1]]
    return _gathered(truth, grid, parent, np.array(areas), np.array(boxes), names)


def _components(truth: Truth, grid: BlockGrid, row: int, column: int) -> tuple[int, np.ndarray, np.ndarray]:
    """Number of components in a block, their labels, and x, y, width, height and area of each, ``[m, 5]``."""
    import cv2

    window, shape = grid.window(row, column)
    mask = truth.window(*window, shape).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    return count - 1, labels, stats[1:]


def _join(parent: list[int], line: np.ndarray, beside: np.ndarray, offset: int) -> None:
    """Join what touches along a border: ``line[i]`` with ``beside[i + offset]`` and both of its neighbours."""
    padded = np.pad(beside, (1, 2))
    for shift in (0, 1, 2):
        other = padded[offset + shift : offset + shift + len(line)]
        met = (line > 0) & (other > 0)
        for one, two in np.unique(np.stack([line[met], other[met]], axis=1), axis=0).tolist():
            a, b = _root(parent, one), _root(parent, two)
            parent[max(a, b)] = min(a, b)


def _root(parent: list[int], number: int) -> int:
    while parent[number] != number:
        parent[number] = parent[parent[number]]
        number = parent[number]
    return number


def _gathered(
    truth: Truth,
    grid: BlockGrid,
    parent: list[int],
    areas: np.ndarray,
    boxes: np.ndarray,
    names: dict[tuple[int, int], np.ndarray],
) -> Lesions:
    roots = np.array([_root(parent, number) for number in range(len(parent))])
    kept, lesion = np.unique(roots, return_inverse=True)
    area = np.bincount(lesion, areas, len(kept)).astype(np.int64)
    box = np.full((len(kept), 4), np.iinfo(np.int64).max)
    box[:, 2:] = 0
    np.minimum.at(box[:, :2], lesion, boxes[:, :2])
    np.maximum.at(box[:, 2:], lesion, boxes[:, 2:])
    # From top to bottom, so that a lesion has its number whatever the blocks; the background's box comes first.
    order = np.lexsort((area, *box.T[[3, 2, 0, 1]]))
    rank = np.argsort(order)
    numbered = {place: rank[lesion[numbers]].astype(np.int32) for place, numbers in names.items()}
    return Lesions(truth, grid, area[order][1:], box[order][1:], numbered)

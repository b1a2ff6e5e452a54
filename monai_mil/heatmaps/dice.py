"""Dice of a slide's smooth map against its ground truth, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from monai_mil.heatmaps.stitching import TokenCanvas
from monai_mil.metrics import DiceCounts
from monai_mil.slides import BlockGrid, Lesions, Truth

_OVERSHOOT = 1.5
"""Bicubic interpolation of values from 0 up stays below this multiple of the largest (1.41 + 0.04)."""
_MARGIN = 6


@dataclass(frozen=True)
class SlideDice:
    """What was counted on a slide: ``whole``, and ``lesions`` in their order."""

    whole: DiceCounts
    lesions: tuple[DiceCounts, ...]


def slide_dice(canvas: TokenCanvas, threshold: float, lesions: Lesions, margin: float = 0.0) -> SlideDice:
    """Count a slide's pixels.

    The prediction is where the smooth map lies above the threshold; the truth counts everywhere, also where there is
    no tile. A lesion is judged in a crop, its box enlarged by ``margin`` on every side, from which the pixels of other
    lesions are left out. Held are the canvas and one block.

    Args:
        canvas: the map.
        threshold: what is above is predicted.
        lesions: the truth, on the grid whose pixels are counted.
        margin: in pixels of that grid; one tile in INSIGHT's comparison.
    """
    grid = lesions.grid
    crops = np.concatenate([lesions.box[:, :2] - round(margin), lesions.box[:, 2:] + round(margin)], axis=1)
    needed = grid.meeting(crops * grid.pixel)
    whole = np.zeros(3, np.int64)
    single = np.zeros((len(lesions), 3), np.int64)
    for row, column in grid.chosen(np.ones(grid.blocks, bool)):
        if not needed[row, column] and not _may_exceed(canvas, grid, row, column, threshold):
            continue
        predicted = _above(canvas, grid, row, column, threshold)
        labels = lesions.labels(row, column)
        whole += _counts(predicted, labels > 0)
        if not needed[row, column]:
            continue
        for index, part in _parts(crops, grid.box(row, column)):
            own = labels[part] == index + 1
            single[index] += _counts(predicted[part] & (own | (labels[part] == 0)), own)
    return SlideDice(DiceCounts(*whole.tolist()), tuple(DiceCounts(*counts) for counts in single.tolist()))


def dice_counts(canvas: TokenCanvas, thresholds: np.ndarray, truth: Truth, grid: BlockGrid) -> np.ndarray:
    """``|P and G|``, ``|P|`` and ``|G|`` of the slide for many ascending thresholds in one pass; int64 ``[t, 3]``."""
    needed = grid.meeting(truth.boxes())
    histogram = np.zeros((2, len(thresholds) + 1), np.int64)
    outside = 0
    for row, column in grid.chosen(np.ones(grid.blocks, bool)):
        if not needed[row, column] and not _may_exceed(canvas, grid, row, column, float(thresholds[0])):
            continue
        window, shape = grid.window(row, column)
        scores = canvas.upsample(window, shape)
        inside = truth.window(*window, shape) if needed[row, column] else np.zeros(shape, bool)
        known = ~np.isnan(scores)
        outside += int(np.count_nonzero(inside & ~known))
        # How many thresholds a score lies above.
        reached = np.searchsorted(thresholds.astype(np.float32), scores[known], side="left")
        for value, counts in enumerate(histogram):
            counts += np.bincount(reached[inside[known] == bool(value)], minlength=len(counts))
    above = histogram[:, ::-1].cumsum(axis=1)[:, ::-1]
    truth_pixels = np.full(len(thresholds), above[1, 0] + outside)
    return np.stack([above[1, 1:], above[:, 1:].sum(axis=0), truth_pixels], axis=1)


def _above(canvas: TokenCanvas, grid: BlockGrid, row: int, column: int, threshold: float) -> np.ndarray:
    window, shape = grid.window(row, column)
    if not _may_exceed(canvas, grid, row, column, threshold):
        return np.zeros(shape, bool)
    with np.errstate(invalid="ignore"):
        return canvas.upsample(window, shape) > np.float32(threshold)


def _may_exceed(canvas: TokenCanvas, grid: BlockGrid, row: int, column: int, threshold: float) -> bool:
    """Whether the smooth map could lie above the threshold in a block; False costs no interpolation."""
    window = np.array(grid.window(row, column)[0]).reshape(2, 2)
    low, high = (window - canvas.origin) / canvas.step
    margin = _MARGIN * np.maximum(grid.pixel / np.array(canvas.step), 1)
    left, top = np.maximum(np.floor(low - margin), 0).astype(int)
    right, bottom = np.maximum(np.ceil(high + margin), 0).astype(int)
    tokens = canvas.values[top:bottom, left:right]
    tokens = tokens[~np.isnan(tokens)]
    if tokens.size == 0:
        return False
    return bool(canvas.limits[0] < 0 or tokens.max() * _OVERSHOOT > threshold)


def _parts(crops: np.ndarray, block: tuple[int, int, int, int]) -> Iterator[tuple[int, tuple[slice, slice]]]:
    """The crops that meet a block, with their part of it as rows and columns."""
    x0, y0, x1, y1 = block
    low = np.maximum(crops[:, :2], (x0, y0)) - (x0, y0)
    high = np.minimum(crops[:, 2:], (x1, y1)) - (x0, y0)
    for index in np.flatnonzero((low < high).all(axis=1)).tolist():
        (left, top), (right, bottom) = low[index].tolist(), high[index].tolist()
        yield index, (slice(top, bottom), slice(left, right))


def _counts(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.array([np.count_nonzero(each) for each in (predicted & truth, predicted, truth)])

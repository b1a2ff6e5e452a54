"""Tiles to pixels and to rectangles: exact, and as fast as copying the canvas.

Tiles of a slide-wide grid share few distinct x and few distinct y. All work is done on the rectangles between those
(``Cells``), thousands in place of millions of pixels, and only the last step touches every pixel, one row copy each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

Overlap = Literal["max", "mean"]

_MAX_GRID = 4_000_000
_MAX_LAYERS = 64


@dataclass(frozen=True, eq=False)
class Cells:
    """A rectilinear partition: ``values[r, c]`` fills ``x[c] .. x[c + 1]``, ``y[r] .. y[r + 1]``; NaN outside tiles."""

    x: np.ndarray
    y: np.ndarray
    values: np.ndarray


@dataclass(frozen=True, eq=False)
class _Axis:
    """One axis of the partition: which tile positions, and which cell of their blocks, cover each interval."""

    edges: np.ndarray
    position: np.ndarray
    """``[layers, intervals]``: index of a distinct tile position that covers the interval, -1 where there is none."""
    cell: np.ndarray
    """``[layers, intervals]``: index of the cell inside that position's block."""


def paint(
    coords: np.ndarray,
    scores: np.ndarray,
    tile_size: float,
    *,
    shape: tuple[int, int],
    scale: tuple[float, float],
    overlap: Overlap = "max",
    colours: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Draw tiles on a canvas; see :meth:`monai_mil.heatmaps.Heatmap.raster` for the geometry.

    Args:
        coords: upper-left corners in level-0 pixels, ``[n, 2]``.
        scores: ``[n]`` or ``[n, h, w]``.
        tile_size: side of a tile in level-0 pixels.
        shape: canvas height and width in pixels.
        scale: level-0 pixels per canvas pixel, in x and y.
        overlap: ``max`` or ``mean``.
        colours: maps scores ``[r, c]`` to what is drawn for them, ``[r, c, ...]``; called once for each distinct
            rectangle rather than for each pixel.

    Returns:
        float32 ``[height, width]``, NaN where no tile lies, or what ``colours`` makes of that.
    """
    blocks = _blocks(scores)
    columns, column = np.unique(coords[:, 0], return_inverse=True)
    rows, row = np.unique(coords[:, 1], return_inverse=True)
    x_bounds = _pixel_bounds(columns, tile_size, blocks.shape[2], scale[0])
    y_bounds = _pixel_bounds(rows, tile_size, blocks.shape[1], scale[1])
    partition = _combine(blocks, x_bounds, y_bounds, column, row, overlap)
    if partition is None:
        values = _paint_one_by_one(blocks, x_bounds[column], y_bounds[row], shape, overlap)
        return values if colours is None else colours(values)
    surrounded = np.pad(partition.values, ((0, 1), (0, 1)), constant_values=np.nan)
    drawn = surrounded if colours is None else colours(surrounded)
    row_of_pixel = _expand(np.arange(len(partition.values)), partition.y, shape[0], fill=-1)
    column_of_pixel = _expand(np.arange(partition.values.shape[1]), partition.x, shape[1], fill=-1)
    return np.take(drawn, column_of_pixel, axis=1)[row_of_pixel]


def cells(coords: np.ndarray, scores: np.ndarray, tile_size: float, *, overlap: Overlap = "max") -> Cells | None:
    """The exact partition of the tiles in level-0 coordinates, for outlines.

    A tile's far side is moved to a neighbour's near side when closer than one pixel: integer coordinates of a grid
    with a fractional step leave gaps and overlaps of less than that.

    Args:
        coords: upper-left corners in level-0 pixels, ``[n, 2]``.
        scores: ``[n]`` or ``[n, h, w]``.
        tile_size: side of a tile in level-0 pixels.
        overlap: ``max`` or ``mean``.

    Returns:
        The partition, or None where tiles share so few coordinates that it would be larger than a raster.
    """
    blocks = _blocks(scores)
    columns, column = np.unique(coords[:, 0], return_inverse=True)
    rows, row = np.unique(coords[:, 1], return_inverse=True)
    x_bounds = _snapped_bounds(columns, tile_size, blocks.shape[2])
    y_bounds = _snapped_bounds(rows, tile_size, blocks.shape[1])
    return _combine(blocks, x_bounds, y_bounds, column, row, overlap)


def _blocks(scores: np.ndarray) -> np.ndarray:
    return scores if scores.ndim == 3 else scores[:, None, None]


def _pixel_bounds(positions: np.ndarray, tile_size: float, count: int, scale: float) -> np.ndarray:
    """First pixel of every cell of a tile at each position, and the pixel after the last: int64 ``[m, count + 1]``."""
    sides = positions[:, None] + np.linspace(0, tile_size, count + 1)
    bounds = np.ceil(sides / scale - 0.5).astype(np.int64)
    lost = bounds[:, 0] == bounds[:, -1]
    centre = np.floor((positions[lost] + tile_size / 2) / scale).astype(np.int64)
    bounds[lost, : (count + 1) // 2] = centre[:, None]
    bounds[lost, (count + 1) // 2 :] = centre[:, None] + 1
    return bounds


def _snapped_bounds(positions: np.ndarray, tile_size: float, count: int) -> np.ndarray:
    """Sides of every cell of a tile at each position, float64 ``[m, count + 1]``."""
    far = positions + tile_size
    nearest = np.searchsorted(positions, far)
    for neighbour in (np.clip(nearest - 1, 0, len(positions) - 1), np.clip(nearest, 0, len(positions) - 1)):
        close = (np.abs(positions[neighbour] - far) < 1) & (positions[neighbour] > positions)
        far = np.where(close, positions[neighbour], far)
    return positions[:, None] + (far - positions)[:, None] * np.linspace(0, 1, count + 1)


def _axis(bounds: np.ndarray) -> _Axis:
    edges = np.unique(bounds)
    start = edges[:-1]
    first = np.searchsorted(bounds[:, -1], start, side="right")
    after = np.searchsorted(bounds[:, 0], start, side="right")
    layer = np.arange(max(1, int((after - first).max(initial=0))))[:, None]
    position = np.where(first + layer < after, first + layer, -1)
    cell = np.zeros_like(position)
    for inner in range(1, bounds.shape[1] - 1):
        cell += bounds[position, inner] <= start
    return _Axis(edges, position, cell)


def _combine(
    blocks: np.ndarray,
    x_bounds: np.ndarray,
    y_bounds: np.ndarray,
    column: np.ndarray,
    row: np.ndarray,
    overlap: Overlap,
) -> Cells | None:
    """Combine the tiles over every rectangle; None where another way is cheaper or two tiles share their position."""
    if len(x_bounds) * len(y_bounds) > max(_MAX_GRID, 4 * len(column)):
        return None
    grid = np.full((len(y_bounds) + 1, len(x_bounds) + 1), -1, np.int64)
    grid[row, column] = np.arange(len(column))
    if np.count_nonzero(grid >= 0) < len(column):
        return None
    x, y = _axis(x_bounds), _axis(y_bounds)
    if len(x.position) * len(y.position) > _MAX_LAYERS:
        return None
    total = np.full((len(y.edges) - 1, len(x.edges) - 1), np.nan, np.float32)
    count = np.zeros(total.shape, np.int32)
    for y_position, y_cell in zip(y.position, y.cell, strict=True):
        for x_position, x_cell in zip(x.position, x.cell, strict=True):
            tile = grid[y_position[:, None], x_position]
            value = np.where(tile >= 0, blocks[tile, y_cell[:, None], x_cell], np.float32(np.nan))
            total = np.fmax(total, value) if overlap == "max" else _add(total, value)
            count += tile >= 0
    return Cells(x.edges, y.edges, total if overlap == "max" else total / np.maximum(count, 1).astype(np.float32))


def _add(total: np.ndarray, value: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(total), value, total + np.nan_to_num(value))


def _expand(values: np.ndarray, edges: np.ndarray, length: int, fill: float = np.nan) -> np.ndarray:
    """Repeat ``values[i]`` over pixels ``edges[i] .. edges[i + 1]`` of an axis of ``length`` pixels."""
    inside = np.clip(edges, 0, length)
    out = np.full((length, *values.shape[1:]), fill, values.dtype)
    out[inside[0] : inside[-1]] = np.repeat(values, np.diff(inside), axis=0)
    return out


def _paint_one_by_one(
    blocks: np.ndarray, x_bounds: np.ndarray, y_bounds: np.ndarray, shape: tuple[int, int], overlap: Overlap
) -> np.ndarray:
    """Any arrangement of tiles, one small rectangle after the other."""
    canvas = np.full(shape, np.nan if overlap == "max" else 0, np.float32)
    count = np.zeros(shape if overlap == "mean" else (0, 0), np.int32)
    for block, x, y in zip(blocks, x_bounds, y_bounds, strict=True):
        area = (slice(max(y[0], 0), max(y[-1], 0)), slice(max(x[0], 0), max(x[-1], 0)))
        value = _expand(_expand(block, y - y[0], y[-1] - y[0]).T, x - x[0], x[-1] - x[0]).T
        value = value[max(-y[0], 0) :, max(-x[0], 0) :][
            : max(shape[0] - area[0].start, 0), : max(shape[1] - area[1].start, 0)
        ]
        if overlap == "max":
            canvas[area] = np.fmax(canvas[area], value)
        else:
            canvas[area] += value
            count[area] += 1
    if overlap == "mean":
        canvas[count == 0] = np.nan
        np.divide(canvas, count, out=canvas, where=count > 0)
    return canvas

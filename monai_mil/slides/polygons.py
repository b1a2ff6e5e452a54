"""Polygons as pixels: exactly those whose centre lies inside, whatever window is looked at."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True, eq=False)
class Polygon:
    """An outline and its holes.

    Attributes:
        rings: x and y of the corners in level-0 pixels, float64 ``[k, 2]`` each, closed or not. A point is inside if a
            line from it to the outside crosses the rings an odd number of times.
    """

    rings: tuple[np.ndarray, ...]

    @cached_property
    def box(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 around it."""
        points = np.concatenate(self.rings)
        return *points.min(axis=0).tolist(), *points.max(axis=0).tolist()

    @cached_property
    def edges(self) -> np.ndarray:
        """All sides that are not level, x and y of the upper and of the lower end: float64 ``[m, 4]``."""
        sides = np.concatenate([np.concatenate([ring, np.roll(ring, -1, axis=0)], axis=1) for ring in self.rings])
        sides = sides[sides[:, 1] != sides[:, 3]]
        return np.where((sides[:, 1] > sides[:, 3])[:, None], sides[:, [2, 3, 0, 1]], sides)


def rasterise(polygon: Polygon, window: tuple[float, float, float, float], out: np.ndarray, value: bool) -> None:
    """Set the pixels of ``out`` whose centre lies in a polygon to ``value``.

    Args:
        polygon: what is drawn.
        window: x0, y0, x1, y1 of ``out`` in level-0 pixels.
        out: bool ``[rows, columns]``, changed in place.
        value: what they become.
    """
    x0, y0, x1, y1 = window
    rows, columns = out.shape
    step_x, step_y = (x1 - x0) / columns, (y1 - y0) / rows
    left, right = _first_behind(np.array([polygon.box[0], polygon.box[2]]), x0, step_x, columns)
    top, bottom = _first_behind(np.array([polygon.box[1], polygon.box[3]]), y0, step_y, rows)
    if left >= right or top >= bottom:
        return
    edges = polygon.edges
    first = _first_behind(edges[:, 1], y0, step_y, rows)
    count = _first_behind(edges[:, 3], y0, step_y, rows) - first
    met = count > 0
    edges, first, count = edges[met], first[met], count[met]
    # Every side toggles each row it crosses, from the first pixel whose centre lies behind the crossing.
    edge = np.repeat(np.arange(len(edges)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    upper_x, upper_y, lower_x, lower_y = edges[edge].T
    crossing = upper_x + (y0 + (row + 0.5) * step_y - upper_y) * ((lower_x - upper_x) / (lower_y - upper_y))
    column = _first_behind(crossing, x0, step_x, columns)
    toggles = np.zeros((bottom - top, right - left + 1), np.uint8)
    np.add.at(toggles, (row - top, np.clip(column, left, right) - left), 1)
    inside = np.bitwise_xor.accumulate(toggles[:, :-1] & 1, axis=1).astype(bool)
    out[top:bottom, left:right][inside] = value


def _first_behind(position: np.ndarray, start: float, step: float, count: int) -> np.ndarray:
    """The first of ``count`` pixels whose centre is at ``position`` or behind it, int64."""
    return np.clip(np.ceil((position - start) / step - 0.5), 0, count).astype(np.int64)

"""Bodies in the lungs of synthetic CT: branching vessels and nodules, in millimetres."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

LungDepth = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Depth below the lungs' surface at places ``x, y, z``, mm."""

_SUBSLICES = 5
_SMALLEST_VESSEL = 0.5
_LARGEST_VESSEL = 3.2
_ZOOM = 2


@dataclass(frozen=True, eq=False)
class Nodule:
    """A solid, slightly lobulated body; lengths in mm."""

    centre: np.ndarray
    radius: float
    hu: float
    lobes: np.ndarray
    """Directions of its bulges, unit vectors ``[k, 3]``."""

    def cover(self, x: np.ndarray, y: np.ndarray, z: float, slice_mm: float, spacing: float) -> np.ndarray:
        """Share of each voxel of a slice that it fills, float32 of the shape of ``x``."""
        cover = np.zeros(x.shape, np.float32)
        reach = self.radius * 1.3 + spacing
        if abs(z - self.centre[2]) > reach + slice_mm / 2:
            return cover
        columns = np.flatnonzero(np.abs(x[0] - self.centre[0]) < reach)
        rows = np.flatnonzero(np.abs(y[:, 0] - self.centre[1]) < reach)
        if not len(columns) or not len(rows):
            return cover
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        for height in z + slice_mm * ((np.arange(_SUBSLICES) + 0.5) / _SUBSLICES - 0.5):
            cover[box] += np.clip(self._depth(x[box], y[box], height) / spacing + 0.5, 0, 1) / _SUBSLICES
        return cover

    def _depth(self, x: np.ndarray, y: np.ndarray, z: float) -> np.ndarray:
        offset = np.stack([x, y, np.full_like(x, z)], axis=-1) - self.centre
        distance = np.linalg.norm(offset, axis=-1)
        bulges = np.clip(offset @ self.lobes.T / np.maximum(distance, 1e-3)[..., None], 0, 1) ** 6
        return self.radius * (0.92 + 0.22 * bulges.max(axis=-1)) - distance


def place_nodule(
    rng: np.random.Generator,
    lung_depth: LungDepth,
    heights: tuple[float, float],
    radius: float,
    hu: float,
    others: Sequence[Nodule] = (),
) -> Nodule:
    """A nodule that lies in the lung and within ``heights`` with all of its body, away from the ``others``."""
    lobes = rng.standard_normal((5, 3))
    lobes /= np.linalg.norm(lobes, axis=1, keepdims=True)
    margin = min(radius * 1.15, (heights[1] - heights[0]) / 2)
    for room in (1.25, 0.6, 0.0):
        x, y = rng.uniform(-130, 130, 4000), rng.uniform(-95, 95, 4000)
        z = rng.uniform(heights[0] + margin, heights[1] - margin, 4000)
        fits = lung_depth(x, y, z) > radius * room + 1.5
        for other in others:
            fits &= np.hypot(np.hypot(x - other.centre[0], y - other.centre[1]), z - other.centre[2]) > 40
        if fits.any():
            first = int(fits.argmax())
            return Nodule(np.array([x[first], y[first], z[first]]), radius, hu, lobes)
    raise ValueError(f"no room for a nodule of {2 * radius:.0f} mm between {heights[0]:.0f} and {heights[1]:.0f} mm")


def grow_vessels(rng: np.random.Generator, lung_depth: LungDepth, height: float) -> np.ndarray:
    """Arteries and veins from both hila to the surface, pieces ``[m, 7]``: both ends and the radius."""
    start, direction, radius = _stems(rng, height)
    pieces = []
    while len(start):
        length = (3.0 + 2.6 * radius) * rng.uniform(0.8, 1.3, len(radius))
        end = start + direction * length[:, None]
        pieces.append(np.column_stack([start, end, radius]))
        alive = (lung_depth(end[:, 0], end[:, 1], end[:, 2]) > 1.5) | (radius > 2.4)
        start, direction, radius = end[alive], direction[alive], radius[alive]
        start, direction, radius = _branch(rng, start, direction, radius)
    return np.concatenate(pieces)


def _stems(rng: np.random.Generator, height: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Start, direction and radius of the vessels at the hila: a fan to the side of each lung, up and down."""
    count = 22
    side = np.repeat([-1.0, 1.0], count)
    turn = np.tile(np.linspace(-np.pi, np.pi, count, endpoint=False), 2) + rng.uniform(-0.3, 0.3, 2 * count)
    fan = rng.uniform(0.6, 1.4, 2 * count)
    direction = np.column_stack([side * 0.75, fan * np.sin(turn) * 0.7, fan * np.cos(turn)])
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    x, y = np.where(side < 0, -32.0, 46.0), np.where(side < 0, 3.0, 16.0)  # the left hilum lies behind the heart
    start = np.column_stack([x, y + rng.uniform(-9, 9, 2 * count), height * rng.uniform(0.42, 0.52, 2 * count)])
    return start, direction, rng.uniform(1.8, _LARGEST_VESSEL, 2 * count)


def _branch(
    rng: np.random.Generator, start: np.ndarray, direction: np.ndarray, radius: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The next piece of every vessel: bent a little, and now and then divided in two."""
    divides = rng.random(len(radius)) < 0.5
    share = rng.uniform(0.55, 0.85, len(radius))
    bend = rng.standard_normal(direction.shape) * 0.16
    aside = rng.standard_normal(direction.shape)
    aside -= (aside * direction).sum(axis=1, keepdims=True) * direction
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    main = direction + bend - 0.25 * aside * divides[:, None]
    twig = direction + 0.85 * aside
    start = np.concatenate([start, start[divides]])
    direction = np.concatenate([main, twig[divides]])
    radius = np.concatenate([radius * np.where(divides, 0.88, 0.95), (radius * share)[divides]])
    thick = radius > _SMALLEST_VESSEL
    direction = direction / np.linalg.norm(direction, axis=1, keepdims=True)
    return start[thick], direction[thick], radius[thick]


def draw_vessels(pieces: np.ndarray, z: float, slice_mm: float, size: int, spacing: float) -> np.ndarray:
    """Share of each voxel of a slice that is vessel, float32 ``[size, size]``; thin ones fill a slice in part."""
    low, high = z - slice_mm / 2, z + slice_mm / 2
    bottom, top = np.sort(pieces[:, [2, 5]], axis=1).T
    near = (bottom - pieces[:, 6] < high) & (top + pieces[:, 6] > low)
    canvas = np.zeros((size * _ZOOM, size * _ZOOM), np.float32)
    pixel = spacing / _ZOOM
    centre = (size * _ZOOM - 1) / 2
    for x0, y0, z0, x1, y1, z1, radius in pieces[near]:
        rise = z1 - z0
        first, last = 0.0, 1.0
        if abs(rise) > 1e-6:
            ends = sorted(((low - z0) / rise, (high - z0) / rise))
            first, last = np.clip(ends, 0, 1)
        run = np.hypot(np.hypot(x1 - x0, y1 - y0), rise)
        steep = abs(rise) / run
        filled = steep + (1 - steep) * min(1.0, 1.7 * radius / slice_mm)
        points = [
            tuple(round((centre + value / pixel) * 8) for value in (x0 + (x1 - x0) * at, y0 + (y1 - y0) * at))
            for at in (first, last)
        ]
        width = 2 * radius / pixel
        thin = min(1.0, width)
        cv2.line(canvas, points[0], points[1], filled * thin, max(1, round(width)), cv2.LINE_8, 3)
    blurred = cv2.GaussianBlur(canvas, (0, 0), 0.8)
    return np.asarray(cv2.resize(blurred, (size, size), interpolation=cv2.INTER_AREA), np.float32)

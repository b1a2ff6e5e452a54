"""Outlines of high-scoring tissue: unions of tiles as polygons with holes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from monai_mil.heatmaps.heatmap import Heatmap, canvas_geometry
from monai_mil.heatmaps.raster import Cells, Overlap, cells, paint


@dataclass(frozen=True, eq=False)
class Region:
    """One connected region.

    Attributes:
        rings: closed rings ``[k, 2]`` of x, y in level-0 pixels; the first is the outline, the others are holes.
            Outlines run clockwise on the screen, holes the other way round.
        mean: mean score over the region's area.
        maximum: highest score in it.
        area: in square level-0 pixels.
    """

    rings: tuple[np.ndarray, ...]
    mean: float
    maximum: float
    area: float


def find_regions(
    heatmap: Heatmap, threshold: float, *, percentile: bool = False, overlap: Overlap = "max"
) -> list[Region]:
    """Regions of tiles that touch along a side and whose score is at least ``threshold``, largest first.

    Args:
        heatmap: the scores.
        threshold: lowest score of a region's tiles.
        percentile: ``threshold`` is a percentile within the slide.
        overlap: how scores of overlapping tiles are combined.
    """
    import cv2

    partition = _partition(heatmap, overlap)
    level = np.sort(heatmap.scores, axis=None)
    if percentile:
        ranks = np.sort(heatmap.percentiles(), axis=None)
        at = int(np.searchsorted(ranks, np.float32(threshold)))
        threshold = float(level[at]) if at < len(level) else np.inf
    with np.errstate(invalid="ignore"):
        inside = partition.values >= threshold
    count, labels = cv2.connectedComponents(inside.astype(np.uint8), connectivity=4)
    if count == 1:
        return []
    area = np.diff(partition.y)[:, None] * np.diff(partition.x)
    total = np.bincount(labels.ravel(), area.ravel(), count)
    weighted = np.bincount(labels.ravel(), (area * np.where(inside, partition.values, 0)).ravel(), count)
    maximum = np.full(count, -np.inf)
    np.maximum.at(maximum, labels[inside].astype(np.intp), partition.values[inside])
    rings = _trace(labels)
    regions = [
        Region(
            rings=tuple(np.column_stack([partition.x[ring[:, 1]], partition.y[ring[:, 0]]]) for ring in rings[label]),
            mean=float(weighted[label] / total[label]),
            maximum=float(maximum[label]),
            area=float(total[label]),
        )
        for label in range(1, count)
    ]
    return sorted(regions, key=lambda region: -region.area)


def _partition(heatmap: Heatmap, overlap: Overlap) -> Cells:
    """Rectangles of the slide with one score each; where tiles lie anyhow, pixels of a sixteenth of a tile."""
    frame = heatmap.frame
    width, height = frame.level0_size
    exact = cells(heatmap.coords, heatmap.scores, frame.tile_size_level0, overlap=overlap)
    if exact is not None:
        x, y = np.clip(exact.x, 0, width), np.clip(exact.y, 0, height)
        columns, rows = np.diff(x) > 0, np.diff(y) > 0
        return Cells(_kept_edges(x, columns), _kept_edges(y, rows), exact.values[rows][:, columns])
    shape, scale = canvas_geometry(frame.level0_size, downsample=max(1.0, frame.tile_size_level0 / 16))
    values = paint(heatmap.coords, heatmap.scores, frame.tile_size_level0, shape=shape, scale=scale, overlap=overlap)
    x, y = np.arange(shape[1] + 1) * scale[0], np.arange(shape[0] + 1) * scale[1]
    return Cells(np.minimum(x, width), np.minimum(y, height), values)


def _kept_edges(edges: np.ndarray, kept: np.ndarray) -> np.ndarray:
    return np.append(edges[:-1][kept], edges[1:][kept][-1])


def _trace(labels: np.ndarray) -> dict[int, list[np.ndarray]]:
    """Boundary rings of every component of a label image, outline first.

    Args:
        labels: int ``[rows, columns]``, 0 outside, components connected along sides.

    Returns:
        For every label its closed rings of grid corners (row, column), int ``[k, 2]``, corners on a straight line left
        out. Where two cells of one component touch at a corner only, the rings keep apart, so no ring touches itself.
    """
    padded = np.pad(labels, 1)
    inner = padded[1:-1, 1:-1]
    sides = (  # neighbour beyond the side; start and end corner of the side relative to the cell, clockwise
        (padded[:-2, 1:-1], (0, 0), (0, 1)),
        (padded[1:-1, 2:], (0, 1), (1, 1)),
        (padded[2:, 1:-1], (1, 1), (1, 0)),
        (padded[1:-1, :-2], (1, 0), (0, 0)),
    )
    following: dict[tuple[int, int], list[tuple[int, int, tuple[int, int]]]] = defaultdict(list)
    for direction, (neighbour, start, end) in enumerate(sides):
        rows, columns = np.nonzero((inner > 0) & (neighbour != inner))
        for row, column, label in zip(rows.tolist(), columns.tolist(), inner[rows, columns].tolist(), strict=True):
            corner = (row + start[0], column + start[1])
            following[corner].append((direction, label, (row + end[0], column + end[1])))
    rings: dict[int, list[np.ndarray]] = defaultdict(list)
    for first in sorted(following):
        while following[first]:
            label, ring = _walk(following, first)
            rings[label].append(ring)
    return rings


def _walk(
    following: dict[tuple[int, int], list[tuple[int, int, tuple[int, int]]]], first: tuple[int, int]
) -> tuple[int, np.ndarray]:
    """Follow the sides from ``first`` back to it, using each up."""
    direction, label, corner = following[first].pop(0)
    start, ring = direction, [first]
    while corner != first:
        choices = following[corner]
        chosen = 0
        if len(choices) == 2:
            same = choices[0][1] == choices[1][1] == label
            turn = (direction - 1) % 4 if same else (direction + 1) % 4
            chosen = next(i for i, side in enumerate(choices) if side[0] == turn)
        turned, _, after = choices.pop(chosen)
        if turned != direction:
            ring.append(corner)
        direction, corner = turned, after
    if direction == start:
        ring = ring[1:]
    return label, np.array([*ring, ring[0]])

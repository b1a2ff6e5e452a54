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
    heatmap: Heatmap,
    threshold: float,
    *,
    percentile: bool = False,
    overlap: Overlap = "max",
    window: tuple[float, float, float, float] | None = None,
    holes: bool = True,
) -> list[Region]:
    """Regions of tiles that touch along a side and whose score is at least ``threshold``, largest first.

    Args:
        heatmap: the scores.
        threshold: lowest score of a region's tiles.
        percentile: ``threshold`` is a percentile within the slide.
        overlap: how scores of overlapping tiles are combined.
        window: x0, y0, x1, y1 in level-0 pixels; regions end at its border as they do at the slide's.
        holes: False cuts regions that have any into pieces without, for formats that know none.
    """
    import cv2

    width, height = heatmap.frame.level0_size
    x0, y0, x1, y1 = (0, 0, width, height) if window is None else window
    partition = _within(_partition(heatmap, overlap), (max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)))
    if partition.values.size == 0:
        return []
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
    if not holes:
        count, labels = _cut(labels)
    row, column = np.nonzero(inside)
    label, score = labels[row, column], partition.values[row, column]
    area = np.diff(partition.y)[row] * np.diff(partition.x)[column]
    total, weighted = np.bincount(label, area, count), np.bincount(label, area * score, count)
    maximum = np.full(count, -np.inf)
    np.maximum.at(maximum, label.astype(np.intp), score)
    rings = _trace(labels)
    regions = [
        Region(
            rings=tuple(np.stack([partition.x[ring[:, 1]], partition.y[ring[:, 0]]], axis=1) for ring in rings[label]),
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
    exact = cells(heatmap.coords, heatmap.scores, frame.tile_size_level0, overlap=overlap)
    if exact is not None:
        return exact
    shape, scale = canvas_geometry(frame.level0_size, downsample=max(1.0, frame.tile_size_level0 / 16))
    values = paint(heatmap.coords, heatmap.scores, frame.tile_size_level0, shape=shape, scale=scale, overlap=overlap)
    return Cells(np.arange(shape[1] + 1) * scale[0], np.arange(shape[0] + 1) * scale[1], values)


def _within(partition: Cells, window: tuple[float, float, float, float]) -> Cells:
    """The part of a partition inside x0, y0, x1, y1; without cells where there is none."""
    x0, y0, x1, y1 = window
    x, y = np.clip(partition.x, x0, max(x0, x1)), np.clip(partition.y, y0, max(y0, y1))
    columns, rows = np.diff(x) > 0, np.diff(y) > 0
    return Cells(_kept_edges(x, columns), _kept_edges(y, rows), partition.values[rows][:, columns])


def _kept_edges(edges: np.ndarray, kept: np.ndarray) -> np.ndarray:
    return np.append(edges[:-1][kept], edges[1:][kept][-1:])


def _cut(labels: np.ndarray) -> tuple[int, np.ndarray]:
    """Components without holes: each that has one is cut along the left side of its first, until none is left.

    Args:
        labels: int ``[rows, columns]``, 0 outside, components connected along sides.

    Returns:
        How many labels there are, with 0, and the labels, in place of those given.
    """
    from skimage.measure import label as connected

    while pierced := {label: rings[1] for label, rings in _trace(labels).items() if len(rings) > 1}:
        right = np.zeros(labels.shape, bool)
        for label, hole in pierced.items():
            column = int(hole[:, 1].min())
            right[:, column:] |= labels[:, column:] == label
        labels = connected(np.where(right, labels + labels.max(), labels), background=0, connectivity=1)
    return int(labels.max()) + 1, labels


def _trace(labels: np.ndarray) -> dict[int, list[np.ndarray]]:
    """Boundary rings of every component of a label image, outline first.

    Args:
        labels: int ``[rows, columns]``, 0 outside, components connected along sides; they may touch each other.

    Returns:
        For every label its closed rings of grid corners (row, column), int ``[k, 2]``, corners on a straight line left
        out. Where two cells of one component touch at a corner only, the rings keep apart, so no ring touches itself.
    """
    side, label = _sides(labels)
    corner, direction = side // 4, side % 4
    width = labels.shape[1] + 1
    end = corner + np.array([1, width, -1, -width])[direction]
    after = _following(side, label, end, direction)
    following, turns, ends = after.tolist(), (direction[after] != direction).tolist(), end.tolist()
    walked = bytearray(len(side))
    corners: list[int] = []
    first, owner = [], []
    for start in range(len(side)):
        if walked[start]:
            continue
        first.append(len(corners))
        owner.append(start)
        corners.append(-1)
        at = start
        while not walked[at]:
            walked[at] = 1
            if turns[at]:
                corners.append(ends[at])
            at = following[at]
        corners[first[-1]] = corners[-1]
    points = np.stack(np.divmod(np.array(corners), width), axis=1)
    rings: dict[int, list[np.ndarray]] = defaultdict(list)
    for name, begin, stop in zip(label[owner].tolist(), first, [*first[1:], len(corners)], strict=True):
        rings[name].append(points[begin:stop])
    return rings


def _sides(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sides of cells with another label or none beyond, and their cells' labels, each ``[k]``.

    A side is four times its first corner's number, row by row, plus its direction: 0 right, 1 down, 2 left, 3 up, which
    is clockwise around the cell. They are sorted.
    """
    padded = np.pad(labels, 1)
    beyond = (padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1], padded[1:-1, :-2])
    first_corner = ((0, 0), (0, 1), (1, 1), (1, 0))
    sides, names = [], []
    for direction, (neighbour, (down, right)) in enumerate(zip(beyond, first_corner, strict=True)):
        row, column = np.nonzero((labels > 0) & (neighbour != labels))
        sides.append(((row + down) * (labels.shape[1] + 1) + column + right) * 4 + direction)
        names.append(labels[row, column])
    side, name = np.concatenate(sides), np.concatenate(names)
    order = np.argsort(side)
    return side[order], name[order]


def _following(side: np.ndarray, label: np.ndarray, end: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Index of the side that goes on where each side ends, ``[k]``; of two the one that keeps rings apart."""
    found, index = [], []
    for turn in (-1, 1, 0):
        wanted = end * 4 + (direction + turn) % 4
        place = np.minimum(np.searchsorted(side, wanted), len(side) - 1)
        found.append((side[place] == wanted) & (label[place] == label))
        index.append(place)
    (left, right, _), (to_left, to_right, straight) = found, index
    same = (label[to_left] == label) & (label[to_right] == label)
    return np.where(left & (same | ~right), to_left, np.where(right, to_right, straight))

"""Where a slide has the finding: ground truth that is read window by window."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np

from monai_mil.slides.blocks import BlockGrid
from monai_mil.slides.polygons import Polygon, rasterise

_CELLS = 64


class Truth(ABC):
    """The ground truth of one slide, in its level-0 pixels; made by :func:`monai_mil.slides.open_truth`.

    Attributes:
        path: the file.
    """

    path: Path

    @abstractmethod
    def window(self, x0: float, y0: float, x1: float, y1: float, shape: tuple[int, int]) -> np.ndarray:
        """A part of the slide.

        Args:
            x0: left of it in level-0 pixels; it may reach past the slide.
            y0: top.
            x1: right.
            y1: bottom.
            shape: rows and columns of the answer.

        Returns:
            bool of ``shape``, True where a pixel's centre lies in the truth.
        """

    @abstractmethod
    def boxes(self) -> np.ndarray:
        """Boxes x0, y0, x1, y1 in level-0 pixels, float64 ``[m, 4]``, outside of which there is no truth."""

    def area(self, step: float = 1.0) -> float:
        """Square level-0 pixels of truth, counted in pixels of side ``step``."""
        boxes = self.boxes()
        if len(boxes) == 0:
            return 0.0
        grid = BlockGrid((int(np.ceil(boxes[:, 2].max())), int(np.ceil(boxes[:, 3].max()))), step)
        total = 0
        for row, column in grid.chosen(grid.meeting(boxes)):
            window, shape = grid.window(row, column)
            total += int(np.count_nonzero(self.window(*window, shape)))
        return total * step**2


class ArrayTruth(Truth):
    """A mask in memory.

    Args:
        path: where it comes from.
        mask: bool ``[rows, columns]``.
        downsample: level-0 pixels per pixel of it.
    """

    def __init__(self, path: Path, mask: np.ndarray, downsample: float) -> None:
        self.path = path
        self.mask = np.asarray(mask, bool)
        self.downsample = downsample

    def window(self, x0: float, y0: float, x1: float, y1: float, shape: tuple[int, int]) -> np.ndarray:
        """See :meth:`Truth.window`."""
        rows = pixel_places(y0, y1, shape[0], self.downsample)
        columns = pixel_places(x0, x1, shape[1], self.downsample)
        inside = [
            (places >= 0) & (places < size) for places, size in zip((rows, columns), self.mask.shape, strict=True)
        ]
        found = np.zeros(shape, bool)
        found[np.ix_(*inside)] = self.mask[np.ix_(rows[inside[0]], columns[inside[1]])]
        return found

    def boxes(self) -> np.ndarray:
        """See :meth:`Truth.boxes`; cells of the mask in which there is any."""
        height, width = self.mask.shape
        padded = np.pad(self.mask, ((0, -height % _CELLS), (0, -width % _CELLS)))
        cells = padded.reshape(len(padded) // _CELLS, _CELLS, -1, _CELLS).any(axis=(1, 3))
        corner = np.argwhere(cells)[:, ::-1] * _CELLS
        return np.concatenate([corner, corner + _CELLS], axis=1) * float(self.downsample)


class PolygonTruth(Truth):
    """Polygons drawn by annotators: what lies in one of them and in no exclusion.

    Args:
        path: where they come from.
        included: polygons of the finding.
        excluded: polygons of what is none, whatever they lie in.
    """

    def __init__(self, path: Path, included: list[Polygon], excluded: list[Polygon]) -> None:
        self.path = path
        self.included = included
        self.excluded = excluded

    def window(self, x0: float, y0: float, x1: float, y1: float, shape: tuple[int, int]) -> np.ndarray:
        """See :meth:`Truth.window`."""
        found = np.zeros(shape, bool)
        for polygons, value in ((self.included, True), (self.excluded, False)):
            for polygon in polygons:
                rasterise(polygon, (x0, y0, x1, y1), found, value)
        return found

    def boxes(self) -> np.ndarray:
        """See :meth:`Truth.boxes`; one a polygon."""
        return np.array([polygon.box for polygon in self.included], float).reshape(-1, 4)


def pixel_places(start: float, stop: float, count: int, scale: float) -> np.ndarray:
    """Which pixel of side ``scale`` the centres of ``count`` pixels from ``start`` to ``stop`` lie in, int64."""
    centres = start + (np.arange(count) + 0.5) * ((stop - start) / count)
    return np.floor(centres / scale).astype(np.int64)

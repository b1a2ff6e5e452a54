"""Masks as tiled TIFF pyramids, read stored tile by stored tile."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_mil.errors import AnnotationError
from monai_mil.slides.truth import Truth, pixel_places

_KEPT = 1 << 12
_TOLERANCE = 0.01
_MOST_TILE_PIXELS = 1 << 28


@dataclass(frozen=True)
class _Level:
    """A page of the file; ``scale`` is level-0 pixels of the slide per pixel of it."""

    page: Any
    scale: float


class MaskPyramid(Truth):
    """A mask image; of several colours the first is read.

    Args:
        path: a TIFF file of whole numbers, tiled or in strips.
        value: what a pixel of the truth holds; None for anything but 0.
        level0_size: width and height of the slide, which a mask of another resolution covers as a whole; None if its
            pixels are the slide's.

    Raises:
        AnnotationError: the file cannot be read as a mask, or is no mask of such a slide.
    """

    def __init__(self, path: Path, value: int | None = None, level0_size: tuple[int, int] | None = None) -> None:
        import tifffile

        self.path = path
        self.value = value
        try:
            with tifffile.TiffFile(path) as tiff:
                pages: list[Any] = list(tiff.series[0].levels)
                first = pages[0].keyframe
                self.levels = [_Level(page.keyframe, _ratio(first, page.keyframe)) for page in pages]
                for level in self.levels:
                    _check_table(level.page)
        except Exception as error:  # a damaged header makes tifffile stumble in many ways
            raise AnnotationError(f"mask '{path}': cannot be read as a TIFF ({error}); copy it again") from error
        if any(level.page.dtype is None or level.page.dtype.kind not in "bui" for level in self.levels):
            raise AnnotationError(f"mask '{path}': its pixels are no whole numbers; save it as 8-bit grey")
        if any(level.page.planarconfig != 1 for level in self.levels):
            raise AnnotationError(f"mask '{path}': its colours are stored apart; save it as 8-bit grey")
        if level0_size is not None:
            scale = self._scale(first, level0_size)
            self.levels = [_Level(level.page, level.scale * scale) for level in self.levels]
        self._empty: dict[bytes, bool] = {}

    def window(self, x0: float, y0: float, x1: float, y1: float, shape: tuple[int, int]) -> np.ndarray:
        """See :meth:`Truth.window`; reads the coarsest level that is as fine as the answer."""
        pixel = min((x1 - x0) / shape[1], (y1 - y0) / shape[0])
        fine = [level for level in self.levels if level.scale <= 1.01 * pixel]
        level = max(fine, key=lambda level: level.scale) if fine else self.levels[0]
        rows = pixel_places(y0, y1, shape[0], level.scale)
        columns = pixel_places(x0, x1, shape[1], level.scale)
        found = np.zeros(shape, bool)
        height, width = level.page.chunks[:2]
        with self.path.open("rb") as file:
            for top, below in _runs(rows // height, level.page.imagelength, rows):
                for left, right in _runs(columns // width, level.page.imagewidth, columns):
                    chunk = rows[top] // height, columns[left] // width
                    stored = self._chunk(file, level.page, int(chunk[0] * level.page.chunked[1] + chunk[1]))
                    if stored is not None:
                        places = rows[top:below] - chunk[0] * height, columns[left:right] - chunk[1] * width
                        found[top:below, left:right] = stored[np.ix_(*places)]
        return found

    def boxes(self) -> np.ndarray:
        """See :meth:`Truth.boxes`; the stored tiles in which there is any."""
        level, found = self.levels[0], []
        height, width = level.page.chunks[:2]
        with self.path.open("rb") as file:
            for index in range(len(level.page.dataoffsets)):
                if self._chunk(file, level.page, index) is not None:
                    row, column = divmod(index, level.page.chunked[1])
                    found.append((column * width, row * height, (column + 1) * width, (row + 1) * height))
        return np.array(found, float).reshape(-1, 4) * level.scale

    def _scale(self, page: Any, level0_size: tuple[int, int]) -> float:
        """Level-0 pixels of the slide per pixel of the mask; a mask may be padded a little, or rounded."""
        ratios = level0_size[0] / page.imagewidth, level0_size[1] / page.imagelength
        if ratios[0] == ratios[1]:
            return ratios[0]
        sides = tuple(zip(level0_size, (page.imagewidth, page.imagelength), strict=True))
        factors = range(max(int(min(ratios)), 1), int(max(ratios)) + 2)
        reduced = [factor for factor in factors if all(abs(side / factor - pixels) < 1 for side, pixels in sides)]
        if reduced:  # by a whole number, then rounded, which is much of a small mask; powers of two are what is usual
            return float(min(reduced, key=lambda factor: (factor.bit_count() > 1, abs(factor - ratios[0]))))
        if abs(ratios[0] / ratios[1] - 1) > 2 * _TOLERANCE:
            raise AnnotationError(
                f"mask '{self.path}': {page.imagewidth} x {page.imagelength} pixels are not a slide of "
                f"{level0_size[0]} x {level0_size[1]}; is it another slide's?"
            )
        whole = max(round(ratios[0]), 1)
        return float(whole) if abs(ratios[0] / whole - 1) < _TOLERANCE else ratios[0]

    def _chunk(self, file: Any, page: Any, index: int) -> np.ndarray | None:
        """A stored tile as bool ``[rows, columns]``, None if there is no truth in it."""
        if index >= len(page.dataoffsets):
            raise AnnotationError(f"mask '{self.path}': damaged, it has no tile {index}; copy it again")
        data = os.pread(file.fileno(), page.databytecounts[index], page.dataoffsets[index])
        if len(data) < page.databytecounts[index]:
            raise AnnotationError(f"mask '{self.path}': damaged, it ends before its tile {index}; copy it again")
        if not data or self._empty.get(data):
            return None
        try:
            stored = page.decode(data, index)[0][0][..., 0]
        except Exception as error:  # every codec raises its own type
            raise AnnotationError(f"mask '{self.path}': damaged, tile {index} ({error}); copy it again") from error
        truth = stored != 0 if self.value is None else stored == self.value
        if truth.any():
            return truth
        if len(data) < _KEPT:  # most tiles of a mask are empty, and equal byte for byte
            self._empty[data] = True
        return None


def _check_table(page: Any) -> None:
    """Raise a ValueError for sizes, or a table of tiles, that no image has."""
    sides = page.imagewidth, page.imagelength, *page.chunks[:2]
    if min(sides) < 1 or len(page.dataoffsets) != len(page.databytecounts):
        raise ValueError("the table of its tiles is incomplete")
    if page.chunks[0] * page.chunks[1] > _MOST_TILE_PIXELS:
        raise ValueError("its tiles are larger than any memory")


def _runs(chunk: np.ndarray, size: int, places: np.ndarray) -> Iterator[tuple[int, int]]:
    """Start and stop of the runs of pixels that lie inside the image and in the same chunk."""
    inside = np.flatnonzero((places >= 0) & (places < size))
    if len(inside) == 0:
        return
    cuts = np.flatnonzero(np.diff(chunk[inside])) + 1
    bounds = [0, *cuts.tolist(), len(inside)]
    yield from ((int(inside[a]), int(inside[b - 1]) + 1) for a, b in itertools.pairwise(bounds))


def _ratio(first: Any, page: Any) -> float:
    """Pixels of the first page per pixel of another; sizes are rounded, so a whole number that fits is meant."""
    ratio = first.imagewidth / page.imagewidth
    whole = round(ratio)
    return float(whole) if abs(first.imagewidth / whole - page.imagewidth) <= 1 else ratio

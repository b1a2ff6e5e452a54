"""Where the tiles of a slide are: one slide-wide grid at a target resolution, and how much tissue each tile holds."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from monai_mil.slides.slide import Slide
from monai_mil.slides.tissue import TissueMask


@dataclass(frozen=True, eq=False)
class TileGrid:
    """Tiles of one slide, ``n`` of them.

    Attributes:
        coords: ``x, y`` of each tile's upper-left corner in level-0 pixels, int64 ``[n, 2]``.
        index: column and row of each tile in the slide-wide grid, int64 ``[n, 2]``.
        tile_size: side of a tile in pixels at ``target_mpp``.
        target_mpp: micrometres per pixel of the tiles.
        tile_size_level0: the tiles' field of view in level-0 pixels, exact.
        step_level0: distance of neighbouring tiles in level-0 pixels, exact.
        overlap: of neighbouring tiles, in pixels at ``target_mpp``.
        tissue_fraction: share of each tile's area that is tissue, float32 ``[n]``; what lies outside the slide is none.
        level0_size: ``(width, height)`` of the slide.

    Examples:
        >>> import numpy as np
        >>> from monai_mil.slides import TileGrid, open_slide, write_pyramid
        >>> write_pyramid(folder / "S-1.tif", np.full((512, 768, 3), 200, np.uint8), mpp=0.5)
        >>> slide = open_slide(folder / "S-1.tif")
        >>> grid = TileGrid.cover(slide, None, tile_size=256, target_mpp=0.5)  # without a tissue mask
        >>> grid.coords.tolist()
        [[0, 0], [256, 0], [512, 0], [0, 256], [256, 256], [512, 256]]
    """

    coords: np.ndarray
    index: np.ndarray
    tile_size: int
    target_mpp: float
    tile_size_level0: float
    step_level0: float
    overlap: int
    tissue_fraction: np.ndarray
    level0_size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.coords)

    @property
    def inside(self) -> np.ndarray:
        """Whether any pixel of a tile lies on the slide, bool ``[n]``; the other tiles are white."""
        return np.all(self.coords < self.level0_size, axis=1)

    def take(self, rows: np.ndarray | slice) -> TileGrid:
        """Some of the tiles, in the order asked for."""
        return replace(
            self, coords=self.coords[rows], index=self.index[rows], tissue_fraction=self.tissue_fraction[rows]
        )

    @classmethod
    def cover(
        cls,
        slide: Slide,
        tissue: TissueMask | None,
        *,
        tile_size: int = 256,
        target_mpp: float | None = None,
        magnification: float | None = None,
        overlap: int = 0,
        min_tissue: float = 0.25,
    ) -> TileGrid:
        """The tiles that show tissue, row by row, from a grid that covers the slide from its corner to ragged borders.

        Args:
            slide: the open slide.
            tissue: its tissue, or None to keep every tile.
            tile_size: side of a tile in pixels at the target resolution.
            target_mpp: micrometres per pixel of the tiles; default 0.5.
            magnification: the same as a nominal objective power, ``10 / magnification`` micrometres per pixel.
            overlap: of neighbouring tiles, in pixels at the target resolution.
            min_tissue: keep tiles of which at least this share is tissue (and any tissue at all).

        Raises:
            ValueError: sizes that make no grid, or both ``target_mpp`` and ``magnification``.
        """
        if magnification is not None and target_mpp is not None:
            raise ValueError("give target_mpp or magnification, not both")
        if magnification is not None:
            target_mpp = 10.0 / magnification if magnification > 0 else math.nan
        elif target_mpp is None:
            target_mpp = 0.5
        if tile_size < 1 or not 0 <= overlap < tile_size or not 0 < target_mpp < math.inf:
            raise ValueError(f"tiles of {tile_size} px at {target_mpp} mpp that overlap by {overlap} px make no grid")
        scale = target_mpp / slide.mpp
        step, shared = (tile_size - overlap) * scale, overlap * scale
        columns, rows = (max(1, math.ceil((side - shared) / step - 1e-6)) for side in slide.size)
        row, column = np.divmod(np.arange(columns * rows), columns)
        index = np.stack([column, row], axis=1)
        tiles = cls.at(slide, tissue, index, tile_size=tile_size, target_mpp=target_mpp, overlap=overlap)
        if tissue is None:
            return tiles
        return tiles.take(np.flatnonzero((tiles.tissue_fraction >= min_tissue) & (tiles.tissue_fraction > 0)))

    @classmethod
    def at(
        cls,
        slide: Slide,
        tissue: TissueMask | None,
        index: np.ndarray,
        *,
        tile_size: int,
        target_mpp: float,
        overlap: int = 0,
    ) -> TileGrid:
        """The tiles at given places of the slide-wide grid, with tissue or without.

        Args:
            slide: the open slide.
            tissue: its tissue, or None, which counts everything on the slide as tissue.
            index: column and row of each tile, integer ``[n, 2]``; they may lie beyond the slide.
            tile_size: side of a tile in pixels at the target resolution.
            target_mpp: micrometres per pixel of the tiles.
            overlap: of neighbouring tiles, in pixels at the target resolution.
        """
        scale = target_mpp / slide.mpp
        view, step = tile_size * scale, (tile_size - overlap) * scale
        grid = cls(
            coords=corners(index, step),
            index=index.astype(np.int64, copy=False),
            tile_size=tile_size,
            target_mpp=target_mpp,
            tile_size_level0=view,
            step_level0=step,
            overlap=overlap,
            tissue_fraction=np.zeros(len(index), np.float32),
            level0_size=slide.size,
        )
        if tissue is None:
            return replace(grid, tissue_fraction=grid.inside.astype(np.float32))
        columns, rows = index.max(axis=0, initial=0) + 1
        fraction = _tissue_fractions(tissue, np.arange(columns) * step, np.arange(rows) * step, view)
        return replace(grid, tissue_fraction=fraction[index[:, 1], index[:, 0]])


def corners(index: np.ndarray, step: float) -> np.ndarray:
    """The nearest level-0 pixel to the upper-left corner of each tile, int64 ``[n, 2]``.

    Args:
        index: column and row of each tile in the slide-wide grid, ``[n, 2]``.
        step: distance of neighbouring tiles in level-0 pixels, exact.
    """
    return np.floor(index * step + 0.5).astype(np.int64)


def _tissue_fractions(tissue: TissueMask, starts_x: np.ndarray, starts_y: np.ndarray, view: float) -> np.ndarray:
    """The share of tissue in every square of the grid, float32 ``[rows, columns]``.

    The integral image of the mask, interpolated linearly, is the exact area of tissue left of and above any point.
    """
    import cv2

    integral = cv2.integral(tissue.mask.view(np.uint8), sdepth=cv2.CV_32S)
    down_x, down_y = tissue.downsample
    by_row = _at(integral, np.stack([starts_y, starts_y + view]) / down_y)
    height = by_row[1] - by_row[0]
    by_column = _at(np.ascontiguousarray(height.T), np.stack([starts_x, starts_x + view]) / down_x)
    area = (by_column[1] - by_column[0]).T
    return (area * (down_x * down_y / view**2)).astype(np.float32)


def _at(table: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Rows of ``table`` at fractional positions, clamped to its ends: ``[..., columns]``."""
    position = np.clip(position, 0, len(table) - 1)
    below = np.minimum(position.astype(np.int64), len(table) - 2)
    weight = (position - below)[..., None]
    return table[below] * (1 - weight) + table[below + 1] * weight

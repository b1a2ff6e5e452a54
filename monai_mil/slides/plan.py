"""Which pixels of which level make each tile of a grid."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from monai_mil.slides.grid import TileGrid
from monai_mil.slides.slide import Slide


def enlargement(slide: Slide, grid: TileGrid) -> str | None:
    """The remark that tiles show much more than the slide resolves; None where it resolves half of it or better."""
    if 2 * max(1, int(grid.tile_size_level0 + 0.5)) >= grid.tile_size:
        return None
    return f"its finest level has {slide.mpp:g} µm per pixel; tiles at {grid.target_mpp:g} are enlarged from it"


@dataclass(frozen=True, eq=False)
class ReadPlan:
    """Read ``read_size`` pixels of ``level`` at ``(x[i], y[i])`` and scale them to ``tile_size``.

    Attributes:
        level: the coarsest level that is no coarser than the tiles.
        read_size: ``(w, h)`` in pixels of ``level``, the field of view to the nearest pixel.
        x: left pixel of each tile in ``level``, int64 ``[n]``.
        y: top pixel of each tile in ``level``, int64 ``[n]``.
        tile_size: side of the tiles to deliver.
        level_size: ``(w, h)`` of ``level``; tiles are white beyond it.
    """

    level: int
    read_size: tuple[int, int]
    x: np.ndarray
    y: np.ndarray
    tile_size: int
    level_size: tuple[int, int]

    @classmethod
    def of(cls, slide: Slide, grid: TileGrid) -> ReadPlan:
        """Plan how to read the tiles of ``grid``.

        Raises:
            ValueError: the grid was made for a slide of another size.
        """
        if tuple(grid.level0_size) != slide.size:
            raise ValueError(f"the grid belongs to a slide of {grid.level0_size} px, '{slide.path}' has {slide.size}")
        sizes = [
            tuple(max(1, int(grid.tile_size_level0 / scale + 0.5)) for scale in slide.axis_downsamples(level))
            for level in range(len(slide.levels))
        ]
        level = max(
            (index for index, size in enumerate(sizes) if min(size) >= grid.tile_size),
            key=lambda index: slide.levels[index].downsample,
            default=0,
        )
        width, height = sizes[level]
        coarse = enlargement(slide, grid)
        if coarse is not None:
            warnings.warn(f"slide '{slide.path}': {coarse}", stacklevel=3)
        scale_x, scale_y = slide.axis_downsamples(level)
        return cls(
            level=level,
            read_size=(width, height),
            x=np.floor(grid.coords[:, 0] / scale_x + 0.5).astype(np.int64),
            y=np.floor(grid.coords[:, 1] / scale_y + 0.5).astype(np.int64),
            tile_size=grid.tile_size,
            level_size=(slide.levels[level].width, slide.levels[level].height),
        )

    def __len__(self) -> int:
        return len(self.x)

    @property
    def is_scaled(self) -> bool:
        """Whether what is read differs in size from what is delivered."""
        return self.read_size != (self.tile_size, self.tile_size)

    @property
    def averages(self) -> bool:
        """Whether to scale by area averages (whole factors, and strong reductions) rather than linearly."""
        factors = [side / self.tile_size for side in self.read_size]
        return all(factor >= 1 and (factor > 2.1 or factor == int(factor)) for factor in factors)

    def inside(self, tile: int) -> tuple[int, int]:
        """Width and height of the part of a tile that lies within the level; 0 beyond it."""
        return (
            max(0, min(self.read_size[0], self.level_size[0] - int(self.x[tile]))),
            max(0, min(self.read_size[1], self.level_size[1] - int(self.y[tile]))),
        )

    def batches(self, batch_size: int) -> Iterator[range]:
        """The tiles in order, ``batch_size`` at a time."""
        return (range(start, min(start + batch_size, len(self))) for start in range(0, len(self), batch_size))

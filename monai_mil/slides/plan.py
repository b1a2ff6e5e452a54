"""Which pixels of which level make each tile of a grid."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from monai_mil.errors import SlideReadError
from monai_mil.slides.grid import TileGrid
from monai_mil.slides.slide import Slide

_REDUCTIONS = (4, 2)
_NEARLY = 1 - 1e-6


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
        reduction: 1, or by how much JPEG tiles are made smaller as they are decoded, 2 or 4; the pixels of ``level``
            above are then those that are left.
    """

    level: int
    read_size: tuple[int, int]
    x: np.ndarray
    y: np.ndarray
    tile_size: int
    level_size: tuple[int, int]
    reduction: int = 1

    @classmethod
    def of(cls, slide: Slide, grid: TileGrid, *, reduce: bool = False) -> ReadPlan:
        """Plan how to read the tiles of ``grid``; with ``reduce`` JPEG tiles are decoded no larger than needed.

        Raises:
            ValueError: the grid was made for a slide of another size.
            SlideReadError: tiles are to be decoded smaller and are no JPEG that can be; names the slide.
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
        reduction = _reduction(slide, level, min(width, height) / grid.tile_size) if reduce else 1
        if reduction > 1:
            scale_x, scale_y = scale_x * reduction, scale_y * reduction
            width, height = (max(1, int(grid.tile_size_level0 / scale + 0.5)) for scale in (scale_x, scale_y))
        return cls(
            level=level,
            read_size=(width, height),
            x=np.floor(grid.coords[:, 0] / scale_x + 0.5).astype(np.int64),
            y=np.floor(grid.coords[:, 1] / scale_y + 0.5).astype(np.int64),
            tile_size=grid.tile_size,
            level_size=(slide.levels[level].width // reduction, slide.levels[level].height // reduction),
            reduction=reduction,
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


def _reduction(slide: Slide, level: int, factor: float) -> int:
    """The greatest reduction of the level's stored tiles that leaves pixels no coarser than wanted."""
    wanted = next((reduction for reduction in _REDUCTIONS if factor >= reduction * _NEARLY), 1)
    if wanted == 1:
        return 1
    tiff = slide.tiff
    if tiff is None or tiff.plain_jpeg(level) is None:
        raise SlideReadError(
            f"slide '{slide.path}': its tiles are no JPEG that can be decoded at 1/{wanted} of its size; "
            "leave out the decoder 'scaled'"
        )
    stored = tiff.levels[level]
    return next(r for r in (wanted, wanted // 2, 1) if r and not (stored.tile_width % r or stored.tile_height % r))

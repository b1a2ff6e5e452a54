"""The quadtree of a slide's tiles: a coarse grid over the tissue, and every tile's four children, level below level."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from monai_mil.slides.grid import TileGrid, corners
from monai_mil.slides.slide import Slide
from monai_mil.slides.tissue import TissueMask

_CHILDREN = np.array([(0, 0), (0, 1), (1, 0), (1, 1)])


@dataclass(frozen=True, eq=False)
class TileTree:
    """Tiles of one slide at several magnifications, each level twice as fine as the one before it.

    Level ``j`` shows the slide at ``target_mpp * 2^j``; tiles have the same number of pixels at every level. The
    coarsest level holds the tiles with tissue, column by column. Every other level holds exactly the four children of
    each tile above it, background or beyond the slide or not, so that the tree needs no links: the children of row
    ``i`` are the rows ``4i`` to ``4i + 3`` (upper left, lower left, upper right, lower right). So a finer level has
    ``n_{j-1} = 4 n_j`` tiles (Xiong et al., HAG-MIL, IJCAI 2023, arXiv 2301.08125).

    Attributes:
        grids: the levels, coarsest first; level 0 is the last.
    """

    grids: tuple[TileGrid, ...]

    def __len__(self) -> int:
        """Number of tiles of all levels."""
        return sum(map(len, self.grids))

    @classmethod
    def cover(
        cls,
        slide: Slide,
        tissue: TissueMask | None,
        *,
        tile_size: int = 256,
        target_mpp: float = 0.5,
        levels: int = 3,
        min_tissue: float = 0.25,
    ) -> TileTree:
        """Cover the tissue of a slide with coarse tiles and divide each down to the finest level.

        Args:
            slide: the open slide.
            tissue: its tissue, or None to keep every coarse tile; the children beyond the slide then hold none.
            tile_size: side of a tile in pixels, the same at every level.
            target_mpp: micrometres per pixel of the finest level.
            levels: number of levels.
            min_tissue: keep coarse tiles of which at least this share is tissue (and any tissue at all).

        Raises:
            ValueError: there is no such tree.
        """
        if levels < 1:
            raise ValueError(f"a tree of {levels} levels: must have at least 1")
        coarsest = TileGrid.cover(
            slide, tissue, tile_size=tile_size, target_mpp=target_mpp * 2 ** (levels - 1), min_tissue=min_tissue
        )
        grids = [coarsest.take(np.lexsort(coarsest.index.T[::-1]))]
        for level in reversed(range(levels - 1)):
            index = child_index(grids[-1].index)
            grids.append(TileGrid.at(slide, tissue, index, tile_size=tile_size, target_mpp=target_mpp * 2**level))
        return cls(tuple(grids))


def child_index(index: np.ndarray) -> np.ndarray:
    """Column and row of the four children of each tile, int64 ``[4 n, 2]``, in a grid of half the step."""
    return (2 * index[:, None] + _CHILDREN).reshape(-1, 2)


def child_coords(coords: np.ndarray, step: float) -> np.ndarray:
    """Level-0 corners of the four children of each tile, int64 ``[4 n, 2]``.

    Args:
        coords: level-0 corners of tiles of a grid that starts at the slide's corner, int64 ``[n, 2]``.
        step: distance of neighbouring tiles of that grid in level-0 pixels, exact.

    Examples:
        >>> import numpy as np
        >>> from monai_mil.slides import child_coords
        >>> child_coords(np.array([[512, 0]]), step=512.0).tolist()
        [[512, 0], [512, 256], [768, 0], [768, 256]]
    """
    return corners(child_index(np.rint(coords / step).astype(np.int64)), step / 2)

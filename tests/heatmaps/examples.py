"""Heatmaps the tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from monai_mil.heatmaps import Heatmap, SlideFrame, assemble


def frame(size: tuple[int, int] = (1000, 800), tile: float = 100.0, **changes: Any) -> SlideFrame:
    facts = {"slide_id": "slide", "slide_path": None, "level0_size": size, "mpp": 0.5, "tile_size_level0": tile}
    return SlideFrame(**(facts | changes))


def grid_heatmap(columns: int = 8, rows: int = 6, step: float = 100.0, tile: float = 100.0, **changes: Any) -> Heatmap:
    index = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2)
    scores = np.random.default_rng(0).random(len(index), dtype=np.float32)
    size = (int(columns * step) + 37, int(rows * step) + 11)
    return assemble(scores, np.round(index * step).astype(int), frame(size, tile, **changes))


def slide_heatmap(path: Path, tile: int = 256) -> Heatmap:
    """Tiles over the tissue of a real slide, scored by their redness."""
    from monai_mil.slides import TileGrid, open_slide, segment_tissue

    with open_slide(path) as slide:
        grid = TileGrid.cover(slide, segment_tissue(slide), tile_size=tile, target_mpp=slide.mpp)
        scores = [slide.read(x, y, (tile, tile))[..., 0].mean() for x, y in grid.coords.tolist()]
        facts = SlideFrame(slide.slide_id, str(path), slide.size, slide.mpp, grid.tile_size_level0)
    return assemble(scores, grid.coords, facts)

"""Heatmaps the tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from monai_mil.heatmaps import Heatmap, ScanHeatmap, SlideFrame, assemble
from monai_mil.scans import Scan, ScanFrame


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


def scan_frame(
    positions: Any = range(0, 40, 4), size: tuple[int, int] = (24, 32), tilt: float = 0.0, **changes: Any
) -> ScanFrame:
    """Axial slices at ``positions`` (mm along z); ``tilt`` moves each along y by that share of its position."""
    positions = np.asarray(positions, float)
    origins = np.stack([np.full(len(positions), -100.0), -80.0 + tilt * positions, positions], axis=1)
    facts = {"scan_id": "scan", "path": None, "size": size, "spacing": (0.8, 0.5), "orientation": np.eye(3)[:2]}
    facts |= {"origins": origins, "sop_uids": tuple(f"1.2.3.{index}" for index in range(len(positions)))}
    return ScanFrame(**(facts | {"frame_numbers": (1,) * len(positions)} | changes))


def scan_of(frame: ScanFrame) -> Scan:
    """Noise with a bright square in every slice."""
    hu = np.random.default_rng(0).integers(-200, 200, (len(frame), *frame.size)).astype(np.int16)
    hu[:, 4:8, 6:12] = 1000
    return Scan(frame, hu)


def scan_heatmap(frame: ScanFrame | None = None, heads: int = 1, **changes: Any) -> ScanHeatmap:
    frame = frame or scan_frame()
    weights = np.random.default_rng(0).random((heads, len(frame))) ** 4
    attention = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return ScanHeatmap(**({"frame": frame, "scores": attention.mean(axis=0), "attention": attention} | changes))

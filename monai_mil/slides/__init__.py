"""Whole-slide images: opening, tissue, tile grids, streaming tiles, writing pyramids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from monai_mil.slides.grid import TileGrid
from monai_mil.slides.pyramid import write_pyramid
from monai_mil.slides.readers import reader_report
from monai_mil.slides.slide import Level, Slide, open_slide, slide_id
from monai_mil.slides.tissue import TissueMask, TissueSettings, segment_tissue

if TYPE_CHECKING:
    from monai_mil.slides.stream import stream_tiles

__all__ = [
    "Level",
    "Slide",
    "TileGrid",
    "TissueMask",
    "TissueSettings",
    "open_slide",
    "reader_report",
    "segment_tissue",
    "slide_id",
    "stream_tiles",
    "write_pyramid",
]


def __getattr__(name: str) -> Any:
    if name == "stream_tiles":  # the only part that needs torch
        from monai_mil.slides.stream import stream_tiles

        return stream_tiles
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

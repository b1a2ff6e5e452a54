"""Whole-slide images: opening, tissue, tile grids, streaming tiles, writing pyramids."""

from monai_mil.slides.pyramid import write_pyramid
from monai_mil.slides.readers import reader_report
from monai_mil.slides.slide import Level, Slide, open_slide, slide_id

__all__ = ["Level", "Slide", "open_slide", "reader_report", "slide_id", "write_pyramid"]

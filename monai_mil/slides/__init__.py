"""Whole-slide images: opening, tissue, tile grids, streaming tiles, writing pyramids."""

from monai_mil.slides.pyramid import write_pyramid

__all__ = ["write_pyramid"]

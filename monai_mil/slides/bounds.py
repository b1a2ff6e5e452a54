"""The part of a slide that was scanned, and the frames in which programs count its pixels.

OpenSlide gives the bounds of SCN and MRXS slides, whose scanned parts lie on a large empty canvas. QuPath crops to them
by default, so that its pixel (0, 0) is their corner; large_image, ASAP and this package count from the canvas's.
"""

from __future__ import annotations

from typing import Literal

from monai_mil.slides.slide import Slide

AnnotationFrame = Literal["qupath", "level0"]
Bounds = tuple[int, int, int, int]


def slide_bounds(slide: Slide) -> Bounds:
    """x, y, width and height of the scanned part in level-0 pixels; the whole slide where the file names no part."""
    values = [slide.properties.get(f"openslide.bounds-{name}", "") for name in ("x", "y", "width", "height")]
    try:
        x, y, width, height = map(int, values)
    except ValueError:
        return 0, 0, *slide.size
    return x, y, width, height


def frame_origin(frame: AnnotationFrame, bounds: Bounds | None) -> tuple[int, int]:
    """The level-0 pixel that is (0, 0) in a frame; without known bounds the slide's own corner."""
    return (0, 0) if bounds is None or frame == "level0" else bounds[:2]

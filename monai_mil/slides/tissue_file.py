"""Tissue masks of the user's own: a picture or outlines for each slide, from QuPath, TRIDENT or a painter's hand."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from monai_mil.errors import AnnotationError
from monai_mil.names import existing, file_stem
from monai_mil.slides.annotations import open_outlines
from monai_mil.slides.bounds import slide_bounds
from monai_mil.slides.slide import Slide
from monai_mil.slides.tissue import TissueMask

SUFFIXES = (".png", ".geojson", ".json")
_TOLERANCE = 0.01
_MPP = 8.0


def find_tissue_file(folder: str | Path, slide_id: str) -> Path:
    """The tissue mask ``<slide_id>.png``, ``.geojson`` or ``.json`` in a folder.

    Raises:
        AnnotationError: there is none.
    """
    for suffix in SUFFIXES:
        path = existing(Path(folder, f"{file_stem(slide_id)}{suffix}"))
        if path.is_file():
            return path
    raise AnnotationError(
        f"slide '{slide_id}': no tissue mask in '{folder}'; name it '{slide_id}' and one of {', '.join(SUFFIXES)}"
    )


def read_tissue(path: str | Path, slide: Slide) -> TissueMask:
    """Read a slide's tissue mask.

    Known are PNG of any size that has the slide's shape within 1 %, tissue where a pixel is not 0, and GeoJSON, tissue
    within its polygons but those of the classes that :func:`open_outlines` leaves out. Outlines of TRIDENT
    (``contours_geojson``) are in level-0 pixels, others as :func:`monai_mil.slides.open_truth` reads them.

    Args:
        path: the file.
        slide: the open slide.

    Raises:
        AnnotationError: the file is damaged, or a picture of another shape than the slide.
    """
    path = Path(path)
    if path.suffix.lower() == ".png":
        mask = _read_png(path, slide)
    else:
        width, height = (max(1, round(side / max(1.0, _MPP / slide.mpp))) for side in slide.size)
        outlines = open_outlines(path, slide_bounds(slide))
        mask = outlines.window(0, 0, *slide.size, (height, width))
    height, width = mask.shape
    return TissueMask(mask, (slide.size[0] / width, slide.size[1] / height), None, None)


def tissue_digest(path: str | Path) -> str:
    """A hash of a mask's file, for the bag to record."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def _read_png(path: Path, slide: Slide) -> np.ndarray:
    """bool ``[h, w]``; transparent pixels are no tissue."""
    import cv2

    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED) if path.stat().st_size else None
    if pixels is None:
        raise AnnotationError(f"tissue mask '{path}': no PNG that can be read; write it again")
    (height, width), (slide_width, slide_height) = pixels.shape[:2], slide.size
    # of a small mask the sides are rounded, which is no difference of shape
    off = abs(width * slide_height - height * slide_width)
    if off > max(_TOLERANCE * width * slide_height, 0.5 * (slide_width + slide_height)):
        raise AnnotationError(
            f"tissue mask '{path}': {width} x {height} pixels have not the shape of the slide, "
            f"{slide_width} x {slide_height}; is it another slide's?"
        )
    if pixels.ndim == 2:
        return np.asarray(pixels > 0)
    channels = pixels.shape[2]
    colours = pixels[..., : channels - 1] if channels in (2, 4) else pixels
    shown = np.asarray((colours > 0).any(2))
    return shown & (pixels[..., -1] > 0) if channels in (2, 4) else shown

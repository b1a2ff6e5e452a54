"""A picture that a client sends in place of a slide's name, as a slide."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from monai_mil.errors import SlideReadError
from monai_mil.slides import write_pyramid

_MPP = 0.5
_MOST_PIXELS = 1 << 28


def patch_slide(picture: Path | np.ndarray, folder: Path, mpp: float | None = None) -> Path:
    """Write a picture as a slide that has its pixels at level 0.

    Args:
        picture: a PNG, JPEG or TIFF, or RGB ``[height, width, 3]``, uint8.
        folder: where the slide is written.
        mpp: micrometres per pixel, which pictures do not say; None takes 0.5.

    Returns:
        The slide's file.

    Raises:
        SlideReadError: it is no picture.
    """
    from PIL import Image

    if isinstance(picture, Path):
        try:
            with Image.open(picture) as opened:
                if opened.width * opened.height > _MOST_PIXELS:
                    raise ValueError(f"{opened.width} x {opened.height} pixels are too many for a part of a slide")
                pixels = np.asarray(opened.convert("RGB"))
        except Exception as error:  # Pillow raises whatever a damaged file makes it meet
            raise SlideReadError(f"what was sent is no picture of a part of a slide ({error}); send a PNG") from error
    else:
        pixels = np.asarray(picture, np.uint8)
    path = folder / "patch.tif"
    write_pyramid(path, np.ascontiguousarray(pixels), mpp=mpp or _MPP)
    return path

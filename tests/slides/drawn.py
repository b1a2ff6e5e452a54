"""Small TIFF files of the kinds that people have, page by page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile


@dataclass
class Page:
    """A page to write; ``mpp`` None writes no pixel size."""

    pixels: np.ndarray
    mpp: float | tuple[float, float] | None = 0.5
    options: dict[str, Any] = field(default_factory=dict)


def write_pages(path: Path, pages: Sequence[Page], **file: Any) -> Path:
    """Write pages as tiles of 64 px in RGB without loss, unless their options say otherwise."""
    with tifffile.TiffWriter(path, **file) as tiff:
        for page in pages:
            options: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "compression": "lzw", "metadata": None}
            if page.mpp is not None:
                x, y = page.mpp if isinstance(page.mpp, tuple) else (page.mpp, page.mpp)
                options |= {"resolution": (1e4 / x, 1e4 / y), "resolutionunit": "CENTIMETER"}
            tiff.write(page.pixels, **(options | page.options))
    return path


def reduced(image: np.ndarray, factor: int) -> np.ndarray:
    """Means over squares of ``factor`` pixels, sizes rounded up."""
    height, width = (-(-side // factor) for side in image.shape[:2])
    padded = cv2.copyMakeBorder(
        image, 0, height * factor - image.shape[0], 0, width * factor - image.shape[1], cv2.BORDER_REPLICATE
    )
    return cv2.resize(padded, (width, height), interpolation=cv2.INTER_AREA)


def padded_to_tiles(image: np.ndarray, tile: int = 64, value: int = 0) -> np.ndarray:
    """An image in whole tiles; what is added is ``value``."""
    height, width = (-(-side // tile) * tile for side in image.shape[:2])
    whole = np.full((height, width, 3), value, np.uint8)
    whole[: image.shape[0], : image.shape[1]] = image
    return whole


FLAGGED = {"subfiletype": 1}

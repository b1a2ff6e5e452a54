"""Small slides with known pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from monai_mil.slides import Slide, write_pyramid

MPP = 0.5


def textured(width: int, height: int, seed: int = 0) -> np.ndarray:
    """A smooth random RGB image, ``[height, width, 3]``."""
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX)


@pytest.fixture(scope="session")
def image() -> np.ndarray:
    return textured(1501, 1203)


@pytest.fixture(scope="session")
def lossless_slide(tmp_path_factory: pytest.TempPathFactory, image: np.ndarray) -> Path:
    """``image`` at 0.5 mpp in 256 px LZW tiles, levels 1, 2, 8."""
    path = tmp_path_factory.mktemp("slides") / "lossless.tif"
    write_pyramid(path, image, mpp=MPP, compression="lzw", downsamples=(1, 2, 8))
    return path


@pytest.fixture(scope="session")
def jpeg_slide(tmp_path_factory: pytest.TempPathFactory, image: np.ndarray) -> Path:
    """``image`` at 0.5 mpp in 256 px JPEG tiles, levels 1, 2, 8."""
    path = tmp_path_factory.mktemp("slides") / "jpeg.tif"
    write_pyramid(path, image, mpp=MPP, downsamples=(1, 2, 8))
    return path


class Pyramid:
    """A reader that knows only its level sizes."""

    name = "none"
    properties: dict[str, str] = {}
    mpp = None

    def __init__(self, sizes: list[tuple[int, int]]) -> None:
        self.sizes = sizes


def bare_slide(sizes: list[tuple[int, int]], mpp: float) -> Slide:
    backend: Any = Pyramid(sizes)
    return Slide(Path("slide.svs"), backend, mpp)


def overwrite_tile(path: Path, copy: Path, tile: int, content: bytes | None = None) -> Path:
    """A copy of a TIFF whose stored tile number ``tile`` of level 0 ends in zeros, or is ``content``."""
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        offset, count = page.dataoffsets[tile], page.databytecounts[tile]
    data = bytearray(path.read_bytes())
    half = count // 2
    data[offset + half : offset + count] = bytes(count - half)
    if content is not None:
        data[offset : offset + count] = (content * count)[:count]
    copy.write_bytes(data)
    return copy

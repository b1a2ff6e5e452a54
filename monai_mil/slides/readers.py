"""The libraries that decode slides, behind one small face, and which of them reads which file correctly.

Measured with cuCIM 26.6, OpenSlide 4.0.1 and imagecodecs 2026.3 on files of every codec:

* cuCIM reads uncompressed, LZW and JPEG tiles exactly. It ends the process when it opens a file in which any page has
  Deflate with a predictor or lacks its table of offsets, sees only level 0 of OME pyramids, and returns damaged JPEG
  tiles white.
* OpenSlide reads nearly every vendor's format, DICOM included, and blends neighbouring pixels at levels whose
  downsample is not a whole number.
* imagecodecs decodes Deflate exactly and JPEG 2000 as OpenSlide does, in less time, and WebP, which neither can.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from monai_mil.errors import SlideReadError
from monai_mil.slides.tiff import TiffPyramid, positive_pair

# TIFF compression tags: none, LZW, JPEG; and Deflate (both), PackBits, JPEG 2000 (both), Zstandard, WebP, JPEG XL.
_BY_CUCIM = {1, 5, 7}
_BY_IMAGECODECS = {8, 32946, 32773, 33005, 34712, 50000, 50001, 50002}
_PLAIN_VENDORS = ("aperio", "generic-tiff")
_CONVERT = "convert it, for example with `vips tiffsave IN OUT.tif --tile --pyramid --compression jpeg`"


class Reader(Protocol):
    """What :class:`~monai_mil.slides.Slide` asks of a library; coordinates are pixels of the level."""

    name: str
    sizes: list[tuple[int, int]]
    properties: dict[str, str]
    mpp: tuple[float, float] | None

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Pixels of a region that lies inside the level, uint8 ``[height, width, 3]``."""

    def close(self) -> None:
        """Release the file."""


class CucimReader:
    """Plain tiled TIFF and SVS through cuCIM."""

    name = "cucim"

    def __init__(self, tiff: TiffPyramid) -> None:
        from cucim.clara import CuImage

        self.tiff = tiff
        self.properties = tiff.properties
        self.mpp = tiff.mpp()
        try:
            self.image = CuImage(str(tiff.path))
        except (RuntimeError, ValueError) as error:
            raise SlideReadError(f"slide '{tiff.path}': cuCIM cannot open it ({error}); copy it again") from error
        resolutions = self.image.resolutions
        self.sizes = [(int(width), int(height)) for width, height in resolutions["level_dimensions"]]
        self._downsamples = resolutions["level_downsamples"]

    def locate(self, level: int, x: int, y: int) -> tuple[int, int]:
        """The level-0 location for which cuCIM, which rounds down, starts at pixel ``(x, y)`` of ``level``."""
        downsample = self._downsamples[level]
        if downsample == 1:
            return x, y
        return int((x + 0.5) * downsample), int((y + 0.5) * downsample)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Pixels of a region that lies inside the level, uint8 ``[height, width, 3]``."""
        self.tiff.check(level, x, y, width, height)
        try:
            region = np.array(self.image.read_region(self.locate(level, x, y), (width, height), level))
            if region.shape != (height, width, 3):
                raise ValueError(f"pixels {list(region.shape)} are not RGB")
        except (RuntimeError, ValueError) as error:
            raise SlideReadError(
                f"slide '{self.tiff.path}': {width} x {height} px at ({x}, {y}) of level {level} cannot be decoded "
                f"({_one_line(error)}); the file is damaged, copy it again"
            ) from error
        return region

    def close(self) -> None:
        """Release the file."""
        self.image.close()
        self.tiff.close()


class TiffReader:
    """Tiled TIFF through tifffile and imagecodecs."""

    name = "tifffile"

    def __init__(self, tiff: TiffPyramid) -> None:
        self.tiff = tiff
        self.properties = tiff.properties
        self.mpp = tiff.mpp()
        self.sizes = [(level.width, level.height) for level in tiff.levels]
        self.read = tiff.read
        self.close = tiff.close


class OpenSlideReader:
    """Every other format, DICOM included, through OpenSlide."""

    name = "openslide"

    def __init__(self, path: Path) -> None:
        import openslide

        try:
            self._slide = openslide.OpenSlide(path)
        except openslide.OpenSlideError as error:
            raise SlideReadError(f"slide '{path}': {_one_line(error)}; is it a slide, and complete?") from error
        self._path = path
        self.sizes = list(self._slide.level_dimensions)
        self.properties = dict(self._slide.properties)
        x, y = (self.properties.get(f"openslide.mpp-{axis}", "") for axis in "xy")
        self.mpp = positive_pair(x, y)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Pixels of a region that lies inside the level, uint8 ``[height, width, 3]``."""
        import openslide

        downsample = self._slide.level_downsamples[level]
        location = round(x * downsample), round(y * downsample)
        try:
            rgba = np.asarray(self._slide.read_region(location, level, (width, height)))
        except openslide.OpenSlideError as error:
            raise SlideReadError(
                f"slide '{self._path}': the tile at level-0 position {location} cannot be decoded "
                f"({_one_line(error)}); the file is damaged, copy it again"
            ) from error
        rgb, alpha = rgba[..., :3], rgba[..., 3:]
        if alpha.min(initial=255) == 255:
            return np.ascontiguousarray(rgb)
        weight = alpha.astype(np.uint32)
        return ((rgb * weight + 255 * (255 - weight) + 127) // 255).astype(np.uint8)

    def close(self) -> None:
        """Release the file."""
        self._slide.close()


def choose_reader(path: Path) -> Reader:
    """Open ``path`` with the library that reads it correctly.

    Raises:
        SlideReadError: missing, empty, truncated, not a slide, or in a form that no library here reads.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except FileNotFoundError:
        raise SlideReadError(f"slide '{path}': no such file; check the path") from None
    except IsADirectoryError:
        raise SlideReadError(f"slide '{path}': is a folder; name the slide's file") from None
    except OSError as error:
        raise SlideReadError(f"slide '{path}': cannot be read ({error.strerror}); check the file") from error
    if not magic:
        raise SlideReadError(f"slide '{path}': the file is empty; copy it again")
    vendor = _vendor(path)
    if magic[:2] not in (b"II", b"MM"):
        if vendor is None:
            raise SlideReadError(f"slide '{path}': not a whole-slide image that OpenSlide or cuCIM knows")
        return OpenSlideReader(path)
    if vendor is not None and vendor not in _PLAIN_VENDORS:
        return OpenSlideReader(path)
    return _choose_for_tiff(path, vendor)


def _choose_for_tiff(path: Path, vendor: str | None) -> Reader:
    tiff = TiffPyramid(path)
    if not tiff.levels:
        tiff.close()
        raise SlideReadError(f"slide '{path}': its pixels are not stored as tiles of 8-bit RGB; {_CONVERT}")
    suits_cucim = tiff.compression in _BY_CUCIM and not (tiff.has_deflate or tiff.has_gaps or tiff.is_sub_ifd_pyramid)
    if suits_cucim and _has_cucim():
        reader = CucimReader(tiff)
        if reader.sizes == [(level.width, level.height) for level in tiff.levels]:
            return reader
        reader.image.close()
    if tiff.compression in _BY_CUCIM | _BY_IMAGECODECS:
        return TiffReader(tiff)
    tiff.close()
    if vendor is None:
        raise SlideReadError(f"slide '{path}': no reader here decodes TIFF compression {tiff.compression}; {_CONVERT}")
    try:
        return OpenSlideReader(path)
    except SlideReadError as error:
        raise SlideReadError(f"{error} {_CONVERT}") from error


def _has_cucim() -> bool:
    return importlib.util.find_spec("cucim") is not None


def _vendor(path: Path) -> str | None:
    import openslide

    return openslide.OpenSlide.detect_format(path)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def reader_report() -> list[tuple[str, bool, str, str]]:
    """What can read slides here: ``(reader, available, version, note)`` of each library, for ``monai-mil doctor``."""
    return [
        _report("cucim", ("cucim-cu12", "cucim-cu13"), "tiled TIFF and SVS; on NVIDIA GPUs decodes there"),
        _report("openslide", ("openslide-python",), "vendor formats (MRXS, NDPI, SCN, BIF, ...) and DICOM"),
        _report("tifffile", ("tifffile",), "OME-TIFF pyramids, Deflate, JPEG 2000 and WebP tiles"),
    ]


@cache
def _report(module: str, distributions: tuple[str, ...], reads: str) -> tuple[str, bool, str, str]:
    try:
        loaded: Any = importlib.import_module(module)
    except (ImportError, OSError) as error:
        return module, False, "", f"reads {reads}; does not import ({_one_line(error)}): pip install {distributions[0]}"
    for distribution in distributions:
        try:
            return module, True, version(distribution), f"reads {reads}"
        except PackageNotFoundError:
            continue
    return module, True, getattr(loaded, "__version__", "unknown"), f"reads {reads}"

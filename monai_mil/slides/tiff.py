"""Tiled TIFF pyramids tile by tile: what the tags say, and the exact pixels of each stored tile."""

from __future__ import annotations

import html
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_mil.errors import SlideReadError

JPEG = 7
_DEFLATE = (8, 32946)
_YCBCR = 6
# Resolution tags this coarse (500 dpi and below) are what screens and printers default to, not pixel sizes of a slide.
_COARSEST_RESOLUTION_TAG = 50.0


@dataclass(frozen=True)
class StoredLevel:
    """One level of a tiled TIFF: ``width`` x ``height`` px in row-major tiles of ``tile_width`` x ``tile_height``."""

    width: int
    height: int
    tile_width: int
    tile_height: int
    offsets: np.ndarray
    byte_counts: np.ndarray
    page: Any

    @property
    def columns(self) -> int:
        """Number of stored tiles in a row."""
        return -(-self.width // self.tile_width)


class TiffPyramid:
    """The RGB pyramid of a tiled TIFF (SVS, generic, OME), decoded by imagecodecs one stored tile at a time.

    Thread-safe: tiles are fetched by positioned reads and decoded without shared state.

    Args:
        path: a TIFF file.

    Raises:
        SlideReadError: the file is damaged, or tile data lies beyond its end.
    """

    def __init__(self, path: Path) -> None:
        import tifffile

        self.path = path
        try:
            with tifffile.TiffFile(path) as tiff:
                pages: list[Any] = list(tiff.pages)
                self.has_gaps = not all(map(_is_complete, pages))
                self.has_deflate = any(page.compression in _DEFLATE for page in pages)
                self.is_sub_ifd_pyramid = bool(pages[0].subifds)
                self.description = pages[0].description
                self.ome_metadata = tiff.ome_metadata if tiff.is_ome else None
                self.resolution_mpp = _resolution_mpp(pages[0])
                self.levels = tuple(_stored_levels(tiff))
                if not all(_is_complete(level.page) for level in self.levels):
                    raise ValueError("the table of its tiles is incomplete")
        except Exception as error:  # a damaged header makes tifffile stumble in many ways
            raise SlideReadError(f"slide '{path}': damaged or not a slide ({error}); copy it again") from error
        size = path.stat().st_size
        if any((level.offsets + level.byte_counts).max(initial=0) > size for level in self.levels):
            raise SlideReadError(f"slide '{path}': truncated, its tiles reach beyond its {size} bytes; copy it again")
        self._file = path.open("rb", buffering=0)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def compression(self) -> int:
        """The TIFF compression tag of level 0."""
        return int(self.levels[0].page.compression)

    @property
    def properties(self) -> dict[str, str]:
        """The vendor's properties, under the names OpenSlide gives them."""
        fields = re.findall(r"\|\s*([^=|]+?)\s*=\s*([^|]*)", self.description)
        if not self.description.startswith("Aperio"):
            fields = []
        return {"tiff.ImageDescription": self.description} | {f"aperio.{key}": value.strip() for key, value in fields}

    def mpp(self) -> tuple[float, float] | None:
        """Micrometres per pixel in x and y from the Aperio or OME metadata or the resolution tags, if any has it."""
        if self.ome_metadata is not None:
            return _ome_mpp(self.ome_metadata)
        aperio = self.properties.get("aperio.MPP")
        if aperio is not None:
            return positive_pair(aperio, aperio)
        return self.resolution_mpp

    def encoded(self, level: int, tile: int) -> bytes:
        """The bytes of a stored tile; empty where the writer left it out."""
        stored = self.levels[level]
        try:
            return os.pread(self._file.fileno(), int(stored.byte_counts[tile]), int(stored.offsets[tile]))
        except OSError as error:
            raise SlideReadError(f"slide '{self.path}': cannot be read ({error.strerror}); check the disk") from error

    def decode(self, level: int, tile: int, out: np.ndarray) -> None:
        """Decode a stored tile.

        Args:
            level: of the pyramid.
            tile: index in row-major order.
            out: C-contiguous uint8 ``[tile_height, tile_width, 3]``, overwritten; white where no data are stored.

        Raises:
            SlideReadError: the tile's data are damaged; names the slide and the tile's level-0 position.
        """
        import imagecodecs

        stored = self.levels[level]
        data = self.encoded(level, tile)
        if not data:
            out[:] = 255
            return
        page = stored.page
        try:
            if page.compression == JPEG:
                _check_jpeg(data)
                imagecodecs.jpeg8_decode(
                    data,
                    tables=page.jpegtables,
                    colorspace="YCBCR" if page.photometric == _YCBCR else "RGB",
                    outcolorspace="RGB",
                    out=out,
                )
            else:
                out[:] = page.decode(data, tile)[0][0]
        except Exception as error:  # every codec raises its own type
            raise self.damaged(level, tile, error) from error

    def check(self, level: int, x: int, y: int, width: int, height: int) -> None:
        """Raise :class:`SlideReadError` if a JPEG tile in this region of ``level`` is cut short or overwritten.

        cuCIM returns such tiles white without a word.
        """
        if self.levels[level].page.compression != JPEG:
            return
        for tile, _, _ in self.tiles_in(level, x, y, width, height):
            try:
                data = self.encoded(level, tile)
                if data:
                    _check_jpeg(data)
            except ValueError as error:
                raise self.damaged(level, tile, error) from error

    def damaged(self, level: int, tile: int, error: Exception) -> SlideReadError:
        """The error that names a stored tile's position."""
        stored = self.levels[level]
        row, column = divmod(tile, stored.columns)
        x = column * stored.tile_width * self.levels[0].width // stored.width
        y = row * stored.tile_height * self.levels[0].height // stored.height
        return SlideReadError(
            f"slide '{self.path}': the tile at level-0 position ({x}, {y}) cannot be decoded ({error}); "
            "the file is damaged, copy it again"
        )

    def tiles_in(self, level: int, x: int, y: int, width: int, height: int) -> Iterator[tuple[int, int, int]]:
        """Yield ``(index, x, y)`` of the stored tiles that meet a region inside ``level``, in pixels of that level."""
        stored = self.levels[level]
        for row in range(y // stored.tile_height, (y + height - 1) // stored.tile_height + 1):
            for column in range(x // stored.tile_width, (x + width - 1) // stored.tile_width + 1):
                yield row * stored.columns + column, column * stored.tile_width, row * stored.tile_height

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Read a region that lies inside ``level``, in pixels of that level: uint8 ``[height, width, 3]``."""
        stored = self.levels[level]
        region = np.empty((height, width, 3), np.uint8)
        pixels = pixel_buffer((stored.tile_height, stored.tile_width, 3))
        for tile, tile_x, tile_y in self.tiles_in(level, x, y, width, height):
            self.decode(level, tile, pixels)
            paste(pixels, region, tile_x - x, tile_y - y)
        return region


def pixel_buffer(shape: tuple[int, ...]) -> np.ndarray:
    """Uninitialised uint8 memory to decode JPEG tiles into, 16 bytes past a multiple of 32.

    libjpeg-turbo writes rows that begin at multiples of 32 bytes around the cache, which takes 30 % longer for pixels
    that are used at once.
    """
    size = math.prod(shape)
    memory = np.empty(size + 32, np.uint8)
    start = (16 - memory.ctypes.data) % 32
    return memory[start : start + size].reshape(shape)


def paste(source: np.ndarray, target: np.ndarray, x: int, y: int) -> None:
    """Copy the part of ``source`` that falls onto ``target`` when its upper-left corner is put at ``(x, y)``."""
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + source.shape[1], target.shape[1]), min(y + source.shape[0], target.shape[0])
    target[top:bottom, left:right] = source[top - y : bottom - y, left - x : right - x]


def _check_jpeg(data: bytes) -> None:
    if not data.startswith(b"\xff\xd8"):
        raise ValueError("not a JPEG stream")
    if not data.endswith(b"\xff\xd9") and not data.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise ValueError("the JPEG stream ends early")


def _stored_levels(tiff: Any) -> Iterator[StoredLevel]:
    """The tiled 8-bit RGB pages of the first image, finest first."""
    first = tiff.pages[0]
    finer = None
    for page in [first, *(first.pages if first.subifds else tiff.pages[1:])]:
        is_rgb = page.samplesperpixel == 3 and page.dtype == np.uint8 and page.planarconfig == 1
        if not (page.is_tiled and is_rgb and page.imagedepth == 1) or not (finer is None or _reduces(page, finer)):
            continue
        finer = page
        yield StoredLevel(
            width=page.imagewidth,
            height=page.imagelength,
            tile_width=page.tilewidth,
            tile_height=page.tilelength,
            offsets=np.asarray(page.dataoffsets, np.int64),
            byte_counts=np.asarray(page.databytecounts, np.int64),
            page=page,
        )


def _is_complete(page: Any) -> bool:
    """Whether the page says where each of its tiles or strips lies."""
    return len(page.dataoffsets) == len(page.databytecounts) == math.prod(page.chunked)


def _reduces(page: Any, finer: Any) -> bool:
    """Whether ``page`` can be the same image as ``finer`` with fewer pixels: both axes shrink by the same factor."""
    factor = finer.imagewidth / page.imagewidth
    return factor > 1 and abs(finer.imagelength / factor - page.imagelength) <= 1 + 0.02 * page.imagelength


def _resolution_mpp(page: Any) -> tuple[float, float] | None:
    micrometres = {2: 25400.0, 3: 10000.0}.get(int(page.tags.valueof("ResolutionUnit", 2)))
    x, y = (page.tags.valueof(name) for name in ("XResolution", "YResolution"))
    if micrometres is None or not (x and y and x[0] and y[0] and x[1] and y[1]):
        return None
    mpp = micrometres * x[1] / x[0], micrometres * y[1] / y[0]
    return mpp if max(mpp) < _COARSEST_RESOLUTION_TAG else None


def _ome_mpp(xml: str) -> tuple[float, float] | None:
    pixels = re.search(r"<Pixels\b[^>]*>", html.unescape(xml).replace("\u03bc", "\u00b5"))
    attributes = dict(re.findall(r'(\w+)="([^"]*)"', pixels.group() if pixels else ""))
    scales = {"µm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3}
    scale_x, scale_y = (scales.get(attributes.get(f"PhysicalSize{axis}Unit", "µm")) for axis in "XY")
    mpp = positive_pair(attributes.get("PhysicalSizeX", ""), attributes.get("PhysicalSizeY", ""))
    if mpp is None or scale_x is None or scale_y is None:
        return None
    return mpp[0] * scale_x, mpp[1] * scale_y


def positive_pair(x: str, y: str) -> tuple[float, float] | None:
    """Two positive numbers, or None where one of the texts is none."""
    try:
        pair = float(x), float(y)
    except ValueError:
        return None
    return pair if min(pair) > 0 and math.isfinite(sum(pair)) else None

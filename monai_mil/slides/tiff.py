"""Tiled TIFF pyramids tile by tile: what the tags say, and the exact pixels of each stored tile."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from monai_mil.errors import SlideReadError
from monai_mil.slides import colour, pixel_size
from monai_mil.slides.colour import Colours
from monai_mil.slides.pages import LevelPage, Scene, find_scenes
from monai_mil.slides.plain_jpeg import PlainJPEG, jpeg_frame

JPEG = 7
_LZW = 5
_DEFLATE = (8, 32946)
_ICC_PROFILE = 34675
_PLAIN_CODECS = (*colour.BYTE_CODECS, JPEG, 33005, 50001)


# What is wrong with a file is told by an error of our own; without a handler tifffile's log would go to the terminal.
logging.getLogger("tifffile").addHandler(logging.NullHandler())
_MOST_TILE_PIXELS = 2**28
"""Sixteen thousand pixels square; the largest tiles that are known have a side of four thousand."""


class SettledError(SlideReadError):
    """What no other reader would do better: no such series or focal plane, or pixels that are no colours.

    Damage too: OpenSlide ends the process on some damaged directories, when it asks for more memory than there is.
    """


@dataclass(frozen=True)
class StoredLevel:
    """One level of a tiled TIFF: ``width`` x ``height`` px in row-major tiles of ``tile_width`` x ``tile_height``.

    ``inside`` is the width and height without padding, ``downsample`` level-0 pixels per pixel along x and y, and
    ``jpeg_colours`` what a plain JPEG tile holds, ``"RGB"`` or ``"YCBCR"``; None for other tiles.
    """

    width: int
    height: int
    tile_width: int
    tile_height: int
    offsets: np.ndarray
    byte_counts: np.ndarray
    page: Any
    inside: tuple[int, int]
    downsample: tuple[float, float]
    colours: Colours
    jpeg_colours: str | None = None

    @property
    def columns(self) -> int:
        """Number of stored tiles in a row."""
        return -(-self.width // self.tile_width)

    @property
    def tiles(self) -> int:
        """Number of stored tiles, in each of the planes where colours are stored apart."""
        return self.columns * -(-self.height // self.tile_height)


class TiffPyramid:
    """The pyramid of a tiled TIFF (SVS, generic, OME), decoded by imagecodecs one stored tile at a time.

    Thread-safe: tiles are fetched by positioned reads and decoded without shared state.

    Args:
        path: a TIFF file.
        series: which of its scenes, in the file's order; None for the largest.
        plane: which focal plane; None for the middle one.

    Attributes:
        levels: finest first.
        remarks: what was chosen or assumed.
        convert: changes the pixels of every decoded tile in place; None to leave them.

    Raises:
        SettledError: there is no such scene or plane, its pixels are no colours, the file is damaged, or tile data
            lies beyond its end.
        SlideReadError: no codec here decodes its tiles.
    """

    def __init__(self, path: Path, *, series: int | None = None, plane: int | None = None) -> None:
        import tifffile

        self.path = path
        self.convert: Callable[[np.ndarray], None] | None = None
        self._plain: dict[int, PlainJPEG | None] = {}
        try:
            with tifffile.TiffFile(path) as tiff:
                pages: list[Any] = list(tiff.pages)
                self.has_gaps = not all(map(_is_complete, pages))
                self.has_deflate = any(page.compression in _DEFLATE for page in pages)
                self.ome_metadata = tiff.ome_metadata if tiff.is_ome else None
                self.has_sub_ifds = any(page.subifds for page in pages)
                scenes, largest = find_scenes(tiff)
                scene, self.remarks = self._choose(scenes, largest, series)
                chosen, remarks = self._choose_plane(scene, plane)
                self.remarks += remarks
                self.description = scene.base.description
                self._ome_image = scene.ome_index or 0
                self._resolution_mpp = _resolution_mpp(scene.base)
                self.icc_profile = _profile(scene.base)
                refusal = scene.refusal or colour.refusal(scene.base)
                if refusal is not None:
                    raise SettledError(f"slide '{path}': {refusal}")
                shown = [level for level in chosen if colour.refusal(level.page) is None]
                self.levels = tuple(_stored_level(level, scene.size) for level in shown)
                if not all(_is_complete(level.page) for level in self.levels):
                    raise ValueError("the table of its tiles is incomplete")
                if any(level.tile_width * level.tile_height > _MOST_TILE_PIXELS for level in self.levels):
                    raise ValueError("its tiles are larger than any memory")
                self.is_first_pages = [level.page.index for level in self.levels] == _tiled_pages(pages)
        except SlideReadError:
            raise
        except Exception as error:  # a damaged header makes tifffile stumble in many ways
            raise SettledError(f"slide '{path}': damaged or not a slide ({one_line(error)}); copy it again") from error
        if note := colour.remark(self.levels[0].page):
            self.remarks += (f"slide '{path}': {note}",)
        size = path.stat().st_size
        if any((level.offsets + level.byte_counts).max(initial=0) > size for level in self.levels):
            raise SettledError(f"slide '{path}': truncated, its tiles reach beyond its {size} bytes; copy it again")
        self._file = path.open("rb", buffering=0)
        try:
            self.levels = tuple(map(self._with_jpeg_colours, self.levels))
            self._try_one_tile()
        except BaseException:
            self._file.close()
            raise

    def _choose(self, scenes: list[Scene], largest: int, series: int | None) -> tuple[Scene, tuple[str, ...]]:
        named = "; ".join(
            f"{index}: {scene.size[0]} x {scene.size[1]} px" + (f" '{scene.name}'" if scene.name else "")
            for index, scene in enumerate(scenes)
        )
        if series is not None and not 0 <= series < len(scenes):
            raise SettledError(f"slide '{self.path}': no series {series}; it has {named}")
        if series is not None or len(scenes) == 1:
            return scenes[largest if series is None else series], ()
        remark = (
            f"slide '{self.path}': holds {len(scenes)} images ({named}); number {largest}, the largest, is read; "
            "choose another with --series"
        )
        return scenes[largest], (remark,)

    def _choose_plane(self, scene: Scene, plane: int | None) -> tuple[list[LevelPage], tuple[str, ...]]:
        count = len(scene.planes)
        if plane is not None and not 0 <= plane < count:
            raise SettledError(f"slide '{self.path}': no focal plane {plane}; it has {count}, counted from 0")
        if plane is not None or count == 1:
            return scene.planes[plane or 0], ()
        remark = (
            f"slide '{self.path}': holds {count} focal planes; number {count // 2}, the middle one, is read; "
            "choose another with --plane"
        )
        return scene.planes[count // 2], (remark,)

    def _with_jpeg_colours(self, level: StoredLevel) -> StoredLevel:
        """JPEG tiles that say RGB but store chroma coarsely hold YCbCr."""
        page = level.page
        if page.compression != JPEG or not colour.is_plain_rgb(page):
            return level
        colours = "YCBCR" if page.photometric == colour.YCBCR else "RGB"
        stored = np.flatnonzero(level.byte_counts)
        if colours == "RGB" and len(stored):
            data = os.pread(self._file.fileno(), int(level.byte_counts[stored[0]]), int(level.offsets[stored[0]]))
            colours = "YCBCR" if jpeg_is_subsampled(data) else "RGB"
        return replace(level, jpeg_colours=colours)

    def _try_one_tile(self) -> None:
        """Refuse unusual pixels that no codec here decodes before any of them is wanted."""
        level = self.levels[0]
        if colour.is_plain_rgb(level.page) and self.compression in _PLAIN_CODECS:
            return
        stored = np.flatnonzero(level.byte_counts[: level.tiles])
        if not len(stored):
            return
        try:
            self.decode(0, int(stored[0]), np.empty((level.tile_height, level.tile_width, 3), np.uint8))
        except SlideReadError as error:
            cause = error.__cause__ or error
            reason = one_line(cause) or type(cause).__name__
            raise SlideReadError(
                f"slide '{self.path}': its tiles of TIFF compression {self.compression} and photometric interpretation "
                f"{int(level.page.photometric)} cannot be decoded ({reason}); copy it again, "
                "or export it as 8-bit RGB in JPEG or LZW tiles from the program that wrote it"
            ) from error

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
        """Micrometres per pixel in x and y from the OME or Aperio metadata or the resolution tags, if any has it."""
        told = None
        if self.ome_metadata is not None:
            told = pixel_size.from_ome(self.ome_metadata, self._ome_image)
        return told or pixel_size.from_properties(self.properties) or self._resolution_mpp

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
        stored = self.levels[level]
        data = self.encoded(level, tile)
        if not data:
            out[:] = 255
            return
        try:
            if stored.page.compression == JPEG:
                _check_jpeg(data)
            if stored.jpeg_colours is not None:
                plain = self.plain_jpeg(level)
                if plain is None or not plain.decode(data, out):
                    _decode_jpeg(data, stored, out)
            else:
                rgb = stored.colours.to_rgb(self._samples(level, tile, data))
                height, width = rgb.shape[:2]
                out[:height, :width] = rgb  # some codecs leave out what lies beyond the level
                out[height:] = 255
                out[:, width:] = 255
        except ImportError:
            raise  # a library is missing: no fault of the file's
        except Exception as error:  # every codec raises its own type
            raise self.damaged(level, tile, error) from error
        if self.convert is not None:
            self.convert(out)

    def decode_reduced(self, level: int, tile: int, out: np.ndarray) -> None:
        """Decode a stored tile at a fraction of its size, by a smaller transform of each of its blocks.

        Args:
            level: of the pyramid, one that has a :meth:`plain_jpeg`.
            tile: index in row-major order.
            out: C-contiguous uint8, a half, a quarter or an eighth of ``tile_height`` and ``tile_width``.

        Raises:
            SlideReadError: the tile's data are damaged, or not of the kind of the level's other tiles; names both.
        """
        data = self.encoded(level, tile)
        if not data:
            out[:] = 255
            return
        try:
            _check_jpeg(data)
            plain = self.plain_jpeg(level)
            if plain is None or not plain.decode(data, out):
                raise ValueError("not a JPEG like the level's other tiles")
        except ValueError as error:
            raise self.damaged(level, tile, error) from error
        if self.convert is not None:
            self.convert(out)

    def plain_jpeg(self, level: int) -> PlainJPEG | None:
        """What decodes the level's tiles faster; None where it gives other pixels, told by the largest tile."""
        if level not in self._plain:
            self._plain[level] = self._try_plain_jpeg(level)
        return self._plain[level]

    def _try_plain_jpeg(self, level: int) -> PlainJPEG | None:
        stored = self.levels[level]
        if stored.jpeg_colours is None or not stored.byte_counts.any():
            return None
        data = self.encoded(level, int(stored.byte_counts.argmax()))
        pixels = pixel_buffer((stored.tile_height, stored.tile_width, 3))
        try:
            _decode_jpeg(data, stored, pixels)
        except Exception:  # every codec raises its own type; whoever wants this tile is told
            return None
        return PlainJPEG.of(data, stored.page.jpegtables, pixels)

    def _samples(self, level: int, tile: int, data: bytes) -> np.ndarray:
        """What a stored tile holds before its colours are made RGB, ``[h, w, s]``."""
        stored = self.levels[level]
        page = stored.page
        if page.planarconfig != 1:
            planes = [data, *(self.encoded(level, tile + stored.tiles * k) for k in range(1, page.samplesperpixel))]
            tables = page.jpegtables
            return np.concatenate([page.decode(plane, tile, jpegtables=tables)[0][0] for plane in planes], axis=-1)
        if colour.is_subsampled(page):
            import tifffile

            decompress = tifffile.TIFF.DECOMPRESSORS[page.compression]
            size = page.tilelength * page.tilewidth * 3
            data = data if page.compression == 1 else decompress(data, out=size)
            if len(data) < size:
                return colour.unpack_subsampled(data, page)
            return np.frombuffer(data, np.uint8, size).reshape(page.tilelength, page.tilewidth, 3)
        samples: np.ndarray = page.decode(data, tile, jpegtables=page.jpegtables)[0][0]
        return samples

    def check(self, level: int, x: int, y: int, width: int, height: int) -> None:
        """Raise :class:`SlideReadError` if a JPEG or LZW tile in this region of ``level`` is cut short or overwritten.

        cuCIM returns such tiles white or as noise without a word, and crashes on a JPEG larger than its tile.
        """
        stored = self.levels[level]
        if stored.page.compression == _LZW:
            pixels = pixel_buffer((stored.tile_height, stored.tile_width, 3))
            for tile, _, _ in self.tiles_in(level, x, y, width, height):
                self.decode(level, tile, pixels)
        if stored.page.compression != JPEG:
            return
        header = b""
        for tile, _, _ in self.tiles_in(level, x, y, width, height):
            try:
                data = self.encoded(level, tile)
                if data:
                    _check_jpeg(data)
                    if not header or not data.startswith(header):
                        header = _jpeg_header(data, stored)
            except ValueError as error:
                raise self.damaged(level, tile, error) from error

    def damaged(self, level: int, tile: int, error: Exception) -> SlideReadError:
        """The error that names a stored tile's position."""
        stored = self.levels[level]
        row, column = divmod(tile, stored.columns)
        x = int(column * stored.tile_width * stored.downsample[0])
        y = int(row * stored.tile_height * stored.downsample[1])
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


def _decode_jpeg(data: bytes, stored: StoredLevel, out: np.ndarray) -> None:
    import imagecodecs

    imagecodecs.jpeg8_decode(
        data, tables=stored.page.jpegtables, colorspace=stored.jpeg_colours, outcolorspace="RGB", out=out
    )


def first_description(path: Path) -> str:
    """The description of the first page of a TIFF; empty where it cannot be read."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            return str(tiff.pages.first.description)
    except Exception:  # a damaged header makes tifffile stumble in many ways
        return ""


def jpeg_is_subsampled(data: bytes) -> bool:
    """Whether a JPEG stream of three components stores the second and third more coarsely than the first."""
    at = jpeg_frame(data)
    return at is not None and data[at + 9] == 3 and data[at + 11] != data[at + 14] == data[at + 17]


def _jpeg_header(data: bytes, stored: StoredLevel) -> bytes:
    """A JPEG stream up to where it says how large it is, which is mostly that of all tiles of a level.

    Raises ValueError for one larger than its tile, which cuCIM would write beyond its memory.
    """
    at = jpeg_frame(data)
    if at is None:
        raise ValueError("no JPEG frame")
    height, width = (int.from_bytes(data[at + place : at + place + 2], "big") for place in (5, 7))
    if height > stored.tile_height or width > stored.tile_width:
        raise ValueError(f"a JPEG of {width} x {height} px in a tile of {stored.tile_width} x {stored.tile_height}")
    return data[: at + 9]


def _stored_level(level: LevelPage, size: tuple[int, int]) -> StoredLevel:
    page = level.page
    return StoredLevel(
        width=page.imagewidth,
        height=page.imagelength,
        tile_width=page.tilewidth,
        tile_height=page.tilelength,
        offsets=np.asarray(page.dataoffsets, np.int64),
        byte_counts=np.asarray(page.databytecounts, np.int64),
        page=page,
        inside=level.inside(size),
        downsample=level.downsample,
        colours=Colours.of(page),
    )


def _tiled_pages(pages: list[Any]) -> list[int]:
    """The numbers of the tiled pages, which are cuCIM's levels."""
    return [page.index for page in pages if page.is_tiled]


def _is_complete(page: Any) -> bool:
    """Whether the page says where each of its tiles or strips lies."""
    return len(page.dataoffsets) == len(page.databytecounts) == math.prod(page.chunked)


def _resolution_mpp(page: Any) -> tuple[float, float] | None:
    x, y = (page.tags.valueof(name) for name in ("XResolution", "YResolution"))
    if not (x and y and x[0] and y[0] and x[1] and y[1]):
        return None
    return pixel_size.from_resolution(x[0] / x[1], y[0] / y[1], int(page.tags.valueof("ResolutionUnit", 2)))


def _profile(page: Any) -> bytes | None:
    profile = page.tags.valueof(_ICC_PROFILE)
    return bytes(profile) if profile else None


def one_line(error: BaseException) -> str:
    """The message of an error without its line breaks."""
    return " ".join(str(error).split())

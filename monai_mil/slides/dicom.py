"""DICOM slides that OpenSlide would not show, or show in wrong colours: focal planes, and headers that disagree."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from monai_mil.errors import SlideReadError
from monai_mil.slides.pages import fit_level, without_padding
from monai_mil.slides.parts import slide_files
from monai_mil.slides.tiff import SettledError, jpeg_is_subsampled, one_line, paste

Colours = Literal["RGB", "YBR", "GREY"]
_NAMES = {"RGB": "RGB", "YBR": "YCbCr", "GREY": "grey"}

_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")
_JPEG = ("1.2.840.10008.1.2.4.50",)
_JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
_TAGS = [
    *("ImageType", "Rows", "Columns", "TotalPixelMatrixColumns", "TotalPixelMatrixRows", "NumberOfFrames"),
    *("PhotometricInterpretation", "SamplesPerPixel", "BitsAllocated", "PlanarConfiguration", "NumberOfOpticalPaths"),
    *("DimensionOrganizationType", "TotalPixelMatrixFocalPlanes", "SharedFunctionalGroupsSequence"),
    *("OpticalPathSequence", "SOPClassUID", "TransferSyntaxUID"),
]
_SET_RGB = (
    "python -c \"import pydicom; d = pydicom.dcmread('IN'); d.PhotometricInterpretation = 'RGB'; d.save_as('OUT.dcm')\""
)
_PHOTOMETRICS = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_ITEM = b"\xfe\xff\x00\xe0"


class HeaderError(ValueError):
    """Numbers of a header that do not fit one another."""


def _told(error: Exception) -> str:
    """What is wrong; pydicom's own words may quote the header, where the patient's name may stand in any place."""
    return one_line(error) if isinstance(error, (HeaderError, OSError)) else f"its header: {type(error).__name__}"


def _syntax_name(uid: str) -> str:
    import pydicom

    known = pydicom.uid.UID(uid, validation_mode=pydicom.config.IGNORE)
    return str(known.name) if known.is_valid and known.name != known else "a transfer syntax of no known name"


class Instance:
    """One file of a DICOM slide: its header without the positions of its frames, and where its frames lie.

    Attributes:
        size: width and height in pixels, padding included.
        tile: width and height of a frame.
        frames: their number.
        planes: number of focal planes.
    """

    def __init__(self, path: Path) -> None:
        import pydicom

        self.path = path
        with pydicom.config.disable_value_validation():  # its warnings quote the values that they find odd
            self._read(pydicom)

    def _read(self, pydicom: Any) -> None:
        with self.path.open("rb") as file:
            self.header: Any = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS)
            self._pixels = file.tell() + 12  # behind tag, VR and length, which pydicom does not read
        self.syntax = str(self.header.file_meta.TransferSyntaxUID)
        self.size = int(self.header.TotalPixelMatrixColumns), int(self.header.TotalPixelMatrixRows)
        self.tile = int(self.header.Columns), int(self.header.Rows)
        self.frames = int(self.header.get("NumberOfFrames", 1))
        self.planes = max(1, int(self.header.get("TotalPixelMatrixFocalPlanes", 1) or 1))
        if min(*self.size, *self.tile, self.frames) < 1:
            raise HeaderError(f"{self.frames} frames of {self.tile} px make no image of {self.size} px")
        photometric = str(self.header.get("PhotometricInterpretation", ""))
        self.photometric = photometric if photometric in _PHOTOMETRICS else "no known colours"

    @property
    def is_level(self) -> bool:
        """Whether it shows the slide itself, not its label or a thumbnail."""
        return "VOLUME" in self.header.get("ImageType", ())

    @property
    def spacing(self) -> tuple[float, float] | None:
        """Micrometres per pixel along x and y."""
        import pydicom

        try:
            with pydicom.config.disable_value_validation():
                measures = self.header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
                down, across = map(float, measures.PixelSpacing)
        except (AttributeError, IndexError, TypeError, ValueError):
            return None
        return (across * 1000, down * 1000) if min(across, down) > 0 else None

    @property
    def icc_profile(self) -> bytes | None:
        """The ICC profile of the first optical path."""
        try:
            return bytes(self.header.OpticalPathSequence[0].ICCProfile) or None
        except (AttributeError, IndexError, TypeError):
            return None

    @property
    def header_colours(self) -> Colours:
        """What the frames hold once decoded, by the header."""
        if self.photometric.startswith("MONOCHROME"):
            return "GREY"
        return "RGB" if self.photometric in ("RGB", "YBR_ICT", "YBR_RCT") else "YBR"

    @property
    def openslide_colours(self) -> Colours | None:
        """What OpenSlide takes the frames for; None where it refuses them."""
        if self.photometric == "YBR_FULL_422":
            return "YBR" if self.syntax in _JPEG else None
        return "RGB" if self.photometric in ("RGB", "YBR_ICT", "YBR_RCT") else None

    @cached_property
    def places(self) -> list[tuple[int, int]]:
        """Offset and length of every frame's bytes."""
        if self.syntax in _NATIVE:
            size = self.tile[0] * self.tile[1] * int(self.header.get("SamplesPerPixel", 1))
            return [(self._pixels + index * size, size) for index in range(self.frames)]
        with self.path.open("rb") as file:
            found = list(_items(file, self._pixels, self.path.stat().st_size))[1:]  # the first is the offset table
        if len(found) != self.frames:
            raise HeaderError(f"{len(found)} stored pieces for {self.frames} frames")
        return found

    def frame(self, index: int) -> bytes:
        """The stored bytes of a frame."""
        offset, length = self.places[index]
        with self.path.open("rb") as file:
            return os.pread(file.fileno(), length, offset)

    def colours(self) -> Colours:
        """What the frames hold once decoded, by the first of them; the header decides what they do not say.

        Raises:
            SettledError: the header names a transform that the frames were made without, so that nobody can tell.
        """
        if self.syntax in _JPEG and self.header_colours != "GREY":
            return _jpeg_colours(self.frame(0)) or self.header_colours
        if self.syntax in _JPEG_2000 and self.header_colours != "GREY":
            if _has_component_transform(self.frame(0)):
                return "RGB"
            if self.photometric in ("YBR_ICT", "YBR_RCT"):
                raise SettledError(
                    f"slide '{self.path}': its header says {self.photometric}, its JPEG 2000 frames were made without "
                    f"that transform; set PhotometricInterpretation to RGB with `{_SET_RGB}`, or to YBR_FULL if the "
                    "colours are wrong then"
                )
        return self.header_colours


def _items(file: Any, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Offset and length of the items of encapsulated pixels."""
    at = start
    while at + 8 <= end:
        file.seek(at)
        head = file.read(8)
        length = int.from_bytes(head[4:], "little")
        if head[:4] != _ITEM or at + 8 + length > end:
            return
        yield at + 8, length
        at += 8 + length


def _jpeg_colours(data: bytes) -> Colours | None:
    """What a JPEG stream says of its own colours: by Adobe's marker, its components' names, sampling, JFIF's marker."""
    adobe = data.find(b"Adobe", 0, 4096)
    if adobe > 0 and adobe + 11 < len(data):
        return "RGB" if data[adobe + 11] == 0 else "YBR"
    start = max(data.find(marker, 0, 4096) for marker in (b"\xff\xc0\x00\x11\x08", b"\xff\xc1\x00\x11\x08"))
    if start > 0 and data[start + 10 : start + 19 : 3] == b"RGB":
        return "RGB"
    if jpeg_is_subsampled(data) or data[6:10] == b"JFIF":
        return "YBR"
    return None


def _has_component_transform(data: bytes) -> bool:
    """Whether a JPEG 2000 stream was made of RGB by a transform that its decoder undoes."""
    coding = data.find(b"\xff\x52", 0, 4096)
    return coding > 0 and coding + 8 < len(data) and data[coding + 8] == 1


@dataclass(frozen=True)
class _Level:
    instance: Instance
    colours: Colours
    frames: dict[tuple[int, int], int]
    """Frame at each column and row of tiles."""


def levels_of(path: Path) -> list[Instance]:
    """The instances that show the slide of which ``path`` is one, finest first.

    Raises:
        SlideReadError: a header is damaged; names the file.
    """
    found: dict[tuple[int, int], Instance] = {}
    for file in slide_files(path):
        try:
            instance = Instance(file)
            if instance.is_level:
                found.setdefault(instance.size, instance)
        except Exception as error:  # a damaged header makes pydicom stumble in many ways
            raise SlideReadError(f"slide '{file}': damaged or no DICOM slide ({_told(error)}); copy it again") from (
                error if isinstance(error, HeaderError) else None
            )
    return [found[size] for size in sorted(found, reverse=True)]


def openslide_is_right(levels: list[Instance]) -> bool:
    """Whether OpenSlide, which goes by the headers and knows no focal planes, shows these levels as they are stored.

    Raises:
        SettledError: nobody can tell the colours of a level; says what to do.
    """
    for instance in levels:
        if instance.planes > 1:
            return False
        try:
            colours = instance.colours()
        except SlideReadError:
            raise
        except Exception:  # OpenSlide tells what is damaged
            return True
        if instance.openslide_colours != colours:
            return False
    return True


class DicomReader:
    """DICOM slides by pydicom's headers and imagecodecs' decoders.

    Args:
        path: a file of the slide.
        levels: its instances, as :func:`levels_of` gives them.
        plane: which focal plane; None for the middle one.

    Raises:
        SettledError: there is no such plane.
        SlideReadError: the frames are of a kind not known here, or damaged.
    """

    name = "pydicom"

    def __init__(self, path: Path, levels: list[Instance], plane: int | None = None) -> None:
        self._path = path
        base = levels[0]
        if plane is not None and not 0 <= plane < base.planes:
            raise SettledError(f"slide '{path}': no focal plane {plane}; it has {base.planes}, counted from 0")
        self.remarks: tuple[str, ...] = ()
        if base.planes > 1 and plane is None:
            plane = base.planes // 2
            self.remarks = (
                f"slide '{path}': holds {base.planes} focal planes; number {plane}, the middle one, is read; choose "
                "another with --plane",
            )
        try:
            self._levels = [self._level(instance, plane or 0) for instance in levels]
        except SlideReadError:
            raise
        except Exception as error:  # a damaged header makes pydicom stumble in many ways
            raise SlideReadError(f"slide '{path}': damaged ({_told(error)}); copy it again") from error
        if self._levels[0].colours != base.header_colours:
            stored = _NAMES[self._levels[0].colours]
            self.remarks += (
                f"slide '{path}': the header says {base.photometric}, the frames are {stored}; the frames are believed",
            )
        self.mpp = base.spacing
        self.icc_profile = base.icc_profile
        self.downsamples = [downsample_of(base, instance) for instance in levels]
        pairs = zip(levels, self.downsamples, strict=True)
        self.sizes = [without_padding(base.size, instance.size, factors) for instance, factors in pairs]
        self.properties = {"openslide.vendor": "dicom", "dicom.PhotometricInterpretation": base.photometric}
        self.convert: Callable[[np.ndarray], None] | None = None

    def _level(self, instance: Instance, plane: int) -> _Level:
        if instance.syntax not in (*_NATIVE, *_JPEG, *_JPEG_2000):
            name = _syntax_name(instance.syntax)
            raise SlideReadError(f"slide '{self._path}': frames in {name}, which no reader here decodes")
        if instance.header.get("BitsAllocated") != 8 or instance.header.get("PlanarConfiguration", 0) != 0:
            raise SlideReadError(f"slide '{self._path}': its pixels are not 8-bit colours side by side")
        if instance.syntax in _NATIVE and instance.photometric == "YBR_FULL_422":
            raise SlideReadError(f"slide '{self._path}': uncompressed YBR_FULL_422, which no reader here decodes")
        paths = int(instance.header.get("NumberOfOpticalPaths", 1) or 1)
        if instance.header_colours == "GREY" and paths > 1:
            raise SettledError(f"slide '{self._path}': it has {paths} optical paths in grey, which are no colours")
        return _Level(instance, instance.colours(), _frames_of(instance, plane))

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Pixels of a region that lies inside the level, uint8 ``[height, width, 3]``; white where none are stored."""
        across, down = self._levels[level].instance.tile
        region = np.full((height, width, 3), 255, np.uint8)
        for row in range(y // down, (y + height - 1) // down + 1):
            for column in range(x // across, (x + width - 1) // across + 1):
                frame = self._levels[level].frames.get((column, row))
                if frame is not None:
                    paste(self._decode(level, frame, column, row), region, column * across - x, row * down - y)
        return region

    def _decode(self, level: int, frame: int, column: int, row: int) -> np.ndarray:
        instance = self._levels[level].instance
        try:
            pixels = _decoded(instance, instance.frame(frame), self._levels[level].colours)
        except Exception as error:  # every codec raises its own type
            across, down = instance.tile
            x, y = (int(a * b) for a, b in zip((column * across, row * down), self.downsamples[level], strict=True))
            raise SlideReadError(
                f"slide '{self._path}': the tile at level-0 position ({x}, {y}) cannot be decoded ({one_line(error)}); "
                "the file is damaged, copy it again"
            ) from error
        if self.convert is not None:
            self.convert(pixels)
        return pixels

    def close(self) -> None:
        """Nothing is held open."""


def downsample_of(base: Instance, instance: Instance) -> tuple[float, float]:
    """Pixels of ``base`` per pixel of a level along x and y, by PixelSpacing where the level is padded."""
    if instance is base:
        return 1.0, 1.0
    fine, coarse = base.spacing, instance.spacing
    told = None if fine is None or coarse is None else (coarse[0] / fine[0], coarse[1] / fine[1])
    natural = base.size[0] / instance.size[0], base.size[1] / instance.size[1]
    found = fit_level(base.size, instance.size, instance.tile, told)
    return found or fit_level(base.size, instance.size, instance.tile) or natural


def _frames_of(instance: Instance, plane: int) -> dict[tuple[int, int], int]:
    columns, rows = (-(-side // tile) for side, tile in zip(instance.size, instance.tile, strict=True))
    if instance.header.get("DimensionOrganizationType") == "TILED_FULL" or instance.frames == 1:
        first = plane * columns * rows  # of the first optical path
        if first + columns * rows > instance.frames:
            raise HeaderError(f"{instance.frames} frames are too few for {columns} x {rows} tiles")
        return {(index % columns, index // columns): first + index for index in range(columns * rows)}
    import pydicom

    header: Any = pydicom.dcmread(
        instance.path, stop_before_pixels=True, specific_tags=["PerFrameFunctionalGroupsSequence"]
    )
    places = [groups.PlanePositionSlideSequence[0] for groups in header.PerFrameFunctionalGroupsSequence]
    depths = [float(place.get("ZOffsetInSlideCoordinateSystem", 0) or 0) for place in places]
    wanted = sorted(set(depths))[plane] if instance.planes > 1 else None
    across, down = instance.tile
    return {
        (
            (int(place.ColumnPositionInTotalImagePixelMatrix) - 1) // across,
            (int(place.RowPositionInTotalImagePixelMatrix) - 1) // down,
        ): index
        for index, (place, depth) in reversed(list(enumerate(zip(places, depths, strict=True))))
        if wanted is None or depth == wanted
    }


def _decoded(instance: Instance, data: bytes, colours: Colours) -> np.ndarray:
    """A frame as RGB, uint8 ``[rows, columns, 3]``, the caller's own."""
    import imagecodecs

    width, height = instance.tile
    if instance.syntax in _JPEG:
        space = {"RGB": "RGB", "YBR": "YCBCR", "GREY": "GRAYSCALE"}[colours]
        out = "GRAYSCALE" if colours == "GREY" else "RGB"
        pixels = imagecodecs.jpeg8_decode(data, colorspace=space, outcolorspace=out)
    else:
        if instance.syntax in _JPEG_2000:
            pixels = imagecodecs.jpeg2k_decode(data)
        else:
            pixels = np.frombuffer(data, np.uint8).reshape(height, width, -1)
        if colours == "YBR":
            pixels = cv2.cvtColor(np.ascontiguousarray(pixels[..., [0, 2, 1]]), cv2.COLOR_YCrCb2RGB)
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        pixels = np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    if instance.photometric == "MONOCHROME1":
        pixels = 255 - pixels
    if pixels.shape != (height, width, 3) or pixels.dtype != np.uint8:
        raise ValueError(f"a frame of {list(pixels.shape)} is not RGB of {width} x {height} px")
    return np.array(pixels)

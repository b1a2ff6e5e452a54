"""The libraries that decode slides, behind one small face, and which of them reads which file correctly.

What a file is, its content says; names and suffixes are never asked. Measured with cuCIM 26.6, OpenSlide 4.0.1 and
imagecodecs 2026.3 on files of every codec:

* cuCIM reads uncompressed, LZW and JPEG tiles of RGB exactly. It ends the process when it opens a file in which any
  page has Deflate with a predictor or lacks its table of offsets, refuses files by their suffix, sees only level 0 of
  OME pyramids, and returns damaged tiles white (JPEG) or as noise (LZW), and tiles that were never stored black.
* OpenSlide reads nearly every vendor's format, DICOM included, and blends neighbouring pixels at levels whose
  downsample is not a whole number.
* imagecodecs decodes JPEG to cuCIM's very pixels, Deflate exactly and JPEG 2000 as OpenSlide does, in less time, and
  WebP, which neither can.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from monai_mil.errors import SlideReadError
from monai_mil.slides import colour, pixel_size
from monai_mil.slides.dicom import DicomReader, downsample_of, levels_of, openslide_is_right
from monai_mil.slides.focal_planes import hidden_planes
from monai_mil.slides.pages import fit_level, without_padding
from monai_mil.slides.parts import is_dicom
from monai_mil.slides.tiff import SettledError, TiffPyramid, first_description, one_line

# TIFF compression tags: none, LZW, JPEG.
_BY_CUCIM = {1, 5, 7}
_APERIO_YCBCR = 33003
_PLAIN_VENDORS = (None, "aperio", "generic-tiff")
_MPP_BY_RESOLUTION_TAGS = ("generic-tiff", "hamamatsu")


class Reader(Protocol):
    """What :class:`~monai_mil.slides.Slide` asks of a library; coordinates are pixels of the level.

    Attributes:
        name: the library's.
        sizes: ``(width, height)`` of the levels without padding, finest first.
        downsamples: level-0 pixels per pixel of every level along x and y.
        properties: the vendor's metadata, under OpenSlide's names.
        mpp: micrometres per pixel of level 0 along x and y, if the file says it.
        icc_profile: the ICC profile of the pixels, if there is one.
        remarks: what was chosen or assumed.
        convert: changes pixels in place as they are read; None to leave them.
    """

    name: str
    sizes: list[tuple[int, int]]
    downsamples: list[tuple[float, float]]
    properties: dict[str, str]
    mpp: tuple[float, float] | None
    icc_profile: bytes | None
    remarks: tuple[str, ...]
    convert: Callable[[np.ndarray], None] | None

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Pixels of a region that lies inside the level, uint8 ``[height, width, 3]``."""

    def close(self) -> None:
        """Release the file."""


class TiffReader:
    """Tiled TIFF through tifffile and imagecodecs."""

    name = "tifffile"

    def __init__(self, tiff: TiffPyramid) -> None:
        self.tiff = tiff
        self.properties = tiff.properties
        self.mpp = tiff.mpp()
        self.sizes = [level.inside for level in tiff.levels]
        self.downsamples = [level.downsample for level in tiff.levels]
        self.icc_profile = tiff.icc_profile
        self.remarks = tiff.remarks

    @property
    def convert(self) -> Callable[[np.ndarray], None] | None:
        """See :class:`Reader`."""
        return self.tiff.convert

    @convert.setter
    def convert(self, convert: Callable[[np.ndarray], None] | None) -> None:
        self.tiff.convert = convert

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Pixels of a region that lies inside the level, uint8 ``[height, width, 3]``."""
        return self.tiff.read(level, x, y, width, height)

    def close(self) -> None:
        """Release the file."""
        self.tiff.close()


_cucim_opens = threading.Lock()
"""cuCIM loads its decoders with the first slide; two threads that open one at that moment crash the process."""


class CucimReader(TiffReader):
    """Plain tiled TIFF and SVS through cuCIM.

    Raises:
        SlideReadError: cuCIM cannot open it, or sees other levels; the pyramid is left open.
    """

    name = "cucim"

    def __init__(self, tiff: TiffPyramid) -> None:
        super().__init__(tiff)
        try:
            with _cucim_opens:
                from cucim.clara import CuImage

                self.image = CuImage(str(tiff.path))
        except (RuntimeError, ValueError) as error:
            raise SlideReadError(f"slide '{tiff.path}': cuCIM cannot open it ({one_line(error)})") from error
        resolutions = self.image.resolutions
        if [(int(width), int(height)) for width, height in resolutions["level_dimensions"]] != [
            (level.width, level.height) for level in tiff.levels
        ]:
            self.image.close()
            raise SlideReadError(f"slide '{tiff.path}': cuCIM sees other levels")
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
                f"({one_line(error)}); the file is damaged, copy it again"
            ) from error
        return region

    def close(self) -> None:
        """Release the file."""
        self.image.close()
        super().close()


class OpenSlideReader:
    """Every other format, DICOM included, through OpenSlide.

    Raises:
        SettledError: another series or focal plane is asked for than the one OpenSlide shows.
        SlideReadError: OpenSlide cannot open it.
    """

    name = "openslide"

    def __init__(self, path: Path) -> None:
        import openslide

        try:
            self._slide = openslide.OpenSlide(path)
            profile = self._slide.color_profile
        except openslide.OpenSlideError as error:
            # It quotes the header, where anybody's name may stand.
            reason = "OpenSlide refuses its DICOM header" if path.is_file() and is_dicom(path) else one_line(error)
            raise SlideReadError(f"slide '{path}': {reason}; is it a slide, and complete?") from error
        self._path = path
        self.properties = dict(self._slide.properties)
        self.mpp = pixel_size.from_properties(self.properties)
        if self.properties.get("openslide.vendor") in _MPP_BY_RESOLUTION_TAGS:
            self.mpp = pixel_size.plausible(self.mpp)
        stored = list(self._slide.level_dimensions)
        if self.mpp is None and self.properties.get("openslide.vendor") == "leica":
            self.mpp = pixel_size.from_scn(first_description(path), stored[0])
        self.downsamples = [self._downsample(level, stored) for level in range(len(stored))]
        pairs = zip(stored, self.downsamples, strict=True)
        self.sizes = [without_padding(stored[0], size, downsample) for size, downsample in pairs]
        self.icc_profile = None if profile is None else profile.tobytes()
        self.remarks = hidden_planes(path, self.properties)
        self.convert: Callable[[np.ndarray], None] | None = None

    def _downsample(self, level: int, sizes: list[tuple[int, int]]) -> tuple[float, float]:
        if level == 0:
            return 1.0, 1.0
        width, height = (int(self.properties.get(f"openslide.level[{level}].tile-{s}", 1)) for s in ("width", "height"))
        natural = sizes[0][0] / sizes[level][0], sizes[0][1] / sizes[level][1]
        return fit_level(sizes[0], sizes[level], (width, height)) or natural

    def use_downsamples(self, known: dict[tuple[int, int], tuple[float, float]]) -> None:
        """Take the downsamples of levels of the given stored sizes from elsewhere."""
        stored = list(self._slide.level_dimensions)
        self.downsamples = [known.get(size, own) for size, own in zip(stored, self.downsamples, strict=True)]
        pairs = zip(stored, self.downsamples, strict=True)
        self.sizes = [without_padding(stored[0], size, downsample) for size, downsample in pairs]

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
                f"({one_line(error)}); the file is damaged, copy it again"
            ) from error
        rgb, alpha = np.ascontiguousarray(rgba[..., :3]), rgba[..., 3:]
        if self.convert is not None:
            self.convert(rgb)
        if alpha.min(initial=255) == 255:
            return rgb
        weight = alpha.astype(np.uint32)
        return ((rgb * weight + 255 * (255 - weight) + 127) // 255).astype(np.uint8)

    def close(self) -> None:
        """Release the file."""
        self._slide.close()


def choose_reader(path: Path, *, series: int | None = None, plane: int | None = None, convert: bool = False) -> Reader:
    """Open ``path`` with the first library that reads it correctly.

    Args:
        path: a slide.
        series: which of its scenes; None for the largest.
        plane: which of its focal planes; None for the middle one.
        convert: its pixels are to be changed, which cuCIM's cannot be on their way.

    Raises:
        SlideReadError: missing, empty, truncated, not a slide, in a form that no library here reads, or without such a
            series or plane.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except (FileNotFoundError, ValueError):  # a path with a zero in it
        raise SlideReadError(f"slide '{path}': no such file; check the path") from None
    except OSError as error:
        raise SlideReadError(f"slide '{path}': cannot be read ({error.strerror}); check the file") from error
    if not magic:
        raise SlideReadError(f"slide '{path}': the file is empty; copy it again")
    vendor = _vendor(path)
    is_tiff = magic[:2] in (b"II", b"MM")
    if vendor is None and not is_tiff:
        raise SlideReadError(f"slide '{path}': not a whole-slide image that OpenSlide or cuCIM knows")

    def by_openslide() -> Reader:
        if series or plane:
            raise SettledError(f"slide '{path}': OpenSlide, which reads it, shows one series and one focal plane only")
        reader = OpenSlideReader(path)
        if is_tiff:
            _try_one_pixel(reader)
        return reader

    def by_tiff() -> Reader:
        return _open_tiff(path, series, plane, convert)

    if vendor == "dicom":
        return _open_dicom(path, series, plane)
    if not is_tiff:
        return by_openslide()
    if vendor is None:
        return by_tiff()
    attempts = [by_tiff, by_openslide] if vendor in _PLAIN_VENDORS else [by_openslide, by_tiff]
    return _first_that_opens(path, attempts)


def _open_dicom(path: Path, series: int | None, plane: int | None) -> Reader:
    """By OpenSlide where it shows what is stored."""
    if series:
        raise SettledError(f"slide '{path}': a DICOM slide is one series; name a file of another")
    levels = levels_of(path)
    if not openslide_is_right(levels):
        return DicomReader(path, levels, plane)
    if plane:
        raise SettledError(f"slide '{path}': no focal plane {plane}; it has one")
    reader = OpenSlideReader(path)
    reader.use_downsamples({instance.size: downsample_of(levels[0], instance) for instance in levels})
    return reader


def _first_that_opens(path: Path, attempts: list[Callable[[], Reader]]) -> Reader:
    said: list[str] = []
    for attempt in attempts:
        try:
            return attempt()
        except SlideReadError as error:
            if isinstance(error, SettledError) and not said:
                raise
            said.append(str(error).removeprefix(f"slide '{path}': "))
    raise SlideReadError(f"slide '{path}': {'; another reader: '.join(dict.fromkeys(said))}")


def _try_one_pixel(reader: OpenSlideReader) -> None:
    """OpenSlide opens TIFF of any codec and fails when pixels are wanted."""
    try:
        reader.read(0, 0, 0, 1, 1)
    except SlideReadError:
        reader.close()
        raise


def _open_tiff(path: Path, series: int | None, plane: int | None, convert: bool) -> Reader:
    tiff = TiffPyramid(path, series=series, plane=plane)
    if tiff.compression == _APERIO_YCBCR and tiff.description.startswith("Aperio"):
        tiff.close()
        raise SlideReadError(f"slide '{path}': OpenSlide decodes its JPEG 2000")
    if not convert and _suits_cucim(tiff) and _has_cucim():
        try:
            return CucimReader(tiff)
        except SlideReadError:  # by its suffix, for example; the tiles are the same
            pass
    return TiffReader(tiff)


def _suits_cucim(tiff: TiffPyramid) -> bool:
    return (
        not (tiff.has_deflate or tiff.has_gaps or tiff.has_sub_ifds)
        and tiff.is_first_pages
        and all(level.byte_counts.all() for level in tiff.levels)
        and all(_is_cucim_s(level.page, level.jpeg_colours) for level in tiff.levels)
    )


def _is_cucim_s(page: Any, jpeg_colours: str | None) -> bool:
    """Whether cuCIM decodes a page exactly."""
    by_tag = jpeg_colours is None or (jpeg_colours == "YCBCR") == (page.photometric == colour.YCBCR)
    return page.compression in _BY_CUCIM and colour.is_plain_rgb(page) and by_tag


def _has_cucim() -> bool:
    return importlib.util.find_spec("cucim") is not None


def _vendor(path: Path) -> str | None:
    import openslide

    return openslide.OpenSlide.detect_format(path)


def reader_report() -> list[tuple[str, bool, str, str]]:
    """What can read slides here: ``(reader, available, version, note)`` of each library, for ``monai-mil doctor``."""
    return [
        _report(
            "cucim",
            ("cucim-cu12", "cucim-cu13"),
            "tiled TIFF and SVS; on NVIDIA GPUs decodes there",
            "tifffile and OpenSlide read the same pixels without it; pip install 'monai-mil[cucim12]', or [cucim13] "
            "beside CUDA 13",
        ),
        _report("openslide", ("openslide-python",), "vendor formats (MRXS, NDPI, SCN, BIF, ...) and DICOM"),
        _report("tifffile", ("tifffile",), "OME-TIFF pyramids, Deflate, JPEG 2000 and WebP tiles"),
    ]


@cache
def _report(
    module: str, distributions: tuple[str, ...], reads: str, advice: str | None = None
) -> tuple[str, bool, str, str]:
    try:
        loaded: Any = importlib.import_module(module)
    except (ImportError, OSError) as error:
        advice = advice or f"pip install {distributions[0]}"
        return module, False, "", f"reads {reads}; does not import ({one_line(error)}): {advice}"
    for distribution in distributions:
        try:
            return module, True, version(distribution), f"reads {reads}"
        except PackageNotFoundError:
            continue
    return module, True, getattr(loaded, "__version__", "unknown"), f"reads {reads}"

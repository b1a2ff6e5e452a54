"""One open whole-slide image, whatever library reads it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np

from monai_mil.errors import SlideReadError
from monai_mil.names import is_there
from monai_mil.slides.icc import ToSRGB
from monai_mil.slides.parts import dicom_slide_in
from monai_mil.slides.readers import Reader, choose_reader
from monai_mil.slides.tiff import TiffPyramid, paste

_BAND_PIXELS = 2**25
_SAME_PIXELS = 0.02
"""By how much pixel sizes may differ and still be one: their mean is then within 1 % of both."""


@dataclass(frozen=True)
class Level:
    """One resolution of a slide, without padding; ``downsample`` is level-0 pixels per pixel, the mean of both axes."""

    width: int
    height: int
    downsample: float


class Slide:
    """An open slide; made by :func:`open_slide`.

    Attributes:
        path: the file, or the folder of a DICOM slide.
        slide_id: the slide's name, see :func:`slide_id`.
        reader: the library that reads it: ``"cucim"``, ``"openslide"``, ``"tifffile"`` or
            ``"pydicom"``.
        size: ``(width, height)`` of level 0 in pixels.
        mpp: micrometres per pixel of level 0.
        levels: finest first.
        properties: the vendor's metadata, under OpenSlide's names.
        remarks: what was chosen or assumed; each names the file, the cause and what to do.
        icc_profile: the ICC profile of the file's pixels, None if it has none.
    """

    def __init__(self, path: Path, backend: Reader, mpp: float, remarks: tuple[str, ...] = ()) -> None:
        self.path = path
        self.slide_id = slide_id(path) or path.resolve().name
        self.reader = backend.name
        self.mpp = mpp
        self.size = backend.sizes[0]
        ratios = [(self.size[0] / width, self.size[1] / height) for width, height in backend.sizes]
        self._downsamples = getattr(backend, "downsamples", ratios)
        self.levels = tuple(
            Level(*size, sum(factors) / 2) for size, factors in zip(backend.sizes, self._downsamples, strict=True)
        )
        self.properties = backend.properties
        self.remarks = remarks
        self.icc_profile: bytes | None = getattr(backend, "icc_profile", None)
        self.backend = backend

    @property
    def tiff(self) -> TiffPyramid | None:
        """The stored tiles, where they may be decoded one by one."""
        return getattr(self.backend, "tiff", None)

    def axis_downsamples(self, level: int) -> tuple[float, float]:
        """Level-0 pixels per pixel of ``level`` along x and along y."""
        x, y = self._downsamples[level]
        return x, y

    def read(self, x: float, y: float, size: tuple[int, int], level: int = 0) -> np.ndarray:
        """Read a region.

        Args:
            x: level-0 column of its upper-left corner; the nearest pixel of ``level`` is taken.
            y: level-0 row of its upper-left corner.
            size: ``(w, h)`` in pixels of ``level``.
            level: index into ``levels``.

        Returns:
            uint8 ``[h, w, 3]`` RGB, white outside the slide; the caller's own copy.

        Raises:
            SlideReadError: the region cannot be decoded.
        """
        scale_x, scale_y = self.axis_downsamples(level)
        return self.read_level(math.floor(x / scale_x + 0.5), math.floor(y / scale_y + 0.5), size, level)

    def read_level(self, x: int, y: int, size: tuple[int, int], level: int) -> np.ndarray:
        """As :meth:`read`, with ``x`` and ``y`` in pixels of ``level``."""
        width, height = size
        left, top = max(x, 0), max(y, 0)
        right, bottom = min(x + width, self.levels[level].width), min(y + height, self.levels[level].height)
        if right <= left or bottom <= top:
            return np.full((height, width, 3), 255, np.uint8)
        inside = self.backend.read(level, left, top, right - left, bottom - top)
        if inside.shape == (height, width, 3):
            return inside
        region = np.full((height, width, 3), 255, np.uint8)
        paste(inside, region, left - x, top - y)
        return region

    def coarsest_level_within(self, downsample: float) -> int:
        """The coarsest level that is still at least as fine as ``downsample`` (up to 1 %); level 0 if none is."""
        return max(
            (index for index, level in enumerate(self.levels) if level.downsample <= 1.01 * downsample),
            key=lambda index: self.levels[index].downsample,
            default=0,
        )

    def read_scaled(self, size: tuple[int, int]) -> np.ndarray:
        """The whole slide at ``size`` ``(w, h)``, averaged over areas; memory is bounded whatever the pyramid."""
        import cv2

        index = self.coarsest_level_within(min(self.size[0] / size[0], self.size[1] / size[1]))
        level = self.levels[index]
        # Over whole levels the stored tiles take half the time and memory that cuCIM does.
        read = self.backend.read if self.tiff is None else self.tiff.read
        factor = max(1, min(level.width // size[0], level.height // size[1]))
        rows = max(1, _BAND_PIXELS // (level.width * factor)) * factor
        width = -(-level.width // factor)
        bands = []
        for y in range(0, level.height, rows):
            height = min(rows, level.height - y)
            band = read(index, 0, y, level.width, height)
            if factor > 1:
                below, right = -height % factor, -level.width % factor
                if below or right:
                    band = cv2.copyMakeBorder(band, 0, below, 0, right, borderType=cv2.BORDER_REPLICATE)
                band = cv2.resize(band, (width, band.shape[0] // factor), interpolation=cv2.INTER_AREA)
            bands.append(band)
        whole = bands[0] if len(bands) == 1 else np.concatenate(bands)
        if whole.shape[1::-1] == tuple(size):
            return whole
        return cv2.resize(whole, size, interpolation=cv2.INTER_AREA)

    def thumbnail(self, max_size: int) -> np.ndarray:
        """The whole slide, its longer side at most ``max_size`` pixels: uint8 ``[h, w, 3]``."""
        scale = min(1.0, max_size / max(self.size))
        width, height = (max(1, round(side * scale)) for side in self.size)
        return self.read_scaled((width, height))

    def close(self) -> None:
        """Release the file."""
        self.backend.close()

    def __enter__(self) -> Slide:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        width, height = self.size
        return f"Slide('{self.path}', {width} x {height} px, {self.mpp:g} mpp, read by {self.reader})"


def open_slide(
    path: str | Path,
    *,
    mpp: float | None = None,
    default_mpp: float | None = None,
    series: int | None = None,
    plane: int | None = None,
    icc: Literal["apply"] | None = None,
) -> Slide:
    """Open a whole-slide image with the library that reads it correctly.

    What the file is, its content says, whatever it is called. Of a file that holds several images the largest is the
    slide, and of several focal planes the middle one is read; ``Slide.remarks`` tells so. Pixels are given as they are
    stored unless ``icc`` asks for more.

    Args:
        path: SVS, tiled TIFF, OME-TIFF, DICOM WSI (a folder that holds one, or any instance of the series) or another
            format OpenSlide knows.
        mpp: micrometres per pixel of level 0, whatever the file says; a remark tells when it says something else.
        default_mpp: micrometres per pixel of level 0, where the file does not say.
        series: which of the file's images to read, counted from 0 in the file's order, labels and the like apart.
        plane: which focal plane to read, counted from 0.
        icc: ``"apply"`` turns pixels into sRGB by the file's ICC profile; None leaves them as they are.

    Raises:
        SlideReadError: missing, empty, truncated, not a slide, without such a series or plane, without a pixel size, or
            with pixels that are not square.

    Examples:
        >>> import numpy as np
        >>> from monai_mil.slides import open_slide, write_pyramid
        >>> write_pyramid(folder / "S-1.tif", np.full((512, 768, 3), 255, np.uint8), mpp=0.5)
        >>> slide = open_slide(folder / "S-1.tif")
        >>> slide.slide_id, slide.size, round(slide.mpp, 3)
        ('S-1', (768, 512), 0.5)
        >>> slide.read(0, 0, (64, 32)).shape
        (32, 64, 3)
    """
    path = Path(path)
    for given in (mpp, default_mpp):
        if given is not None and not (given > 0 and math.isfinite(given)):
            raise SlideReadError(
                f"slide '{path}': the given pixel size {given} is not a positive number of micrometres"
            )
    if icc not in (None, "apply"):
        raise SlideReadError(f"slide '{path}': icc {icc!r} is not 'apply'")
    file = dicom_slide_in(path) if is_there(path) and path.is_dir() else path
    backend = choose_reader(file, series=series, plane=plane, convert=icc is not None)
    remarks = list(backend.remarks)
    try:
        if icc is not None and backend.icc_profile is not None:
            backend.convert = ToSRGB(backend.icc_profile, path)
        elif icc is not None:
            remarks.append(f"slide '{path}': has no ICC profile; its colours are left as they are")
        mpp = _pixel_size(path, backend.mpp, mpp, default_mpp, remarks)
    except BaseException:
        backend.close()
        raise
    return Slide(path, backend, mpp, tuple(remarks))


def _pixel_size(
    path: Path, found: tuple[float, float] | None, given: float | None, default: float | None, remarks: list[str]
) -> float:
    """One number for what the file says along x and y (``found``), or what the user says."""
    taken = default if given is None else given
    if found is None and taken is not None:
        remarks.append(f"slide '{path}': the file says no pixel size; {taken:g} µm is taken")
    if given is not None:
        if found is not None and max(abs(side / given - 1) for side in found) > _SAME_PIXELS:
            said = " x ".join(f"{side:g}" for side in dict.fromkeys(found))
            remarks.append(f"slide '{path}': the file says {said} µm a pixel; the given {given:g} is taken")
        return given
    if found is None:
        if default is None:
            raise SlideReadError(f"slide '{path}': no pixel size (mpp) in the file; pass --mpp 0.25 if you know it")
        return default
    x, y = found
    if max(x, y) / min(x, y) > 1 + _SAME_PIXELS:
        across, down = max(x / y, 1.0), max(y / x, 1.0)
        raise SlideReadError(
            f"slide '{path}': its pixels are {x:g} x {y:g} µm, not square; pass --mpp {min(x, y):g} if they are, else "
            f"resample it with `vips resize IN OUT.tif[tile,pyramid,compression=jpeg] {across:g} --vscale {down:g}` "
            f"and pass --mpp {min(x, y):g} for the result"
        )
    return (x + y) / 2


def slide_id(path: str | Path) -> str:
    """The name a slide goes by: its file's name without the suffix (``d.ome.tif`` is ``d``).

    A suffix is a dot and up to eight letters and digits that begin with a letter: the last number of a DICOM UID is
    none. A folder's name stays whole.

    Examples:
        >>> from monai_mil.slides import slide_id
        >>> slide_id("slides/S-0001.ome.tif"), slide_id("1.2.840.99.7")
        ('S-0001', '1.2.840.99.7')
    """
    path = Path(path)
    if path.name and is_there(path) and path.is_dir():
        return path.name
    return re.sub(r"(?<=.)(\.ome)?\.[A-Za-z][A-Za-z0-9]{0,7}$", "", path.name, flags=re.IGNORECASE)

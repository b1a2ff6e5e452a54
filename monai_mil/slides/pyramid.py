"""Writing tiled pyramidal TIFF files that cuCIM, OpenSlide, QuPath and Bio-Formats read."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from monai_mil.files import replacing

_CLASSIC_TIFF_LIMIT = 2**32 - 2**25
_SMALLEST_LEVEL = 1024


def write_pyramid(
    path: str | Path,
    image: np.ndarray | Iterable[np.ndarray],
    *,
    mpp: float,
    size: tuple[int, int] | None = None,
    tile: int = 256,
    compression: Literal["jpeg", "lzw"] = "jpeg",
    quality: int = 80,
    downsamples: Sequence[int] | None = None,
    ome: bool = False,
    binary: bool = False,
    description: str | None = None,
) -> None:
    """Write an RGB image as a tiled pyramidal TIFF; the file appears under its name only when it is whole.

    Reduced levels are means over blocks of pixels, ``ceil(size / downsample)`` wide and high. They follow level 0 as
    pages of their own (cuCIM and OpenSlide see every level) or, with ``ome``, as sub-images of it, which is what the
    OME-TIFF standard asks for (QuPath and Bio-Formats see every level).

    Args:
        path: the file to write.
        image: ``[h, w, 3]`` uint8, or an iterable of bands ``[any, w, 3]`` from top to bottom, for images that do not
            fit into memory (the reduced levels are spooled to a temporary file beside ``path``).
        mpp: micrometres per pixel of level 0.
        size: ``(w, h)`` in pixels; needed with bands.
        tile: side of the stored tiles in pixels, a multiple of 16.
        compression: ``"jpeg"``, or ``"lzw"`` which is lossless.
        quality: of the JPEG tiles, 1 to 100.
        downsamples: downsample of every level, ascending from 1, each a multiple of the one before; default 1, 4, 16,
            ... down to a level of at most 1024 pixels.
        ome: write OME-XML metadata.
        binary: the image is a mask of 0 and 255: reduced levels are so too, 255 where at least half of a block is.
        description: free text for the ImageDescription tag (with ``ome``: the image's description).

    Raises:
        ValueError: the image is not RGB uint8, its bands do not fit ``size``, or ``downsamples`` or ``mpp`` is invalid.
    """
    import tifffile

    path = Path(path)
    if isinstance(image, np.ndarray):
        size = (image.shape[1], image.shape[0]) if image.ndim == 3 else (0, 0)
        image = [image]
    if size is None:
        raise ValueError("an image given as bands needs size=(width, height)")
    if min(size) < 1 or not mpp > 0 or tile % 16:
        raise ValueError(f"cannot write an image of size {size} with mpp {mpp} and tiles of {tile} px")
    factors = _check_downsamples(downsamples or _default_downsamples(size))

    bigtiff = 4 * size[0] * size[1] > _CLASSIC_TIFF_LIMIT
    bands: Iterable[np.ndarray] = image
    with replacing(path) as partial, tifffile.TiffWriter(partial, bigtiff=bigtiff, ome=ome) as tiff:
        for level, factor in enumerate(factors):
            width, height = (math.ceil(side / factor) for side in size)
            step = factors[level + 1] // factor if level + 1 < len(factors) else 1
            reduced = _spool(path.parent, math.ceil(width / step), math.ceil(height / step)) if step > 1 else None
            tiff.write(
                _tiles(bands, (width, height), tile, step, reduced, binary),
                shape=(height, width, 3),
                dtype=np.uint8,
                tile=(tile, tile),
                photometric="rgb",
                compression=compression,
                compressionargs={"level": quality} if compression == "jpeg" else None,
                predictor=compression == "lzw",
                resolution=(1e4 / (mpp * factor),) * 2,
                resolutionunit="CENTIMETER",
                subfiletype=1 if level else 0,
                subifds=len(factors) - 1 if ome and level == 0 else None,
                software="monai-mil",
                **_metadata(level, mpp, ome, description),
            )
            bands = [] if reduced is None else _rows(reduced, tile)


def _default_downsamples(size: tuple[int, int]) -> list[int]:
    factors = [1]
    while max(size) > _SMALLEST_LEVEL * factors[-1]:
        factors.append(4 * factors[-1])
    return factors


def _check_downsamples(factors: Sequence[int]) -> Sequence[int]:
    steps = itertools.pairwise(factors)
    if factors[0] != 1 or any(after <= before or after % before for before, after in steps):
        raise ValueError(f"downsamples {tuple(factors)}: must ascend from 1, each a multiple of the one before")
    return factors


def _metadata(level: int, mpp: float, ome: bool, description: str | None) -> dict[str, Any]:
    if not ome:
        return {"description": description if level == 0 else None, "metadata": None}
    if level:
        return {}
    physical = {"PhysicalSizeX": mpp, "PhysicalSizeY": mpp, "PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
    return {"metadata": {"axes": "YXS", **physical, **({"Description": description} if description else {})}}


def _spool(folder: Path, width: int, height: int) -> np.ndarray:
    """An array ``[height, width, 3]`` on disk, gone with its last reference."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, dtype=np.uint8, mode="w+", shape=(height, width, 3))


def _rows(image: np.ndarray, height: int) -> Iterator[np.ndarray]:
    return (image[y : y + height] for y in range(0, len(image), height))


def _tiles(
    bands: Iterable[np.ndarray],
    size: tuple[int, int],
    tile: int,
    step: int,
    reduced: np.ndarray | None,
    binary: bool,
) -> Iterator[np.ndarray]:
    """Yield the stored tiles of one level row by row, filling ``reduced``, the next level, on the way."""
    import cv2

    width, height = size
    unit = math.lcm(tile, step)
    for y, strip in _strips(bands, size, unit):
        strip = cv2.copyMakeBorder(strip, 0, -len(strip) % unit, 0, -width % unit, borderType=cv2.BORDER_REPLICATE)
        if reduced is not None:
            smaller = cv2.resize(strip, (strip.shape[1] // step, strip.shape[0] // step), interpolation=cv2.INTER_AREA)
            target = reduced[y // step : (y + unit) // step]
            smaller = smaller[: target.shape[0], : target.shape[1]]
            target[:] = np.where(smaller >= 128, np.uint8(255), np.uint8(0)) if binary else smaller
        for row in range(0, min(unit, height - y), tile):
            for x in range(0, width, tile):
                yield strip[row : row + tile, x : x + tile]


def _strips(bands: Iterable[np.ndarray], size: tuple[int, int], strip_height: int) -> Iterator[tuple[int, np.ndarray]]:
    """Cut bands of any height into strips of ``strip_height`` rows (the last may be lower), each with its ``y``."""
    width, height = size
    y = 0
    held: list[np.ndarray] = []
    held_rows = 0
    for band in bands:
        if band.ndim != 3 or band.shape[1:] != (width, 3) or band.dtype != np.uint8:
            raise ValueError(f"expected uint8 [rows, {width}, 3], got {band.dtype} {list(band.shape)}")
        start = 0
        while start < len(band):
            part = band[start : start + strip_height - held_rows]
            start += len(part)
            held.append(part)
            held_rows += len(part)
            if held_rows == strip_height:
                yield y, held[0] if len(held) == 1 else np.concatenate(held)
                y, held, held_rows = y + held_rows, [], 0
    if held:
        yield y, np.concatenate(held)
    if y + held_rows != height:
        raise ValueError(f"the bands hold {y + held_rows} rows, the image {height}")

"""Where a synthetic slide has tumour: its masks on disk, and the share of tumour of any tile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from monai_mil.files import replacing

_TILE = 256
_TUMOUR = 255


def write_masks(
    folder: Path, slide_id: str, tumour: np.ndarray, downsample: int, mpp: float, size: tuple[int, int]
) -> None:
    """Write ``<slide_id>.npz`` for ``tile_truth``, and ``<slide_id>.tif``, a mask as annotators' programs give it.

    Args:
        folder: where the masks are written; it is made.
        slide_id: names them.
        tumour: bool ``[h, w]``.
        downsample: level-0 pixels per pixel of ``tumour``: 16, 64 or 256.
        mpp: micrometres per pixel of level 0.
        size: width and height of level 0; the TIFF has them too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / f"{slide_id}.npz") as name, name.open("wb") as file:
        np.savez_compressed(file, tumour=tumour, downsample=downsample)
    _write_pyramid(folder / f"{slide_id}.tif", tumour, downsample, mpp, size)


def tile_truth(mask: str | os.PathLike[str], coords: np.ndarray, tile_size_level0: float) -> np.ndarray:
    """Share of every tile that is tumour, from a mask ``make_slide_cohort`` wrote.

    Args:
        mask: ``masks/<slide_id>.npz`` with ``tumour`` (bool ``[h, w]``) and ``downsample`` (level-0 pixels per pixel).
        coords: level-0 x and y of the tiles' upper-left corners, ``[n, 2]``.
        tile_size_level0: edge of a tile in level-0 pixels.

    Returns:
        float32 ``[n]``, 0 to 1.
    """
    with np.load(mask) as stored:
        tumour, downsample = stored["tumour"], float(stored["downsample"])
    total = np.pad(tumour.astype(np.int64), ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    height, width = tumour.shape
    left, top = np.rint(coords / downsample).astype(int).T
    right, bottom = np.rint((coords + tile_size_level0) / downsample).astype(int).T
    area = np.maximum((right - left) * (bottom - top), 1)
    left, right = np.clip(left, 0, width), np.clip(right, 0, width)
    top, bottom = np.clip(top, 0, height), np.clip(bottom, 0, height)
    inside = total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left]
    return (inside / area).astype(np.float32)


def _write_pyramid(path: Path, tumour: np.ndarray, downsample: int, mpp: float, size: tuple[int, int]) -> None:
    """Grey pyramid, 255 where tumour is; levels are picked, not averaged, so that they hold no third value."""
    import tifffile

    with replacing(path) as partial, tifffile.TiffWriter(partial) as tiff:
        for factor in (1, 4, 16):
            width, height = (-(-side // factor) for side in size)
            tiff.write(
                _tiles(tumour, downsample // factor),
                shape=(height, width),
                dtype=np.uint8,
                tile=(_TILE, _TILE),
                photometric="minisblack",
                compression="lzw",
                resolution=(1e4 / (mpp * factor),) * 2,
                resolutionunit="CENTIMETER",
                subfiletype=1 if factor > 1 else 0,
                software="monai-mil",
                metadata=None,
            )


def _tiles(tumour: np.ndarray, scale: int) -> Iterator[np.ndarray]:
    """The stored tiles of a level, row by row; ``scale`` pixels of it per pixel of ``tumour``."""
    step = _TILE // scale
    padded = np.pad(tumour, [(0, -side % step) for side in tumour.shape]).astype(np.uint8) * _TUMOUR
    for y in range(0, len(padded), step):
        for x in range(0, padded.shape[1], step):
            yield padded[y : y + step, x : x + step].repeat(scale, axis=0).repeat(scale, axis=1)

"""The foreground of a heatmap as a binary pyramidal image on the slide's own frame."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from monai_mil.heatmaps.heatmap import Heatmap, canvas_geometry
from monai_mil.heatmaps.raster import Overlap
from monai_mil.heatmaps.stitching import TokenCanvas, stitch
from monai_mil.heatmaps.tiff import band_rows, default_downsample

FOREGROUND = 255


def export_mask(heatmap: Heatmap, path: str | Path, *, downsample: int | None = None, overlap: Overlap = "max") -> Path:
    """Write where the smooth map lies above the heatmap's threshold: 255 there, 0 elsewhere, the same in all levels.

    The file is a tiled, lossless (LZW) pyramid of the slide from its upper-left corner with the slide's mpp times
    ``downsample``, as :func:`monai_mil.heatmaps.export_tiff` writes it. Its description holds the threshold as JSON,
    null where the slide has no foreground.

    Args:
        heatmap: the scores, with a threshold.
        path: the file, ``.tif``.
        downsample: level-0 pixels per pixel of the file; default the largest power of two that leaves 2 pixels a token.
        overlap: how scores of overlapping tiles are combined.

    Raises:
        ValueError: the heatmap has no threshold.
    """
    from monai_mil.slides import write_pyramid

    frame, threshold = heatmap.frame, heatmap.threshold
    if threshold is None:
        raise ValueError(f"heatmap of '{frame.slide_id}': no mask without a threshold; give HeatmapSaver one")
    downsample = downsample or default_downsample(heatmap, smooth=True)
    (height, width), _ = canvas_geometry(frame.level0_size, downsample=downsample)
    meaning = {
        "mask": heatmap.name,
        "slide": frame.slide_id,
        "threshold": threshold if math.isfinite(threshold) else None,
        "foreground": FOREGROUND,
        "overlap": overlap,
        "level0_size": frame.level0_size,
        "downsample": downsample,
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_pyramid(
        path,
        _bands(stitch(heatmap, overlap), threshold, (height, width), downsample),
        mpp=frame.mpp * downsample,
        size=(width, height),
        compression="lzw",
        binary=True,
        description=json.dumps(meaning),
    )
    return path


def _bands(canvas: TokenCanvas, threshold: float, shape: tuple[int, int], downsample: int) -> Iterator[np.ndarray]:
    """The mask in bands of rows, RGB uint8 ``[rows, width, 3]``."""
    for row, rows in band_rows(shape[0]):
        window = (0, row * downsample, shape[1] * downsample, (row + rows) * downsample)
        inside = canvas.upsample(window, (rows, shape[1])) > threshold
        yield np.repeat((inside * np.uint8(FOREGROUND))[..., None], 3, axis=2)

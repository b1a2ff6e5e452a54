"""The heatmap as a pyramidal image on the slide's own frame."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from monai_mil.heatmaps.colours import Colouring, ColourMap, colour_table
from monai_mil.heatmaps.heatmap import Heatmap, canvas_geometry
from monai_mil.heatmaps.raster import Overlap, paint

_BAND = 1024


def export_tiff(
    heatmap: Heatmap,
    path: str | Path,
    *,
    downsample: int | None = None,
    percentile: bool = True,
    limits: tuple[float, float] | None = None,
    colour_map: ColourMap = "viridis",
    overlap: Overlap = "max",
    ome: bool = False,
) -> Path:
    """Write the coloured scores as a tiled, lossless (LZW) pyramid that covers the slide from its upper-left corner.

    Pixel (0, 0) of the file is pixel (0, 0) of the slide, its mpp is the slide's times ``downsample``, and white is
    where no tile lies, so viewers that align images by their pixel size lay it over the slide as it is. cuCIM and
    OpenSlide read it exactly. The description holds what the colours mean, as JSON. Memory is bounded by bands of
    1024 rows.

    Args:
        heatmap: the scores.
        path: the file, ``.tif`` or, with ``ome``, ``.ome.tif``.
        downsample: level-0 pixels per pixel of the file; default the largest power of two that leaves 8 pixels a
            tile and one a cell of a tile's block.
        percentile: colour by percentile within the slide in place of the score itself.
        limits: scores at the ends of the colour map when ``percentile`` is off; default their minimum and maximum.
        colour_map: name of the colour map.
        overlap: how scores of overlapping tiles are combined.
        ome: write OME-XML with the levels as sub-images (QuPath, Bio-Formats).
    """
    from monai_mil.slides import write_pyramid

    frame = heatmap.frame
    if downsample is None:
        cells_a_tile = max((8, *heatmap.scores.shape[1:]))
        downsample = 2 ** math.floor(math.log2(max(frame.tile_size_level0 / cells_a_tile, 1)))
    if percentile:
        limits = (0.0, 100.0)
    elif limits is None:
        limits = (float(heatmap.scores.min()), float(heatmap.scores.max()))
    meaning = {
        "heatmap": heatmap.name,
        "slide": frame.slide_id,
        "values": "percentile within the slide" if percentile else "score",
        "limits": limits,
        "colour_map": colour_map,
        "overlap": overlap,
        "level0_size": frame.level0_size,
        "downsample": downsample,
    }
    (height, width), _ = canvas_geometry(frame.level0_size, downsample=downsample)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_pyramid(
        path,
        _bands(heatmap, (height, width), downsample, percentile, Colouring(colour_table(colour_map), limits), overlap),
        mpp=frame.mpp * downsample,
        size=(width, height),
        compression="lzw",
        ome=ome,
        description=json.dumps(meaning),
    )
    return path


def _bands(
    heatmap: Heatmap,
    shape: tuple[int, int],
    downsample: int,
    percentile: bool,
    colouring: Colouring,
    overlap: Overlap,
) -> Iterator[np.ndarray]:
    """The coloured canvas in bands of rows, RGB uint8; only the tiles that touch a band are drawn for it."""
    scores = heatmap.percentiles() if percentile else heatmap.scores
    size = heatmap.frame.tile_size_level0
    top = heatmap.coords[:, 1]
    for row in range(0, shape[0], _BAND):
        rows = min(_BAND, shape[0] - row)
        touches = (top + size + downsample > row * downsample) & (top - downsample < (row + rows) * downsample)
        if not touches.any():
            yield np.full((rows, shape[1], 3), colouring.outside, np.uint8)
        else:
            yield paint(
                heatmap.coords[touches] - (0, row * downsample),
                scores[touches],
                size,
                shape=(rows, shape[1]),
                scale=(downsample, downsample),
                overlap=overlap,
                colours=colouring,
            )

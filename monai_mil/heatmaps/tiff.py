"""The heatmap as a pyramidal image on the slide's own frame."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from monai_mil.heatmaps.colours import Colouring, ColourMap
from monai_mil.heatmaps.heatmap import Heatmap, canvas_geometry
from monai_mil.heatmaps.layer import Style, drawing_style
from monai_mil.heatmaps.raster import Overlap, paint
from monai_mil.heatmaps.stitching import stitch

_BAND = 1024


def export_tiff(
    heatmap: Heatmap,
    path: str | Path,
    *,
    downsample: int | None = None,
    percentile: bool = False,
    smooth: bool | None = None,
    limits: tuple[float, float] | None = None,
    colour_map: ColourMap = "viridis",
    overlap: Overlap = "max",
    ome: bool = False,
    muted: bool | None = None,
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
            tile and one a cell of a tile's block, or two where the map is smooth.
        percentile: colour by percentile within the slide in place of the scale that scores have by themselves.
        smooth: draw the map that is interpolated over the tiles' borders; default where tiles have blocks of tokens.
        limits: scores at the ends of the colour map when ``percentile`` is off; default as :func:`export_png` has them.
        colour_map: name of the colour map.
        overlap: how scores of overlapping tiles are combined.
        ome: write OME-XML with the levels as sub-images (QuPath, Bio-Formats).
        muted: pale colours; default where the slide is below its operating point.
    """
    from monai_mil.slides import write_pyramid

    frame = heatmap.frame
    style = drawing_style(heatmap, percentile, smooth, limits, overlap, muted)
    downsample = downsample or default_downsample(heatmap, smooth=style.smooth)
    meaning = {
        "heatmap": heatmap.name,
        "slide": frame.slide_id,
        "values": style.scale.basis,
        "smooth": style.smooth,
        "limits": style.scale.ends,
        "muted": style.muted,
        "colour_map": colour_map,
        "overlap": overlap,
        "level0_size": frame.level0_size,
        "downsample": downsample,
    }
    (height, width), _ = canvas_geometry(frame.level0_size, downsample=downsample)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = replace(heatmap, scores=style.scale.values(heatmap.scores))
    bands = _smooth_bands if style.smooth else _cell_bands
    write_pyramid(
        path,
        bands(drawn, style, (height, width), downsample, Colouring(style.table(colour_map), style.limits)),
        mpp=frame.mpp * downsample,
        size=(width, height),
        compression="lzw",
        ome=ome,
        description=json.dumps(meaning),
    )
    return path


def default_downsample(heatmap: Heatmap, *, smooth: bool) -> int:
    """The largest power of two that leaves 8 pixels a tile and one a cell of its block, two of a smooth map."""
    cells = max(heatmap.scores.shape[1:], default=1)
    pixels_a_tile = max(8, 2 * cells if smooth else cells)
    return int(2 ** math.floor(math.log2(max(heatmap.frame.tile_size_level0 / pixels_a_tile, 1))))


def band_rows(height: int) -> Iterator[tuple[int, int]]:
    """First row and number of rows of every band of an image."""
    return ((row, min(_BAND, height - row)) for row in range(0, height, _BAND))


def _smooth_bands(
    heatmap: Heatmap, style: Style, shape: tuple[int, int], downsample: int, colouring: Colouring
) -> Iterator[np.ndarray]:
    """The coloured smooth map in bands of rows, RGB uint8."""
    canvas = stitch(heatmap, style.overlap)
    for row, rows in band_rows(shape[0]):
        window = (0, row * downsample, shape[1] * downsample, (row + rows) * downsample)
        yield colouring(canvas.upsample(window, (rows, shape[1])))


def _cell_bands(
    heatmap: Heatmap, style: Style, shape: tuple[int, int], downsample: int, colouring: Colouring
) -> Iterator[np.ndarray]:
    """The coloured cells in bands of rows, RGB uint8; only the tiles that touch a band are drawn for it."""
    size = heatmap.frame.tile_size_level0
    top = heatmap.coords[:, 1]
    for row, rows in band_rows(shape[0]):
        touches = (top + size + downsample > row * downsample) & (top - downsample < (row + rows) * downsample)
        if not touches.any():
            yield np.full((rows, shape[1], 3), colouring.outside, np.uint8)
        else:
            yield paint(
                heatmap.coords[touches] - (0, row * downsample),
                heatmap.scores[touches],
                size,
                shape=(rows, shape[1]),
                scale=(downsample, downsample),
                overlap=style.overlap,
                colours=colouring,
            )

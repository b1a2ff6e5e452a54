"""What pictures show of a slide's heatmap: the smooth map or its cells, and where the foreground is."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from monai_mil.heatmaps.colours import colour_limits
from monai_mil.heatmaps.figure import score_text
from monai_mil.heatmaps.heatmap import Heatmap
from monai_mil.heatmaps.raster import Overlap, paint
from monai_mil.heatmaps.stitching import TokenCanvas, stitch

OUTLINE_COLOUR = (214, 39, 40)


@dataclass(frozen=True)
class Style:
    """How scores are drawn; make one with :func:`drawing_style`.

    Attributes:
        percentile: percentiles within the slide in place of scores.
        smooth: interpolated between tokens, in place of every one as a cell.
        limits: values at the ends of the colours.
        overlap: how scores of overlapping tiles are combined.
    """

    percentile: bool
    smooth: bool
    limits: tuple[float, float]
    overlap: Overlap = "max"


def drawing_style(
    heatmap: Heatmap,
    percentile: bool | None = None,
    smooth: bool | None = None,
    limits: tuple[float, float] | None = None,
    overlap: Overlap = "max",
) -> Style:
    """The style asked for, and what suits the scores where nothing was.

    Blocks of tokens are drawn smooth and by their score, from 0 to 1 where all lie between; one score a tile is drawn
    as it is and by percentile, because attention has no scale of its own. Scores that have one say so by the attribute
    ``limits`` of their heatmap, the ends of the scale.
    """
    tokens, own = heatmap.scores.ndim == 3, heatmap.attributes.get("limits")
    percentile = not tokens and own is None if percentile is None else percentile
    if percentile:
        limits = (0.0, 100.0)
    elif limits is None:
        limits = colour_limits(heatmap.scores) if own is None else (float(own[0]), float(own[1]))
    return Style(percentile, tokens if smooth is None else smooth, limits, overlap)


def draw_layer(heatmap: Heatmap, style: Style, shape: tuple[int, int]) -> np.ndarray:
    """The scores or percentiles over the whole slide, float32 ``shape`` (height, width), NaN where there are none."""
    shown = replace(heatmap, scores=heatmap.percentiles()) if style.percentile else heatmap
    width, height = heatmap.frame.level0_size
    if style.smooth:
        return stitch(shown, style.overlap).upsample((0, 0, width, height), shape)
    scale = width / shape[1], height / shape[0]
    size = heatmap.frame.tile_size_level0
    return paint(heatmap.coords, shown.scores, size, shape=shape, scale=scale, overlap=style.overlap)


def draw_outline(heatmap: Heatmap, style: Style, shape: tuple[int, int], width: int) -> np.ndarray:
    """True on a line of ``width`` pixels around the foreground of the whole slide, bool ``shape`` (height, width).

    No foreground is too small to be outlined: a pixel with the centre of a token above the threshold belongs to it.
    """
    import cv2

    if heatmap.threshold is None or heatmap.threshold == math.inf:
        return np.zeros(shape, bool)
    if style.smooth:
        inside = _smooth_foreground(stitch(heatmap, style.overlap), heatmap.threshold, heatmap.frame.level0_size, shape)
    else:
        inside = (draw_layer(heatmap, replace(style, percentile=False), shape) > heatmap.threshold).astype(np.uint8)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
    return (cv2.dilate(inside, kernel) > inside).astype(bool)


def _smooth_foreground(
    canvas: TokenCanvas, threshold: float, level0_size: tuple[int, int], shape: tuple[int, int]
) -> np.ndarray:
    inside = (canvas.upsample((0, 0, *level0_size), shape) > threshold).astype(np.uint8)
    row, column = np.nonzero(canvas.values > threshold)
    x = canvas.origin[0] + (column + 0.5) * canvas.step[0]
    y = canvas.origin[1] + (row + 0.5) * canvas.step[1]
    pixel_row = np.clip(y * shape[0] / level0_size[1], 0, shape[0] - 1).astype(int)
    pixel_column = np.clip(x * shape[1] / level0_size[0], 0, shape[1] - 1).astype(int)
    inside[pixel_row, pixel_column] = 1
    return inside


def foreground_text(heatmap: Heatmap) -> str:
    """What the outline means, in words; empty where the heatmap has no threshold."""
    if heatmap.threshold is None:
        return ""
    if heatmap.threshold == math.inf:
        return "below the operating point: no foreground"
    return f"outlined above {score_text(heatmap.threshold)}"

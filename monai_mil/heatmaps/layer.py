"""What pictures show of a slide's heatmap: the smooth map or its cells, and where the foreground is."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from monai_mil.heatmaps.colours import ColourMap, colour_table
from monai_mil.heatmaps.decision import is_muted, mute, muted_text
from monai_mil.heatmaps.figure import score_text
from monai_mil.heatmaps.heatmap import Heatmap
from monai_mil.heatmaps.raster import Overlap, paint
from monai_mil.heatmaps.scale import Scale, colour_scale
from monai_mil.heatmaps.stitching import TokenCanvas, stitch

OUTLINE_COLOUR = (214, 39, 40)


@dataclass(frozen=True)
class Style:
    """How scores are drawn; make one with :func:`drawing_style`.

    Attributes:
        scale: what is coloured.
        smooth: interpolated between tokens, in place of every one as a cell.
        overlap: how scores of overlapping tiles are combined.
        muted: pale, because the slide is below its operating point.
    """

    scale: Scale
    smooth: bool
    overlap: Overlap = "max"
    muted: bool = False

    @property
    def limits(self) -> tuple[float, float]:
        """Values at the ends of the colours."""
        return self.scale.limits

    def table(self, name: ColourMap) -> np.ndarray:
        """The colours, uint8 ``[256, 3]``."""
        return mute(colour_table(name)) if self.muted else colour_table(name)


def drawing_style(
    heatmap: Heatmap,
    percentile: bool = False,
    smooth: bool | None = None,
    limits: tuple[float, float] | None = None,
    overlap: Overlap = "max",
    muted: bool | None = None,
) -> Style:
    """The style asked for, and what suits the scores where nothing was.

    Colours mean the same on every slide as far as scores allow it, see
    :func:`monai_mil.heatmaps.scale.colour_scale`. Blocks of tokens are drawn smooth, one score a tile as it is. A slide
    that is below its operating point is muted.
    """
    return Style(
        colour_scale(heatmap.scores, heatmap.attributes, percentile=percentile, limits=limits),
        heatmap.scores.ndim == 3 if smooth is None else smooth,
        overlap,
        is_muted(heatmap) if muted is None else muted,
    )


def draw_layer(heatmap: Heatmap, style: Style, shape: tuple[int, int]) -> np.ndarray:
    """What is coloured over the whole slide, float32 ``shape`` (height, width), NaN where there is nothing."""
    shown = replace(heatmap, scores=style.scale.values(heatmap.scores))
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
        plain = replace(style, scale=Scale("score", style.limits))
        inside = (draw_layer(heatmap, plain, shape) > heatmap.threshold).astype(np.uint8)
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
    """What the outline means and why colours are muted, in words; empty where there is nothing to say."""
    outlined = heatmap.threshold is not None and heatmap.threshold != math.inf
    outline = f"outlined above {score_text(heatmap.threshold)}" if outlined and heatmap.threshold is not None else ""
    return ", ".join(filter(None, [outline, muted_text(heatmap)]))

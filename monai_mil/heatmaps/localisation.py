"""A slide's tile scores against its ground truth: tiles that should be above the threshold, and lesions hit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from monai_mil.heatmaps.heatmap import Heatmap
from monai_mil.heatmaps.stitching import stitch
from monai_mil.metrics import froc_slide, non_maximum_suppression, scaled_to_unit, tile_figures
from monai_mil.slides import Truth

SPACING = 7.776
"""Micrometres per pixel at which truths are read: level 5 of a slide scanned at 0.243, as CAMELYON16 does."""


def localise(
    heatmap: Heatmap,
    truth: Truth | None,
    threshold: float = 0.5,
    rescale: bool = True,
    min_overlap: float | None = None,
    box: int = 1,
    spacing: float = SPACING,
) -> Mapping[str, Any]:
    """The figures of one slide, as keywords of :class:`monai_mil.metrics.LocalisedSlide`.

    Args:
        heatmap: its scores; of a block of tokens a tile the highest counts.
        truth: None for a normal slide.
        threshold: tiles above are predicted, and detections.
        rescale: bring the slide's scores to 0 ... 1 first, as attention needs.
        min_overlap: a tile is tumour if at least this share of it is; None asks its centre.
        box: side in tiles of what a detection takes away around it.
        spacing: micrometres per pixel at which the truth is read.
    """
    frame = heatmap.frame
    scores = scaled_to_unit(heatmap.tile_scores) if rescale else heatmap.tile_scores
    pixel = spacing / frame.mpp
    width, height = frame.level0_size
    shape = int(np.ceil(height / pixel)), int(np.ceil(width / pixel))
    window = (0.0, 0.0, shape[1] * pixel, shape[0] * pixel)
    mask = np.zeros(shape, bool) if truth is None else truth.window(*window, shape)
    canvas = stitch(replace(heatmap, scores=scores.astype(np.float32)))
    found, places = non_maximum_suppression(canvas.values, threshold, box)
    centres = np.array(canvas.origin[::-1]) + (places + 0.5) * canvas.step[::-1]
    lesions, share = _tiles_of_lesions(mask, heatmap.coords / pixel, frame.tile_size_level0 / pixel)
    middle = np.floor((heatmap.coords + frame.tile_size_level0 / 2) / pixel).astype(int)
    middle = np.clip(middle, 0, (shape[1] - 1, shape[0] - 1))
    tumour = mask[middle[:, 1], middle[:, 0]] if min_overlap is None else (share >= min_overlap) & (share > 0)
    hits = froc_slide(found, np.floor(centres / pixel), mask, spacing)
    return {**tile_figures(scores, tumour, lesions, threshold), "froc": hits}


def _tiles_of_lesions(mask: np.ndarray, corners: np.ndarray, side: float) -> tuple[list[np.ndarray], np.ndarray]:
    """Indices of the tiles that touch each component of the mask, and the share of every tile that is in it.

    Args:
        mask: bool ``[rows, columns]``; pixels that touch at a corner are one component.
        corners: x and y of the tiles in pixels of the mask, ``[n, 2]``.
        side: of a tile, in the same pixels.
    """
    from scipy import ndimage

    labels, count = ndimage.label(mask, np.ones((3, 3)))
    tiles: list[list[int]] = [[] for _ in range(count)]
    share = np.zeros(len(corners))
    # Of a tile are the pixels whose centre it holds.
    first = np.maximum(np.ceil(corners - 0.5), 0).astype(int)
    last = np.maximum(np.ceil(corners + side - 0.5), 0).astype(int)
    total = np.pad(mask.astype(np.int64), ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    (left, top), (right, bottom) = (np.minimum(place, mask.shape[::-1]).T for place in (first, last))
    inside = total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left]
    for index in np.flatnonzero(inside):
        part = labels[top[index] : bottom[index], left[index] : right[index]]
        share[index] = inside[index] / part.size
        for lesion in np.unique(part[part > 0]).tolist():
            tiles[lesion - 1].append(int(index))
    return [np.array(each, dtype=np.int64) for each in tiles], share

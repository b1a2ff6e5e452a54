"""What of a slide's heatmap an annotator is shown: regions of two degrees, which never count as labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from monai_mil.heatmaps import Heatmap, Region, drawing_style, find_regions, stitch

HEAT_CLASSES = ("MIL medium", "MIL high")
"""Classes of the annotations that a model draws."""
_PERCENTILES = (90.0, 97.0)
_STEPS = (150, 230)


@dataclass(frozen=True, eq=False)
class HeatRegion:
    """One region of a heatmap as an annotation.

    Attributes:
        name: one of :data:`HEAT_CLASSES`.
        colour: RGB, pale on a slide below its operating point.
        region: where it lies, in level-0 pixels.
    """

    name: str
    colour: tuple[int, int, int]
    region: Region


def heat_regions(
    heatmap: Heatmap,
    *,
    window: tuple[float, float, float, float] | None = None,
    min_area: float = 0.0,
    holes: bool = True,
) -> list[HeatRegion]:
    """Regions of medium and of high scores; the high ones lie within the medium.

    Where the heatmap has a threshold medium is what lies above it, and high what lies above the middle between it and
    the highest score; an infinite one, as of a slide below its operating point, gives no region. Without a threshold
    they begin at the 90th and the 97th percentile of the slide: where the network looked most, on every slide. Of maps
    of tokens single ones that differ from all around them are left out.

    Args:
        heatmap: the scores.
        window: x0, y0, x1, y1 in level-0 pixels that the annotator asked for; None for the whole slide.
        min_area: leave out regions of less, in square level-0 pixels.
        holes: False cuts regions that have holes, for formats that know none.
    """
    threshold = heatmap.threshold
    if threshold == math.inf:
        return []
    if threshold is None:
        degrees, percentile = _PERCENTILES, True
    else:
        lowest = float(np.nextafter(np.float32(threshold), np.float32(np.inf)))
        degrees, percentile = (lowest, max(lowest, (threshold + float(heatmap.scores.max())) / 2)), False
    table = drawing_style(heatmap).table("inferno")
    drawn = heatmap if heatmap.scores.ndim == 1 else _without_specks(heatmap)
    return [
        HeatRegion(name, tuple(table[step].tolist()), region)
        for name, degree, step in zip(HEAT_CLASSES, degrees, _STEPS, strict=True)
        for region in find_regions(drawn, degree, percentile=percentile, window=window, holes=holes)
        if region.area >= min_area
    ]


def _without_specks(heatmap: Heatmap) -> Heatmap:
    """The map with every token as the median of the nine around it: nobody corrects an outline round a single token."""
    from scipy.ndimage import median_filter

    canvas = stitch(heatmap)
    plain = median_filter(np.nan_to_num(canvas.values, nan=float(heatmap.scores.min())), size=3)
    places = []
    for axis, count in ((1, heatmap.scores.shape[1]), (0, heatmap.scores.shape[2])):
        middle = heatmap.coords[:, axis, None] + (np.arange(count) + 0.5) * canvas.step[axis]
        place = np.floor((middle - canvas.origin[axis]) / canvas.step[axis]).astype(int)
        places.append(np.clip(place, 0, plain.shape[1 - axis] - 1))
    rows, columns = places
    return replace(heatmap, scores=plain[rows[:, :, None], columns[:, None, :]])


def count_by_name(regions: Sequence[HeatRegion]) -> dict[str, int]:
    """How many regions of every class there are."""
    return {name: sum(each.name == name for each in regions) for name in HEAT_CLASSES}

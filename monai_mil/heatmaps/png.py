"""The figure of one slide: scores over its thumbnail, with everything needed to read it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from monai_mil.files import replacing
from monai_mil.heatmaps.colours import ColourMap, colour_index
from monai_mil.heatmaps.figure import Figure, caption
from monai_mil.heatmaps.heatmap import Heatmap, canvas_geometry
from monai_mil.heatmaps.layer import OUTLINE_COLOUR, draw_layer, draw_outline, drawing_style, foreground_text
from monai_mil.heatmaps.raster import Overlap

if TYPE_CHECKING:
    from monai_mil.slides import Slide

_TISSUE_GREY = 205


def export_png(
    heatmap: Heatmap,
    path: str | Path,
    slide: Slide | None = None,
    *,
    canvas_max: int = 1600,
    percentile: bool = False,
    smooth: bool | None = None,
    limits: tuple[float, float] | None = None,
    colour_map: ColourMap = "viridis",
    opacity: float = 0.6,
    overlap: Overlap = "max",
    title: str | None = None,
    muted: bool | None = None,
) -> Path:
    """Draw the heatmap over the slide's thumbnail, with title, colour bar and scale bar.

    Scored tissue is drawn in grey below the colours, so that a colour means a value whatever the stain; everything
    else of the slide keeps its own colours. What the colours mean stands beside the colour bar: attention is drawn as
    multiples of an even share, other scores as they are. A slide below its operating point is drawn in pale colours,
    and the title says so. Foreground, where the heatmap has a threshold, is outlined in red. The title's second line
    gives the attributes ``prediction``, ``probability`` and ``label`` of the heatmap and its threshold, where it has
    them. Memory depends on ``canvas_max`` and the number of tokens only.

    Args:
        heatmap: the scores.
        path: the PNG file.
        slide: the open slide; by default the frame's ``slide_path`` is opened, and where there is none the scores are
            drawn on white.
        canvas_max: longest side of the slide's picture in pixels.
        percentile: colour by percentile within the slide; every slide has its full range of colours then, whatever it
            holds.
        smooth: draw the map that is interpolated over the tiles' borders; default where tiles have blocks of tokens.
        limits: scores at the ends of the colour bar when ``percentile`` is off; default the scale that scores have by
            themselves: multiples of an even share of attention, 0 and 1 where all lie between, else their minimum and
            maximum.
        colour_map: name of the colour map.
        opacity: of the colours over the tissue, 0 to 1.
        overlap: how scores of overlapping tiles are combined.
        title: first line of the title; default the slide's id.
        muted: pale colours; default where the slide is below its operating point.
    """
    style = drawing_style(heatmap, percentile, smooth, limits, overlap, muted)
    shape, scale = canvas_geometry(heatmap.frame.level0_size, canvas_max=canvas_max)
    table = style.table(colour_map)
    picture = blend(thumbnail(heatmap, slide, shape), draw_layer(heatmap, style, shape), style.limits, table, opacity)
    picture[draw_outline(heatmap, style, shape, width=max(1, round(canvas_max / 500)))] = OUTLINE_COLOUR
    figure = Figure.around(picture)
    second = "  ·  ".join(filter(None, [caption(heatmap.attributes), foreground_text(heatmap)]))
    figure.write_title(title or heatmap.frame.slide_id, second)
    figure.write_scale_bar(heatmap.frame.mpp * scale[0])
    shown = (opacity * table + (1 - opacity) * _TISSUE_GREY).astype(np.uint8)
    meaning = heatmap.attributes.get("meaning", style.scale.meaning)
    figure.write_colour_bar(shown, style.scale.ticks(heatmap.scores), f"{heatmap.name}, {meaning}")
    figure.write_note(heatmap.attributes.get("note"))
    path = Path(path)
    with replacing(path) as temporary:
        figure.image.save(temporary, format="PNG", compress_level=4)
    return path


def thumbnail(heatmap: Heatmap, slide: Slide | None, shape: tuple[int, int]) -> np.ndarray:
    """The whole slide as RGB uint8 of ``shape`` (height, width); white where no slide is at hand."""
    import cv2

    if slide is None:
        source = heatmap.frame.slide_path
        if source is None or not Path(source).exists():
            return np.full((*shape, 3), 255, np.uint8)
        from monai_mil.heatmaps.slide_source import open_scored_slide

        with open_scored_slide(heatmap.frame, source) as opened:
            return thumbnail(heatmap, opened, shape)
    image = slide.thumbnail(max(shape))
    return image if image.shape[:2] == shape else cv2.resize(image, shape[::-1], interpolation=cv2.INTER_AREA)


def blend(
    image: np.ndarray, values: np.ndarray, limits: tuple[float, float], table: np.ndarray, opacity: float
) -> np.ndarray:
    """Colour ``image`` (RGB uint8) by ``values`` of the same height and width where they are not NaN."""
    import cv2

    scored = ~np.isnan(values)
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    coloured = cv2.addWeighted(grey, 1 - opacity, table[colour_index(values, limits)], opacity, 0)
    return np.where(scored[..., None], coloured, image)

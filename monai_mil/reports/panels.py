"""Pictures of the report as data URIs: a slide's heat layer and tiles, a scan's curve and slices."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from monai_mil.errors import MonaiMILError
from monai_mil.heatmaps import (
    OUTLINE_COLOUR,
    Colouring,
    Heatmap,
    ScanHeatmap,
    canvas_geometry,
    colour_text,
    contour_text,
    display_window,
    draw_curve,
    draw_layer,
    draw_montage,
    draw_outline,
    drawing_style,
    foreground_text,
    muted_text,
    open_scored_slide,
    scale_bar,
    score_text,
    thumbnail,
    window_text,
)

if TYPE_CHECKING:
    from monai_mil.slides import Slide

_THUMBNAIL = 720
_TILE = 144
_SLICE = 264


@dataclass(frozen=True)
class Tile:
    """One of the most attended tiles: its picture, score, percentile and level-0 position."""

    image: str
    score: str
    percentile: str
    position: str


@dataclass(frozen=True)
class Panel:
    """Everything the report shows of one slide's heatmap.

    Attributes:
        thumbnail: the slide, JPEG.
        heat: the scores in colour, transparent where there is no tile, PNG of the same frame.
        outline: a line around the foreground, transparent elsewhere, PNG; empty where there is none.
        smooth: the scores are interpolated between tokens.
        name: what the scores are.
        colouring: what the colours and the outline mean.
        meaning: what the ends of the colours mean.
        bar: the colours from low to high, PNG.
        low: the score of the lowest colour as text.
        high: the score of the highest colour as text.
        scale_percent: length of the scale bar in percent of the picture's width.
        scale_text: what the bar stands for.
        tile_um: side of a tile in micrometres, as text.
        tiles: the tiles of the highest scores, highest first.
        note: what could not be shown and why; empty if nothing.
        size: width and height of the pictures in pixels.
    """

    thumbnail: str
    heat: str
    outline: str
    smooth: bool
    name: str
    colouring: str
    meaning: str
    bar: str
    low: str
    high: str
    scale_percent: float
    scale_text: str
    tile_um: str
    tiles: tuple[Tile, ...] = field(default=())
    note: str = ""
    size: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class ScanPanel:
    """Everything the report shows of one scan's heatmap.

    Attributes:
        curve: the scores of the slices over their position, PNG.
        montage: the slices of the highest scores, JPEG; empty where the scan could not be read.
        name: what the scores are.
        window: of the montage, ``center/width`` in HU.
        contour: what the colours and the contour on the slices mean; empty where there are none.
        muted: why they are pale; empty where they are not.
        note: what could not be shown and why; empty if nothing.
    """

    curve: str
    montage: str
    name: str
    window: str
    contour: str
    muted: str
    note: str = ""


def make_panel(heatmap: Heatmap, slides: Mapping[str, str | Path] | None, count: int) -> Panel:
    """Draw one slide.

    Args:
        heatmap: its scores.
        slides: where the slides are, by id; the path the heatmap remembers is used for those not in it.
        count: number of tiles to show.
    """
    source = (slides or {}).get(heatmap.frame.slide_id, heatmap.frame.slide_path)
    if source is None or not Path(source).exists():
        reason = f"The slide file {Path(source).name} was not found" if source else "The slide's file is not known"
        return _draw(heatmap, None, 0, f"{reason}: scores only.")
    try:
        with open_scored_slide(heatmap.frame, source) as slide:
            return _draw(heatmap, slide, count, "")
    except MonaiMILError as error:
        return _draw(heatmap, None, 0, f"The slide could not be read ({error}): scores only.")


def make_scan_panel(heatmap: ScanHeatmap, scans: Mapping[str, str | Path] | None, count: int) -> ScanPanel:
    """Draw one scan.

    Args:
        heatmap: its scores; its attribute ``window`` (``center/width``, HU) is the montage's.
        scans: where the scans are, by id; the path the heatmap remembers is used for those not in it.
        count: number of slices to show.
    """
    buffer = io.BytesIO()
    draw_curve(heatmap, dpi=110).savefig(buffer, format="png")
    curve = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    window = display_window(str(heatmap.attributes.get("window", "40/400")))
    source = (scans or {}).get(heatmap.frame.scan_id)
    try:
        sheet, _ = draw_montage(heatmap, source, window=window, slices=count, cell=_SLICE)
    except MonaiMILError as error:
        note = f"The slices could not be shown ({error}): scores only."
        return ScanPanel(curve, "", heatmap.name, window_text(window), "", muted_text(heatmap), note)
    muted = muted_text(heatmap)
    texts = [contour_text(heatmap) or muted, colour_text(heatmap)] if heatmap.scores.ndim == 3 else []
    contour = ", ".join(filter(None, texts))
    return ScanPanel(curve, _jpeg(sheet), heatmap.name, window_text(window), contour, muted)


def _draw(heatmap: Heatmap, slide: Slide | None, count: int, note: str) -> Panel:
    shape, scale = canvas_geometry(heatmap.frame.level0_size, canvas_max=_THUMBNAIL)
    style = drawing_style(heatmap)
    table = style.table("viridis")
    opaque = np.pad(table, ((0, 0), (0, 1)), constant_values=255)
    heat = Colouring(opaque, style.limits, outside=(0, 0, 0, 0))(draw_layer(heatmap, style, shape))
    line = draw_outline(heatmap, style, shape, width=2)
    low, high = style.scale.end_texts(heatmap.scores)
    picture = thumbnail(heatmap, slide, shape) if slide else np.full((*shape, 3), 255, np.uint8)
    length, text = scale_bar(heatmap.frame.mpp * scale[0], 0.3 * shape[1])
    return Panel(
        thumbnail=_jpeg(picture),
        heat=_png(heat),
        outline=_png(line[..., None] * np.array((*OUTLINE_COLOUR, 255), np.uint8)) if line.any() else "",
        smooth=style.smooth,
        name=heatmap.name,
        colouring=", ".join(filter(None, [f"coloured by {style.scale.basis}", foreground_text(heatmap)])),
        meaning=heatmap.attributes.get("meaning", style.scale.explanation),
        bar=_png(table[None]),
        low=low,
        high=high,
        scale_percent=round(100 * length / shape[1], 2),
        scale_text=text,
        tile_um=f"{heatmap.frame.tile_size_level0 * heatmap.frame.mpp:.0f}",
        tiles=tuple(_tiles(heatmap, slide, count)) if slide else (),
        note=note,
        size=(shape[1], shape[0]),
    )


def _tiles(heatmap: Heatmap, slide: Slide, count: int) -> list[Tile]:
    scores = heatmap.tile_scores
    percentiles = heatmap.percentiles().reshape(len(heatmap), -1).max(axis=1)
    tiles = []
    for index in np.argsort(-scores, kind="stable")[:count].tolist():
        x, y = heatmap.coords[index].tolist()
        tiles.append(
            Tile(
                _jpeg(_read_tile(slide, x, y, heatmap.frame.tile_size_level0)),
                score_text(float(scores[index])),
                f"{percentiles[index]:.1f}",
                f"{x}, {y}",
            )
        )
    return tiles


def _read_tile(slide: Slide, x: int, y: int, size: float) -> np.ndarray:
    """One tile from the coarsest level that still has all its pixels."""
    import cv2

    level = max(i for i, level in enumerate(slide.levels) if i == 0 or size / level.downsample >= _TILE)
    side = max(1, round(size / slide.levels[level].downsample))
    tile = slide.read(x, y, (side, side), level)
    return cv2.resize(tile, (_TILE, _TILE), interpolation=cv2.INTER_AREA if side >= _TILE else cv2.INTER_CUBIC)


def _jpeg(image: np.ndarray) -> str:
    return _data_uri(image, "JPEG", quality=82)


def _png(image: np.ndarray) -> str:
    return _data_uri(image, "PNG", optimize=True)


def _data_uri(image: np.ndarray, form: str, **options: object) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"

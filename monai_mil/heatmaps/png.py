"""The figure of one slide: scores over its thumbnail, with everything needed to read it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from monai_mil.files import replacing
from monai_mil.heatmaps.colours import ColourMap, colour_index, colour_table
from monai_mil.heatmaps.heatmap import Heatmap, canvas_geometry
from monai_mil.heatmaps.raster import Overlap

if TYPE_CHECKING:
    from monai_mil.slides import Slide

_INK, _SOFT, _PAPER, _RULE = (24, 28, 33), (96, 104, 112), (255, 255, 255), (208, 213, 219)
_TISSUE_GREY = 205
_TICKS = 5


def export_png(
    heatmap: Heatmap,
    path: str | Path,
    slide: Slide | None = None,
    *,
    canvas_max: int = 1600,
    percentile: bool = True,
    limits: tuple[float, float] | None = None,
    colour_map: ColourMap = "viridis",
    opacity: float = 0.6,
    overlap: Overlap = "max",
    title: str | None = None,
) -> Path:
    """Draw the heatmap over the slide's thumbnail, with title, colour bar and scale bar.

    Scored tissue is drawn in grey below the colours, so that a colour means a value whatever the stain; everything
    else of the slide keeps its own colours. The title's second line gives the attributes ``prediction``,
    ``probability`` and ``label`` of the heatmap, where it has them. Memory depends on ``canvas_max`` only.

    Args:
        heatmap: the scores.
        path: the PNG file.
        slide: the open slide; by default the frame's ``slide_path`` is opened, and where there is none the scores are
            drawn on white.
        canvas_max: longest side of the slide's picture in pixels.
        percentile: colour by percentile within the slide in place of the score itself.
        limits: scores at the ends of the colour bar when ``percentile`` is off; default their minimum and maximum.
        colour_map: name of the colour map.
        opacity: of the colours over the tissue, 0 to 1.
        overlap: how scores of overlapping tiles are combined.
        title: first line of the title; default the slide's id.
    """
    if percentile:
        limits = (0.0, 100.0)
    elif limits is None:
        limits = (float(heatmap.scores.min()), float(heatmap.scores.max()))
    (rows, columns), scale = canvas_geometry(heatmap.frame.level0_size, canvas_max=canvas_max)
    values = heatmap.raster(canvas_max=canvas_max, percentile=percentile, overlap=overlap)
    table = colour_table(colour_map)
    picture = blend(thumbnail(heatmap, slide, (rows, columns)), values, limits, table, opacity)
    figure = _Figure.around(picture)
    figure.write_title(title or heatmap.frame.slide_id, caption(heatmap))
    figure.write_scale_bar(heatmap.frame.mpp * scale[0])
    shown = (opacity * table + (1 - opacity) * _TISSUE_GREY).astype(np.uint8)
    labels = _percentile_labels(heatmap) if percentile else [(number(v), "") for v in np.linspace(*limits, _TICKS)]
    figure.write_colour_bar(shown, labels, f"{heatmap.name}{', percentile within the slide' if percentile else ''}")
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
        from monai_mil.slides import open_slide

        with open_slide(source, mpp=heatmap.frame.mpp) as opened:
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


def caption(heatmap: Heatmap) -> str:
    """What the network said of the slide, as far as the heatmap's attributes tell."""
    attributes = heatmap.attributes
    parts = []
    if "prediction" in attributes:
        probability = f" ({float(attributes['probability']):.2f})" if "probability" in attributes else ""
        parts.append(f"predicted {attributes['prediction']}{probability}")
    if attributes.get("label") not in (None, ""):
        parts.append(f"label {attributes['label']}")
    return "  ·  ".join(parts)


def scale_bar(mpp: float, longest: float) -> tuple[float, str]:
    """Length in pixels and text of the longest bar of 1, 2 or 5 times a power of ten that is at most ``longest`` px."""
    micrometres = mpp * longest
    power = 10 ** math.floor(math.log10(micrometres))
    length = max(step * power for step in (1, 2, 5) if step * power <= micrometres * (1 + 1e-9))
    return length / mpp, f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"


def _percentile_labels(heatmap: Heatmap) -> list[tuple[str, str]]:
    """Percentiles and, for each, the score that has it."""
    percents = np.linspace(0, 100, _TICKS)
    scores = np.percentile(heatmap.scores, percents)
    return [(f"{percent:g} %", number(score)) for percent, score in zip(percents, scores, strict=True)]


def number(value: float) -> str:
    """A score as a reader takes it in: two digits that matter."""
    if 100 <= abs(value) < 1e4:
        return f"{value:.0f}"
    return f"{value:.2g}" if value == 0 or 1e-3 <= abs(value) < 100 else f"{value:.1e}".replace("e-0", "e-")


def _font(size: float, bold: bool = False) -> ImageFont.FreeTypeFont:
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), round(size))


@dataclass
class _Figure:
    """A picture framed by white; every measure is a multiple of ``unit``, the height of ordinary text."""

    image: Image.Image
    unit: float
    box: tuple[int, int, int, int]

    @classmethod
    def around(cls, picture: np.ndarray) -> _Figure:
        height, width = picture.shape[:2]
        unit = max(11.0, max(width, height) / 60)
        left, top, right, bottom = (round(unit * n) for n in (1.5, 5, 12, 4))
        size = (max(left + width + right, round(unit * 34)), max(top + height + bottom, round(unit * 24)))
        figure = cls(Image.new("RGB", size, _PAPER), unit, (left, top, left + width, top + height))
        figure.image.paste(Image.fromarray(picture), (left, top))
        figure._draw.rectangle((left - 1, top - 1, left + width, top + height), outline=_RULE)
        return figure

    @property
    def _draw(self) -> ImageDraw.ImageDraw:
        return ImageDraw.Draw(self.image)

    def write_title(self, title: str, second: str) -> None:
        room = self.image.width - 2 * self.box[0]
        y = 1.1 * self.unit if second else 1.9 * self.unit
        title, font = self._fitting(title, 1.5, room, bold=True)
        self._draw.text((self.box[0], y), title, font=font, fill=_INK)
        second, font = self._fitting(second, 1.05, room)
        self._draw.text((self.box[0], y + 2.0 * self.unit), second, font=font, fill=_SOFT)

    def write_scale_bar(self, mpp: float) -> None:
        length, text = scale_bar(mpp, min(0.3 * (self.box[2] - self.box[0]), 16 * self.unit))
        x, y = self.box[0], self.box[3] + 1.2 * self.unit
        self._draw.rectangle((x, y, x + length, y + 0.3 * self.unit), fill=_INK)
        self._draw.text((x, y + 0.7 * self.unit), text, font=_font(1.05 * self.unit), fill=_INK)

    def write_colour_bar(self, table: np.ndarray, labels: list[tuple[str, str]], name: str) -> None:
        left = self.box[2] + round(1.5 * self.unit)
        height = min(self.box[3] - self.box[1], round(32 * self.unit))
        height = max(height, round(14 * self.unit))
        top, width = self.box[1], round(1.3 * self.unit)
        ramp = table[np.linspace(255, 0, height).round().astype(int)]
        self.image.paste(Image.fromarray(np.repeat(ramp[:, None], width, axis=1)), (left, top))
        self._draw.rectangle((left - 1, top - 1, left + width, top + height), outline=_RULE)
        plain, small = _font(self.unit), _font(0.85 * self.unit)
        x = left + width + 0.9 * self.unit
        for index, (label, detail) in enumerate(labels):
            y = top + height * (1 - index / (len(labels) - 1))
            self._draw.line((left + width, y, left + width + 0.45 * self.unit, y), fill=_SOFT, width=2)
            self._draw.text((x, y), label, font=plain, fill=_INK, anchor="lm")
            self._draw.text((x, y + 1.15 * self.unit), detail, font=small, fill=_SOFT, anchor="lm")
        text, font = self._fitting(name, 1.0, height)
        turned = Image.new("RGB", (round(font.getlength(text)) + 2, round(1.6 * self.unit)), _PAPER)
        ImageDraw.Draw(turned).text((0, 0), text, font=font, fill=_SOFT)
        x += max(plain.getlength(label) for label, _ in labels) + self.unit
        self.image.paste(turned.rotate(90, expand=True), (round(x), top + (height - turned.width) // 2))

    def _fitting(self, text: str, size: float, room: float, bold: bool = False) -> tuple[str, ImageFont.FreeTypeFont]:
        """``text``, shortened where it is wider than ``room`` pixels, and its font."""
        font = _font(size * self.unit, bold)
        while len(text) > 1 and font.getlength(text) > room:
            text = text[:-2].rstrip() + "…"
        return text, font

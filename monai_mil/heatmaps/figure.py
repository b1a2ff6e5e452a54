"""What all figures share: fonts, colours, title, scale bar and colour bar around a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, SOFT, PAPER, RULE = (24, 28, 33), (96, 104, 112), (255, 255, 255), (208, 213, 219)
WARNING = (160, 60, 0)
TICKS = 5


def caption(attributes: Mapping[str, Any]) -> str:
    """What the network said of the slide or scan, as far as a heatmap's attributes tell."""
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


def score_text(value: float) -> str:
    """A score as a reader takes it in: two digits that matter."""
    if 100 <= abs(value) < 1e4:
        return f"{value:.0f}"
    return f"{value:.2g}" if value == 0 or 1e-3 <= abs(value) < 100 else f"{value:.1e}".replace("e-0", "e-")


def millimetres(place: float, spread: float | None = None) -> str:
    """A position, or a mean and standard deviation, as a reader takes it in."""
    return f"{place:.1f}{'' if spread is None else f' ± {spread:.1f}'} mm".replace("-", "\N{MINUS SIGN}")


def text_font(size: float, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along, of ``size`` pixels."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), round(size))


@dataclass
class Figure:
    """A picture framed by white; every measure is a multiple of ``unit``, the height of ordinary text."""

    image: Image.Image
    unit: float
    box: tuple[int, int, int, int]

    @classmethod
    def around(cls, picture: np.ndarray, *, colour_bar: bool = True) -> Figure:
        """Frame ``picture`` (RGB uint8), with room for a colour bar at its right side or without."""
        height, width = picture.shape[:2]
        unit = max(11.0, max(width, height) / 60)
        left, top, right, bottom = (round(unit * n) for n in (1.5, 5, 12 if colour_bar else 1.5, 4))
        size = (max(left + width + right, round(unit * 34)), max(top + height + bottom, round(unit * 24)))
        figure = cls(Image.new("RGB", size, PAPER), unit, (left, top, left + width, top + height))
        figure.image.paste(Image.fromarray(picture), (left, top))
        figure._draw.rectangle((left - 1, top - 1, left + width, top + height), outline=RULE)
        return figure

    @property
    def _draw(self) -> ImageDraw.ImageDraw:
        return ImageDraw.Draw(self.image)

    def write_title(self, title: str, second: str) -> None:
        """Write two lines above the picture, shortened where they are too long."""
        room = self.image.width - 2 * self.box[0]
        y = 1.1 * self.unit if second else 1.9 * self.unit
        title, font = self._fitting(title, 1.5, room, bold=True)
        self._draw.text((self.box[0], y), title, font=font, fill=INK)
        second, font = self._fitting(second, 1.05, room)
        self._draw.text((self.box[0], y + 2.0 * self.unit), second, font=font, fill=SOFT)

    def write_scale_bar(self, mpp: float, longest: float = math.inf) -> None:
        """Draw a round length of at most ``longest`` pixels below the picture, a pixel ``mpp`` micrometres wide."""
        length, text = scale_bar(mpp, min(0.3 * (self.box[2] - self.box[0]), 16 * self.unit, longest))
        x, y = self.box[0], self.box[3] + 1.2 * self.unit
        self._draw.rectangle((x, y, x + length, y + 0.3 * self.unit), fill=INK)
        self._draw.text((x, y + 0.7 * self.unit), text, font=text_font(1.05 * self.unit), fill=INK)

    def write_note(self, note: str | None) -> None:
        """Write a line across the foot, which grows for it; nothing where there is no note."""
        if not note:
            return
        before, foot = self.image, round(2.2 * self.unit)
        self.image = Image.new("RGB", (before.width, before.height + foot), PAPER)
        self.image.paste(before, (0, 0))
        text, font = self._fitting(note, 1.05, before.width - 2 * self.box[0], bold=True)
        self._draw.text((self.box[0], before.height), text, font=font, fill=WARNING)

    def write_colour_bar(self, table: np.ndarray, labels: list[tuple[str, str]], name: str) -> None:
        """Draw the colours at the picture's right side, with a label and a detail at each of equal steps."""
        left = self.box[2] + round(1.5 * self.unit)
        height = min(self.box[3] - self.box[1], round(32 * self.unit))
        height = max(height, round(14 * self.unit))
        top, width = self.box[1], round(1.3 * self.unit)
        ramp = table[np.linspace(255, 0, height).round().astype(int)]
        self.image.paste(Image.fromarray(np.repeat(ramp[:, None], width, axis=1)), (left, top))
        self._draw.rectangle((left - 1, top - 1, left + width, top + height), outline=RULE)
        plain, small = text_font(self.unit), text_font(0.85 * self.unit)
        x = left + width + 0.9 * self.unit
        for index, (label, detail) in enumerate(labels):
            y = top + height * (1 - index / (len(labels) - 1))
            self._draw.line((left + width, y, left + width + 0.45 * self.unit, y), fill=SOFT, width=2)
            self._draw.text((x, y), label, font=plain, fill=INK, anchor="lm")
            self._draw.text((x, y + 1.15 * self.unit), detail, font=small, fill=SOFT, anchor="lm")
        text, font = self._fitting(name, 1.0, height)
        turned = Image.new("RGB", (round(font.getlength(text)) + 2, round(1.6 * self.unit)), PAPER)
        ImageDraw.Draw(turned).text((0, 0), text, font=font, fill=SOFT)
        x += max(plain.getlength(label) for label, _ in labels) + self.unit
        self.image.paste(turned.rotate(90, expand=True), (round(x), top + (height - turned.width) // 2))

    def _fitting(self, text: str, size: float, room: float, bold: bool = False) -> tuple[str, ImageFont.FreeTypeFont]:
        """``text``, shortened where it is wider than ``room`` pixels, and its font."""
        font = text_font(size * self.unit, bold)
        while len(text) > 1 and font.getlength(text) > room:
            text = text[:-2].rstrip() + "…"
        return text, font

"""How much light a slide takes away at every pixel, beside its own glass, and what is neither glass nor tissue.

Everything is a whole number, computed by OpenCV on the CPU, so that it is the same wherever the mask is made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

NO_GLASS = (240, 240, 240)
"""The glass of a slide that shows none, a crop that is all tissue."""
SHADE = 13
"""So much light, of 255, may be missing in all colours alike: shading of the scanner, dust out of focus."""
_WINDOW = 5
_QUIET_GLASS = 1.6
_LEAST_GLASS, _LEAST_VARYING = 0.002, 0.1
_SAMPLE = 100_000
_DARKEST_GLASS, _BRIGHT_GLASS = 160, 200
_NEUTRAL_GLASS, _MOST_SATURATED_GLASS = 16, 51
_VERY_QUIET_GLASS = 0.6
_STRONG, _TINTED = 40, 6
_PADDING_TINT = 6
_BLACK = 128
_GLASS_VARIES = 4
_PEN_SIGMA = 6
_PEN_QUIET = 0.6
_PEN_PIXELS = 10


@dataclass(frozen=True, eq=False)
class Absorption:
    """What takes light away from a slide, each array ``[h, w]``.

    Attributes:
        glass: RGB of the glass.
        absorbed: the light that is missing beside glass in the colour that is weakened most, less what is missing in
            all colours up to ``SHADE``; uint8, 255 is all light. 0 on padding and pen.
        tint: how much more is missing in the colour that is weakened most than in the one that is weakened least,
            uint8.
        texture: mean difference of the grey values around a pixel from the median of their neighbours, in units of
            ``1 / _WINDOW ** 2``, uint16.
        foreign: True on padding (black, white or grey) and on pen.
        never: True where no tissue can be though it lies around: on pen and on what the scanner left black.
    """

    glass: tuple[int, int, int]
    absorbed: np.ndarray
    tint: np.ndarray
    texture: np.ndarray
    foreign: np.ndarray
    never: np.ndarray

    @cached_property
    def smoothed(self) -> np.ndarray:
        """``absorbed``, averaged over 3 x 3 pixels."""
        import cv2

        return cv2.blur(self.absorbed, (3, 3))

    def histogram(self) -> np.ndarray:
        """Counts of the values of ``smoothed``, neither padding nor pen among them, float32 ``[256]``."""
        import cv2

        mask = (~self.foreign).view(np.uint8) if self.foreign.any() else None
        return cv2.calcHist([self.smoothed], [0], mask, [256], [0, 256]).ravel()

    def stands_out(self, threshold: float) -> np.ndarray:
        """Where more light than ``threshold`` is absorbed, bool ``[h, w]``.

        Left out are the rims of much darker things, which are glass for the most part, and weak shades: grey and
        without more texture than glass has.
        """
        import cv2

        above = cv2.max(self.absorbed, self.smoothed) > math.floor(threshold)  # numpy would convert all to float64
        darkest = cv2.dilate(self.absorbed, np.ones((5, 5), np.uint8))
        return above & (self.absorbed >= darkest // 7 * 2) & ~self._is_shade(threshold) & ~self.foreign

    def _is_shade(self, threshold: float) -> np.ndarray:
        """Grey, weak, and no more texture than on glass, bool ``[h, w]``."""
        import cv2

        on_glass = _sample(self.texture)[(_sample(self.absorbed) <= threshold) & ~_sample(self.foreign)]
        usual = float(np.median(on_glass)) if on_glass.size else 0.0
        smooth = self.texture < round(1.5 * usual + 0.5 * _WINDOW**2)
        return smooth & (self.smoothed < _STRONG) & (cv2.blur(self.tint, (3, 3)) < _TINTED)


def measure_absorption(image: np.ndarray, backend: Any, *, pen: bool = True) -> Absorption:
    """Measure what takes light away.

    Args:
        image: the slide at a low resolution, uint8 RGB ``[h, w, 3]``.
        backend: has ``median`` and ``saturation``, of ``segment_tissue``.
        pen: whether pen is foreign.
    """
    import cv2

    channels = cv2.split(image)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    median = backend.to_numpy(backend.median(grey, 3))
    texture = cv2.boxFilter(cv2.absdiff(grey, median, dst=median), cv2.CV_16U, (_WINDOW, _WINDOW), normalize=False)
    padding = _padding(grey, channels)
    glass = _glass(image, texture, padding, backend)
    if padding.any():  # lossy coding makes glass constant, too
        near = (
            cv2.inRange(each, white - _GLASS_VARIES, white + _GLASS_VARIES)
            for each, white in zip(channels, glass, strict=True)
        )
        padding &= _least(tuple(near)) == 0
    missing = [_missing_light(channel, white) for channel, white in zip(channels, glass, strict=True)]
    most, least = _most(missing), _least(missing)
    ink = _pen(grey, missing, most, least) if pen else np.zeros_like(padding)
    foreign = padding | ink
    tint = cv2.subtract(most, least)
    absorbed = cv2.subtract(most, cv2.threshold(least, SHADE, 0, cv2.THRESH_TRUNC, dst=least)[1], dst=most)
    absorbed *= (~foreign).view(np.uint8)
    return Absorption(glass, absorbed, tint, texture, foreign, ink | (padding & (grey < _BLACK)))


def _most(channels: Any) -> np.ndarray:
    import cv2

    most = cv2.max(channels[0], channels[1])
    return cv2.max(most, channels[2], dst=most)


def _least(channels: Any) -> np.ndarray:
    import cv2

    least = cv2.min(channels[0], channels[1])
    return cv2.min(least, channels[2], dst=least)


def _missing_light(channel: np.ndarray, white: int) -> np.ndarray:
    """The share of the light of the glass that is missing, 255 for all: uint8 ``[h, w]``."""
    return _scaled(channel, -255 / white, 255)


def _scaled(values: np.ndarray, factor: float, offset: float = 0) -> np.ndarray:
    """``values * factor + offset``, rounded and kept within uint8."""
    import cv2

    return cv2.addWeighted(values, factor, values, 0, offset)


def _padding(grey: np.ndarray, channels: Any) -> np.ndarray:
    """Where white, grey or black does not vary at all, which no camera sees: bool ``[h, w]``."""
    import cv2

    square = np.ones((3, 3), np.uint8)
    most = _most(channels)
    tint = cv2.subtract(most, _least(channels), dst=most)
    return (cv2.morphologyEx(grey, cv2.MORPH_GRADIENT, square) == 0) & (tint <= _PADDING_TINT)


def _glass(image: np.ndarray, texture: np.ndarray, padding: np.ndarray, backend: Any) -> tuple[int, int, int]:
    """RGB of the brightest colour that much of the bright, pale and smooth part of the slide has."""
    import cv2

    # Quiet spots are everywhere in tissue, quiet areas are not.
    around = cv2.dilate(texture, np.ones((7, 7), np.uint8))
    pixels = _sample(image)
    red, green, blue = cv2.split(pixels)
    darkest, brightest = _least((red, green, blue)), _most((red, green, blue))
    varies, saturation = _sample(around), backend.to_numpy(backend.saturation(pixels))
    is_neutral = (saturation <= _NEUTRAL_GLASS) & (varies <= _QUIET_GLASS * _WINDOW**2)
    # Old glass is yellow, not violet as pale tissue is.
    is_quiet = varies <= _VERY_QUIET_GLASS * _WINDOW**2
    is_old = (saturation <= _MOST_SATURATED_GLASS) & (green > darkest) & (brightest >= _BRIGHT_GLASS)
    is_coloured = is_old & is_quiet
    candidate = (brightest >= _DARKEST_GLASS) & (is_neutral | is_coloured)
    # Lossy coding makes most of some glass as constant as padding; padding in pure white is never glass.
    varying, any_but_white = candidate & ~_sample(padding), candidate & (darkest < 254)
    for trusted in (varying, any_but_white):
        if trusted.sum() >= max(4, _LEAST_GLASS * trusted.size, _LEAST_VARYING * any_but_white.sum()):
            counts = np.convolve(np.bincount(darkest[trusted], minlength=256), np.ones(11, np.int64), "same")
            mode = int(np.flatnonzero(4 * counts >= counts.max())[-1]) - 3
            near = trusted & (np.abs(darkest.astype(np.int16) - mode) <= 8)
            if near.any():
                return int(np.median(red[near])), int(np.median(green[near])), int(np.median(blue[near]))
    return NO_GLASS


def _sample(values: np.ndarray) -> np.ndarray:
    """Every so many-th row and column, so that some ``_SAMPLE`` pixels are left."""
    step = max(1, round((values.shape[0] * values.shape[1] / _SAMPLE) ** 0.5))
    return np.ascontiguousarray(values[::step, ::step])


def _pen(grey: np.ndarray, missing: list[np.ndarray], most: np.ndarray, least: np.ndarray) -> np.ndarray:
    """Where ink is, or a scanner's black: dense, smooth, and of a hue that stained tissue does not have.

    Ink, unlike tissue, is smooth at some 8 micrometres a pixel. Its mixture with glass at the edge of a stroke has the
    same ratio of the missing colours as the stroke, so that a stroke is left out with its edges.
    """
    import cv2

    foreign = np.zeros(grey.shape, bool)
    sampled = [np.ascontiguousarray(each[::3, ::3]) for each in (*missing, most, least)]
    if not any((hue & dense).any() for hue, dense in _ink_hues(sampled[:3], *sampled[3:])):
        return foreign  # nothing is three pixels wide and high
    ridge = cv2.erode(grey, np.ones((3, 3), np.uint8))  # as dense at the edges of a stroke as in its middle
    for hue, dense in _ink_hues(missing, most, least):
        strokes = _smooth_pieces(ridge, (hue & dense).view(np.uint8))
        if strokes.any():
            around = cv2.dilate(strokes.view(np.uint8), np.ones((5, 5), np.uint8)).view(bool)
            foreign |= around & hue & (most >= 20)
    return foreign


def _ink_hues(
    missing: list[np.ndarray], most: np.ndarray, least: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Where the hue is one of ink's and where enough light is missing, bool each: black, blue, green, red.

    Stains of tissue take most from green (haematoxylin, eosin) or, brown, from blue; only ink takes from red as much as
    from the others, from green least of all, or from green and blue alike and hardly from red.
    """
    import cv2

    red, green, blue = missing
    tint, dense = cv2.subtract(most, least), most >= 128
    yield tint <= most // 6, least >= 160  # dense keratin has more tint
    is_violet = (blue <= red // 2) & (red >= _scaled(green, 0.75))
    yield ((cv2.subtract(green, red) <= 8) & (tint >= 38)) | is_violet, dense
    yield green <= _scaled(cv2.min(red, blue), 0.85), dense
    yield (red <= green // 2) & (blue >= _scaled(green, 0.84)), most >= 165


def _smooth_pieces(grey: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The connected pieces of ``mask`` (uint8, 0 or 1) within which ``grey`` hardly varies, bool."""
    import cv2

    if not mask.any():
        return mask > 0
    inside = mask.astype(np.float64)
    values = grey * inside
    count, total, squares = (
        cv2.boxFilter(each, -1, (_WINDOW, _WINDOW), normalize=False) for each in (inside, values, values * grey)
    )
    smooth = (squares * count - total**2 <= (_PEN_SIGMA * count) ** 2) & (mask > 0)
    _, pieces = cv2.connectedComponents(mask, connectivity=8, ltype=cv2.CV_32S)
    area = np.bincount(pieces.ravel())
    is_smooth = (np.bincount(pieces[smooth], minlength=len(area)) >= _PEN_QUIET * area) & (area >= _PEN_PIXELS)
    is_smooth[0] = False
    return is_smooth.take(pieces.view(np.ndarray))

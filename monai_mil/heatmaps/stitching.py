"""The tokens of a slide's tiles on one canvas, and that canvas at any resolution: no seams between tiles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from monai_mil.heatmaps.heatmap import Heatmap
from monai_mil.heatmaps.raster import Overlap

_CUBIC = -0.75
"""Of the cubic kernel, as in torch and OpenCV."""
_FILLED = 4
"""Steps from a token's centre to the farthest that bicubic interpolation inside the token asks for: two in x and y."""
_REACH = 2 + _FILLED


@dataclass(frozen=True, eq=False)
class TokenCanvas:
    """Scores of a slide, one pixel a token; make one with :func:`stitch`.

    Attributes:
        values: float32 ``[rows, columns]``, NaN where the slide has no token.
        origin: x and y of the canvas's upper-left corner in level-0 pixels.
        step: width and height of a token in level-0 pixels, exact and therefore often fractional.
        limits: what interpolated scores are brought into: ``(0, 1)`` where all scores lie in it, else their minimum
            and maximum.
    """

    values: np.ndarray
    origin: tuple[float, float]
    step: tuple[float, float]
    limits: tuple[float, float] = (0.0, 1.0)

    def upsample(self, window: tuple[float, float, float, float], shape: tuple[int, int]) -> np.ndarray:
        """The smooth map of a part of the slide: bicubic over the whole canvas, so it does not depend on the window.

        Pixels lie as in ``torch.nn.functional.interpolate`` with ``align_corners`` off. Behind the last token the map
        goes on as that token, and into holes as the mean of what is beside them; no pixel of a hole has a value. Where
        a pixel is two tokens wide or more, whole blocks of them are averaged first. Memory is that of the window.

        Args:
            window: x0, y0, x1, y1 in level-0 pixels; may reach past the slide.
            shape: rows and columns of the answer.

        Returns:
            float32 of ``shape``, within ``limits``, NaN where a pixel's centre lies in no token.
        """
        x0, y0, x1, y1 = window
        pixel = ((x1 - x0) / shape[1], (y1 - y0) / shape[0])
        columns, rows = (int(size / step + 1e-9) for size, step in zip(pixel, self.step, strict=True))
        if columns > 1 or rows > 1:
            return self._averaged(max(rows, 1), max(columns, 1)).upsample(window, shape)
        x = (x0 + (np.arange(shape[1]) + 0.5) * pixel[0] - self.origin[0]) / self.step[0] - 0.5
        y = (y0 + (np.arange(shape[0]) + 0.5) * pixel[1] - self.origin[1]) / self.step[1] - 0.5
        tokens, first_row, first_column = self._around(x, y)
        x, y = x - first_column, y - first_row
        known = ~np.isnan(tokens)
        if not known.any():
            return np.full(shape, np.nan, np.float32)
        smooth = _interpolate(_interpolate(_filled(tokens, known), x, axis=1), y, axis=0)
        np.clip(smooth, *self.limits, out=smooth)
        smooth[~known[np.floor(y + 0.5).astype(int)][:, np.floor(x + 0.5).astype(int)]] = np.nan
        return smooth

    def _averaged(self, rows: int, columns: int) -> TokenCanvas:
        """The canvas of the means over blocks of ``rows`` x ``columns`` tokens, holes left out."""
        height, width = self.values.shape
        padded = np.pad(self.values, ((0, -height % rows), (0, -width % columns)), constant_values=np.nan)
        blocks = padded.reshape(len(padded) // rows, rows, -1, columns)
        count = np.count_nonzero(~np.isnan(blocks), axis=(1, 3))
        values = np.nansum(blocks, axis=(1, 3)) / np.where(count, count, np.nan).astype(np.float32)
        return TokenCanvas(values, self.origin, (self.step[0] * columns, self.step[1] * rows), self.limits)

    def _around(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, int, int]:
        """The tokens that pixels at columns ``x`` and rows ``y`` need, and the row and column of the first."""
        top, bottom, left, right = (int(np.floor(place)) for place in (y[0], y[-1], x[0], x[-1]))
        top, bottom, left, right = top - _REACH, bottom + 1 + _REACH, left - _REACH, right + 1 + _REACH
        r0, r1 = np.clip((top, bottom), 0, self.values.shape[0]).tolist()
        c0, c1 = np.clip((left, right), 0, self.values.shape[1]).tolist()
        tokens = np.full((bottom - top, right - left), np.nan, np.float32)
        tokens[r0 - top : r1 - top, c0 - left : c1 - left] = self.values[r0:r1, c0:c1]
        return tokens, top, left


def stitch(heatmap: Heatmap, overlap: Overlap = "max") -> TokenCanvas:
    """Put the tokens of all tiles on one canvas.

    The canvas is the lattice of tokens that fits the tiles best: exact for a slide-wide grid, overlapping or not, whose
    step is a whole number of tokens. A token of a tile that lies beside the lattice goes to the nearest place, at most
    half a token away. Tokens whose centre lies outside the slide are left out; of tiles with one score each, none is.

    Args:
        heatmap: scores, one a tile (then a tile is a token) or a block of ``h x w`` tokens a tile.
        overlap: how tokens that fall on the same place are combined.
    """
    scores = heatmap.scores
    blocks = scores if scores.ndim == 3 else scores[:, None, None]
    rows, columns = blocks.shape[1:]
    step = heatmap.frame.tile_size_level0 / columns, heatmap.frame.tile_size_level0 / rows
    column, left = _lattice(heatmap.coords[:, 0], step[0])
    row, top = _lattice(heatmap.coords[:, 1], step[1])
    values = _paste(blocks, row, column, overlap)
    if scores.ndim == 3:
        (width, height), keep = heatmap.frame.level0_size, []
        for origin, size, count, length in zip((top, left), step[::-1], values.shape, (height, width), strict=True):
            centres = origin + (np.arange(count) + 0.5) * size
            keep.append(slice(*np.searchsorted(centres, (0, length)).tolist()))
        values, top, left = values[tuple(keep)], top + keep[0].start * step[1], left + keep[1].start * step[0]
    low, high = float(scores.min()), float(scores.max())
    return TokenCanvas(values, (left, top), step, (0.0, 1.0) if low >= 0 and high <= 1 else (low, high))


def _lattice(position: np.ndarray, step: float) -> tuple[np.ndarray, float]:
    """Which line of a lattice every tile begins at, counted from the first, and where that is in level-0 pixels.

    Rounded positions scatter around the lattice: the lattice is that from the slide's corner where it rounds to them,
    else it goes through their circular mean, then their median.
    """
    turn = np.exp(2j * np.pi * (position / step)).mean()
    line = np.round(position / step - np.angle(turn) / (2 * np.pi)).astype(np.int64)
    from_corner = np.array_equal(np.floor(line * step + 0.5), position)
    start = 0.0 if from_corner else float(np.median(position - line * step))
    return line - line.min(), start + int(line.min()) * step


def _paste(blocks: np.ndarray, row: np.ndarray, column: np.ndarray, overlap: Overlap) -> np.ndarray:
    """The blocks ``[n, h, w]`` on a canvas, upper-left corners at ``row`` and ``column``; NaN where none lies."""
    height, width = blocks.shape[1:]
    canvas = np.full((int(row.max()) + height, int(column.max()) + width), np.nan, np.float32)
    count = np.zeros(canvas.shape if overlap == "mean" else (0, 0), np.int32)
    for block, r, c in zip(blocks, row.tolist(), column.tolist(), strict=True):
        place = canvas[r : r + height, c : c + width]
        if overlap == "max":
            np.fmax(place, block, out=place)
        else:
            np.add(np.nan_to_num(place), block, out=place)
            count[r : r + height, c : c + width] += 1
    return canvas if overlap == "max" else canvas / np.maximum(count, 1)


def _filled(tokens: np.ndarray, known: np.ndarray) -> np.ndarray:
    """``tokens`` with values in the holes too, step by step the mean of those beside; behind a straight border that is
    the border's own token. The answer is for interpolation within known tokens; holes farther away stay 0."""
    import cv2

    filled = np.where(known, tokens, np.float32(0))
    if known.all():
        return filled
    cross = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], np.float32)
    weight = known.astype(np.float32)
    for _ in range(_FILLED):
        total = cv2.filter2D(filled, -1, cross, borderType=cv2.BORDER_CONSTANT)
        beside = cv2.filter2D(weight, -1, cross, borderType=cv2.BORDER_CONSTANT)
        new = (weight == 0) & (beside > 0)
        filled[new] = total[new] / beside[new]
        weight[new] = 1
    return filled


def _interpolate(values: np.ndarray, places: np.ndarray, axis: int) -> np.ndarray:
    """Cubic convolution along one axis at fractional ``places``, which lie two or more from both ends; float32."""
    below = np.floor(places).astype(int)
    share = places - below
    out = np.zeros((), np.float32)
    for tap in (-1, 0, 1, 2):
        weight = _kernel(np.abs(share - tap)).astype(np.float32)
        out = out + np.take(values, below + tap, axis=axis) * (weight if axis == 1 else weight[:, None])
    return out


def _kernel(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel at distances 0 to 2."""
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
    far = _CUBIC * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, far)

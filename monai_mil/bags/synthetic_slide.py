"""Painting of H&E-like slides with planted tumour, band by band so that memory does not grow with the slide.

Everything is drawn as concentrations of haematoxylin and eosin and turned to RGB by Beer and Lambert's law:
``rgb = white * 10 ** -(h * haematoxylin + e * eosin)`` with stain vectors that vary from slide to slide.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

MASK_DOWNSAMPLE = 16
_BAND = 512
_CONCENTRATION = 100.0  # stored as uint8: 100 is a concentration of 1
_HAEMATOXYLIN = np.array([0.65, 0.70, 0.29])
_EOSIN = np.array([0.10, 0.92, 0.38])
_TEXTURE = 512
_SMALLEST_LESION_UM = 170.0


@dataclass(frozen=True)
class CellType:
    """How nuclei of one kind look and how densely they lie; lengths in micrometres."""

    spacing: float
    radius: float
    size_spread: float
    elongation: float
    darkness: float
    coarseness: float


_STROMA = CellType(spacing=15.0, radius=2.6, size_spread=0.15, elongation=2.2, darkness=0.70, coarseness=0.10)
_PARENCHYMA = CellType(spacing=13.0, radius=3.2, size_spread=0.10, elongation=1.15, darkness=0.58, coarseness=0.12)
_LYMPHOCYTE = CellType(spacing=6.6, radius=2.4, size_spread=0.06, elongation=1.05, darkness=0.86, coarseness=0.08)
_TUMOUR = CellType(spacing=11.5, radius=4.7, size_spread=0.28, elongation=1.35, darkness=0.74, coarseness=0.35)


@dataclass(frozen=True)
class SyntheticSlide:
    """The plan of a slide; the pixels are painted by ``bands``.

    Attributes:
        size: width and height in level-0 pixels.
        mpp: micrometres per pixel.
        tumour: ground truth, bool ``[h, w]`` at ``MASK_DOWNSAMPLE``.
        tissue, follicle, stroma: the other regions, float32 of the same shape, 0 to 1.
        seed: of everything random below the plan.
    """

    size: tuple[int, int]
    mpp: float
    tumour: np.ndarray
    tissue: np.ndarray
    follicle: np.ndarray
    stroma: np.ndarray
    seed: int

    def bands(self) -> Iterator[np.ndarray]:
        """Yield the slide from top to bottom as uint8 RGB bands ``[rows, w, 3]``."""
        rng = np.random.default_rng([self.seed, 1])
        width, height = self.size
        nuclei = self._nuclei(rng)
        fibres = [_fibres(rng, angle) for angle in rng.uniform(0, 180, 2)]
        mottle = _smooth_noise(rng, self.tissue.shape, 12)
        tables = _stain_tables(rng)
        for top in range(0, height, _BAND):
            bottom = min(top + _BAND, height)
            tissue, follicle, stroma, tumour, cloud = (
                _enlarge(plan, top, bottom, width)
                for plan in (self.tissue, self.follicle, self.stroma, self.tumour.astype(np.float32), mottle)
            )
            rows = np.arange(top, bottom) % _TEXTURE
            grain = [np.resize(texture[rows], (len(rows), _TEXTURE)) for texture in fibres]
            grain = [np.tile(strip, (1, width // _TEXTURE + 1))[:, :width] for strip in grain]
            fibre = cv2.addWeighted(grain[0], 0.5, grain[1], 0.5, 0.0) + (grain[0] - grain[1]) * (cloud - 0.5)
            tissue = np.clip(0.5 + 5.0 * (tissue - 0.5 + 0.06 * fibre), 0, 1)
            eosin = (0.17 + 0.15 * stroma + 0.08 * cloud - 0.05 * follicle - 0.03 * tumour) * tissue
            eosin *= 1.0 + (0.22 + 0.40 * stroma) * fibre
            haematoxylin = (0.05 + 0.04 * cloud + 0.08 * follicle + 0.07 * tumour) * tissue * (1.0 + 0.20 * fibre)
            drawn = _quantise(haematoxylin)
            _stamp(drawn, nuclei, top)
            yield _to_rgb(drawn, _quantise(eosin), tables, rng)

    def _nuclei(self, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray, list[np.ndarray]]]:
        """Positions ``[m, 2]``, stamp index ``[m]`` and stamps of every cell type, sorted from top to bottom."""
        cells = self.tissue * (self.tissue > 0.5)
        normal = cells * (1 - self.follicle) * (1 - self.tumour)
        density = {
            _TUMOUR: cells * self.tumour,
            _LYMPHOCYTE: np.maximum(cells * self.follicle * (1 - self.tumour), 0.012 * cells),
            _STROMA: normal * self.stroma * 0.8,
            _PARENCHYMA: normal * (1 - self.stroma) * 0.8,
        }
        nuclei = []
        for kind, plan in density.items():
            position = _scatter(rng, plan, kind.spacing / self.mpp, self.size)
            stamps = [_nucleus(rng, kind, self.mpp) for _ in range(64)]
            nuclei.append((position, rng.integers(len(stamps), size=len(position)), stamps))
        return nuclei


def plan_slide(
    size: tuple[int, int], mpp: float, tumour: bool, seed: int, radius: float | None = None
) -> SyntheticSlide:
    """Lay out tissue, stroma, lymph follicles and, if ``tumour``, one to three lesions of very different size.

    With a ``radius`` (micrometres) there is one lesion, of this radius; it fills the tears and vacuoles where it lies,
    so that it is in one piece and as large as its radius says.
    """
    rng = np.random.default_rng([seed, 0])
    shape = (-(-size[1] // MASK_DOWNSAMPLE), -(-size[0] // MASK_DOWNSAMPLE))
    pixel = mpp * MASK_DOWNSAMPLE
    tissue = _tissue(rng, shape, pixel)
    stroma = np.clip((_smooth_noise(rng, shape, 180 / pixel) - 0.45) * 4, 0, 1)
    follicle = np.zeros(shape, np.float32)
    for _ in range(rng.integers(1, 4)):
        _blob(rng, follicle, tissue > 0.9, rng.uniform(70, 190) / pixel)
    lesion = np.zeros(shape, np.float32)
    if tumour and radius is not None:
        _blob(rng, lesion, tissue > 0.9, radius / pixel)
        tissue = np.maximum(tissue, lesion)
    elif tumour:
        largest = max(0.15 * pixel * min(shape), 1.2 * _SMALLEST_LESION_UM)
        for _ in range(rng.integers(1, 4)):
            radius = np.exp(rng.uniform(np.log(_SMALLEST_LESION_UM), np.log(largest)))
            _blob(rng, lesion, tissue > 0.9, radius / pixel)
    truth = (lesion > 0.5) & (tissue > 0.5)
    return SyntheticSlide(size, mpp, truth, tissue, follicle, stroma.astype(np.float32), seed)


def _tissue(rng: np.random.Generator, shape: tuple[int, int], pixel: float) -> np.ndarray:
    """A ragged section with fat vacuoles and tears; white margins all round."""
    height, width = shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle = np.arctan2(y - height / 2, x - width / 2)
    radius = np.hypot((x - width / 2) / (0.44 * width), (y - height / 2) / (0.42 * height))
    ragged = sum(rng.uniform(0.02, 0.09) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in range(2, 7))
    section = (radius + ragged + 0.25 * (_smooth_noise(rng, shape, 250 / pixel) - 0.5)) < 0.93
    tears = np.abs(_smooth_noise(rng, shape, 420 / pixel) - 0.5) < 0.010
    fat = (_smooth_noise(rng, shape, 300 / pixel) > 0.70) & (_smooth_noise(rng, shape, 22 / pixel) > 0.42)
    return cv2.GaussianBlur((section & ~tears & ~fat).astype(np.float32), (0, 0), 0.8)


def _blob(rng: np.random.Generator, canvas: np.ndarray, where: np.ndarray, radius: float) -> None:
    """Draw one irregular disc of value 1 at a place where most of it is tissue."""
    height, width = canvas.shape
    inside = cv2.blur(where.astype(np.float32), (max(3, int(2 * radius)),) * 2, borderType=cv2.BORDER_CONSTANT)
    candidates = np.argwhere(inside >= min(0.85, 0.98 * inside.max()))
    row, column = candidates[rng.integers(len(candidates))]
    y, x = np.ogrid[:height, :width]
    angle = np.arctan2(y - row, x - column)
    edge = 1 + sum(rng.uniform(0, 0.12) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in range(2, 8))
    canvas[np.hypot(y - row, x - column) < radius * edge] = 1.0


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> np.ndarray:
    """Noise with features of about ``scale`` pixels, ranked to be near uniform on 0 to 1, float32."""
    scale = max(scale, 1.0)
    small = rng.standard_normal((int(shape[0] / scale) + 4, int(shape[1] / scale) + 4)).astype(np.float32)
    large = cv2.resize(small, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    start = rng.integers(0, int(scale) + 1, 2)
    noise = large[start[0] : start[0] + shape[0], start[1] : start[1] + shape[1]]
    return np.clip(0.5 + 0.29 * noise / noise.std(), 0, 1)


def _fibres(rng: np.random.Generator, angle: float) -> np.ndarray:
    """A texture of wavy fibres that repeats without a seam, zero mean, float32 ``[_TEXTURE, _TEXTURE]``."""
    frequency = np.fft.fftfreq(_TEXTURE)
    fy, fx = np.meshgrid(frequency, frequency, indexing="ij")
    direction = np.deg2rad(angle)
    along, across = fx * np.cos(direction) + fy * np.sin(direction), fy * np.cos(direction) - fx * np.sin(direction)
    response = np.exp(-((along / 0.012) ** 2) - (across / 0.09) ** 2) + 0.25 * np.exp(-((np.hypot(fx, fy) / 0.2) ** 2))
    noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal((_TEXTURE, _TEXTURE))) * response).real
    return np.clip(noise / noise.std(), -2.0, 2.0).astype(np.float32) * 0.5


def _scatter(rng: np.random.Generator, density: np.ndarray, spacing: float, size: tuple[int, int]) -> np.ndarray:
    """Points of a jittered hexagonal grid, kept with the probability ``density``; x, y int ``[m, 2]`` sorted by y."""
    width, height = size
    y, x = np.mgrid[0 : height : spacing * 0.87, 0:width:spacing]
    x[1::2] += spacing / 2
    x += rng.uniform(-0.32, 0.32, x.shape) * spacing
    y += rng.uniform(-0.32, 0.32, x.shape) * spacing
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y = x[inside].astype(int), y[inside].astype(int)
    kept = rng.random(x.shape) < density[y // MASK_DOWNSAMPLE, x // MASK_DOWNSAMPLE]
    x, y = x[kept], y[kept]
    order = np.argsort(y, kind="stable")
    return np.stack([x, y], axis=1)[order]


def _nucleus(rng: np.random.Generator, kind: CellType, mpp: float) -> np.ndarray:
    """One nucleus as a haematoxylin stamp, uint8 ``[s, s]``: irregular outline, chromatin clumps, darker rim."""
    radius = kind.radius * np.exp(rng.normal(0, kind.size_spread)) / mpp
    stretch = np.sqrt(kind.elongation * np.exp(rng.normal(0, 0.08)))
    half = int(np.ceil(radius * stretch * 1.3)) + 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    turn = rng.uniform(0, np.pi)
    along, across = (x * np.cos(turn) + y * np.sin(turn)) / stretch, (y * np.cos(turn) - x * np.sin(turn)) * stretch
    angle = np.arctan2(across, along)
    outline = 1 + sum(
        kind.coarseness * rng.uniform(0, 0.35) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in range(2, 5)
    )
    depth = np.hypot(along, across) / (radius * outline)
    clumps = cv2.GaussianBlur(rng.standard_normal(x.shape).astype(np.float32), (0, 0), max(0.6, 0.9 / mpp))
    chromatin = 1 + kind.coarseness * clumps / clumps.std() * 0.5 + 0.15 * np.exp(-(((depth - 0.9) / 0.12) ** 2))
    cover = np.clip((1 - depth) * radius / 1.2 + 0.5, 0, 1)
    return _quantise(kind.darkness * np.exp(rng.normal(0, 0.08)) * chromatin * cover)


def _stamp(canvas: np.ndarray, nuclei: list[tuple[np.ndarray, np.ndarray, list[np.ndarray]]], top: int) -> None:
    """Draw the nuclei that touch the rows from ``top``; where two overlap the darker one is seen."""
    height, width = canvas.shape
    for position, chosen, stamps in nuclei:
        reach = max(len(stamp) for stamp in stamps) // 2 + 1
        first, last = np.searchsorted(position[:, 1], [top - reach, top + height + reach])
        for (x, y), index in zip(position[first:last].tolist(), chosen[first:last].tolist(), strict=True):
            stamp = stamps[index]
            half = len(stamp) // 2
            x0, y0 = x - half, y - top - half
            left, up = max(x0, 0), max(y0, 0)
            right, down = min(x0 + len(stamp), width), min(y0 + len(stamp), height)
            if left < right and up < down:
                target = canvas[up:down, left:right]
                np.maximum(target, stamp[up - y0 : down - y0, left - x0 : right - x0], out=target)


def _enlarge(plan: np.ndarray, top: int, bottom: int, width: int) -> np.ndarray:
    """Rows ``top`` to ``bottom`` of a low-resolution plan at full resolution; neighbouring bands join smoothly."""
    first, last = top // MASK_DOWNSAMPLE - 2, -(-bottom // MASK_DOWNSAMPLE) + 2
    rows = np.clip(np.arange(first, last), 0, len(plan) - 1)
    tall = cv2.resize(
        plan[rows], None, fx=MASK_DOWNSAMPLE, fy=MASK_DOWNSAMPLE, interpolation=cv2.INTER_LINEAR
    )  # each plan pixel becomes a block
    start = top - first * MASK_DOWNSAMPLE
    return tall[start : start + bottom - top, :width]


def _quantise(concentration: np.ndarray) -> np.ndarray:
    return np.clip(concentration * _CONCENTRATION, 0, 255).astype(np.uint8)


def _stain_tables(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Transmission of every stored concentration, ``[256, 3]`` each, in this slide's own shade and strength."""
    steps = np.arange(256)[:, None] / _CONCENTRATION
    white = rng.uniform(238, 248) + rng.uniform(-2, 2, 3)
    tables = []
    for stain in (_HAEMATOXYLIN, _EOSIN):
        vector = np.clip(stain + rng.normal(0, 0.035, 3), 0.02, None)
        tables.append(10 ** (-steps * rng.uniform(0.8, 1.15) * vector / np.linalg.norm(vector)))
    return (white * tables[0]).astype(np.float32), tables[1].astype(np.float32)


def _to_rgb(
    haematoxylin: np.ndarray, eosin: np.ndarray, tables: tuple[np.ndarray, np.ndarray], rng: np.random.Generator
) -> np.ndarray:
    blurred = cv2.GaussianBlur(haematoxylin, (3, 3), 0.7)
    noise = rng.normal(0, 1.6, (64, haematoxylin.shape[1])).astype(np.float32)
    noise = np.resize(noise - noise.mean(axis=0), haematoxylin.shape)
    rgb = np.empty((*haematoxylin.shape, 3), np.uint8)
    for channel in range(3):
        value = cv2.multiply(cv2.LUT(blurred, tables[0][:, channel]), cv2.LUT(eosin, tables[1][:, channel]))
        rgb[..., channel] = np.clip(value + noise, 0, 255).astype(np.uint8)
    return rgb

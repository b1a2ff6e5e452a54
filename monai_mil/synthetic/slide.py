"""Painting of H&E-like slides with planted tumour, band by band so that memory does not grow with the slide.

Everything is drawn as concentrations of haematoxylin and eosin and turned to RGB by Beer and Lambert's law:
``rgb = white * 10 ** -(h * haematoxylin + e * eosin)`` with stain vectors that vary from slide to slide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from monai_mil.synthetic.nuclei import (
    CLUMPED,
    LYMPHOCYTE,
    PARENCHYMA,
    STROMA,
    TUMOUR,
    CellType,
    draw_nucleus,
    stamp_nuclei,
)

MASK_DOWNSAMPLE = 16
_BAND = 512
_STRIP = 16
_CONCENTRATION = 100.0  # stored as uint8: 100 is a concentration of 1
_HAEMATOXYLIN = np.array([0.65, 0.70, 0.29])
_EOSIN = np.array([0.10, 0.92, 0.38])
_TEXTURE = 512
_SMALLEST_LESION_UM = 170.0
_NODULE_UM = (60.0, 110.0)

LesionKind = Literal["tumour", "follicular"]
"""``tumour``: nuclei crowded, large and of many shapes, seen from afar. ``follicular``: a lymph follicle like those of
normal slides, as large and as many, but for the chromatin of its nuclei, which lies in clumps of a micrometre."""


@dataclass(frozen=True)
class _Look:
    """What a lesion shows: its nuclei, and eosin and haematoxylin between them beside those of the tissue."""

    nuclei: CellType
    eosin: float
    haematoxylin: float


_LOOKS: dict[LesionKind, _Look] = {"tumour": _Look(TUMOUR, -0.03, 0.07), "follicular": _Look(CLUMPED, 0.0, 0.0)}


@dataclass(frozen=True)
class SyntheticSlide:
    """The plan of a slide; the pixels are painted by ``bands``.

    Attributes:
        size: width and height in level-0 pixels.
        mpp: micrometres per pixel.
        tumour: ground truth, bool ``[h, w]`` at ``MASK_DOWNSAMPLE``.
        tissue, follicle, stroma: the other regions, float32 of the same shape, 0 to 1.
        seed: of everything random below the plan.
        kind: what the tumour looks like; one that looks like follicles is in ``follicle`` too.
    """

    size: tuple[int, int]
    mpp: float
    tumour: np.ndarray
    tissue: np.ndarray
    follicle: np.ndarray
    stroma: np.ndarray
    seed: int
    kind: LesionKind = "tumour"

    def bands(self) -> Iterator[np.ndarray]:
        """Yield the slide from top to bottom as uint8 RGB bands ``[rows, w, 3]``."""
        rng = np.random.default_rng([self.seed, 1])
        width, height = self.size
        nuclei = self._nuclei(rng)
        fibres = [_fibres(rng, angle) for angle in rng.uniform(0, 180, 2)]
        mottle = _smooth_noise(rng, self.tissue.shape, 12)
        tables = _stain_tables(rng)
        look = _LOOKS[self.kind]
        for top in range(0, height, _BAND):
            bottom = min(top + _BAND, height)
            plans = [
                _enlarge(plan, top, bottom, width)
                for plan in (self.tissue, self.follicle, self.stroma, self.tumour.astype(np.float32), mottle)
            ]
            rows = np.arange(top, bottom) % _TEXTURE
            grain = [np.tile(texture[rows], (1, width // _TEXTURE + 1))[:, :width] for texture in fibres]
            drawn, eosin = np.empty((2, bottom - top, width), np.uint8)
            for part in _strips(bottom - top):
                drawn[part], eosin[part] = _stain([each[part] for each in plans], [each[part] for each in grain], look)
            stamp_nuclei(drawn, nuclei, top)
            yield _to_rgb(drawn, eosin, tables, rng)

    def _nuclei(self, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray, list[np.ndarray]]]:
        """Positions ``[m, 2]``, stamp index ``[m]`` and stamps of every cell type, sorted from top to bottom."""
        cells = self.tissue * (self.tissue > 0.5)
        normal = cells * (1 - self.follicle) * (1 - self.tumour)
        density = {
            _LOOKS[self.kind].nuclei: cells * self.tumour,
            LYMPHOCYTE: np.maximum(cells * self.follicle * (1 - self.tumour), 0.012 * cells),
            STROMA: normal * self.stroma * 0.8,
            PARENCHYMA: normal * (1 - self.stroma) * 0.8,
        }
        nuclei = []
        for kind, plan in density.items():
            position = _scatter(rng, plan, kind.spacing / self.mpp, self.size)
            stamps = [_quantise(draw_nucleus(rng, kind, self.mpp)) for _ in range(64)]
            nuclei.append((position, rng.integers(len(stamps), size=len(position)), stamps))
        return nuclei


def plan_slide(
    size: tuple[int, int],
    mpp: float,
    tumour: bool,
    seed: int,
    radius: float | None = None,
    kind: LesionKind = "tumour",
) -> SyntheticSlide:
    """Lay out tissue, stroma, lymph follicles and, if ``tumour``, lesions of different size.

    With a ``radius`` (micrometres) there is one lesion, of this radius; it fills the tears and vacuoles where it lies,
    so that it is in one piece and as large as its radius says. Where lesions are follicular, a slide has one to four
    dense nodules, but every second normal slide has none: dense tissue is a hint that every magnification sees. On a
    tumour slide one or more of them are lesions.
    """
    rng = np.random.default_rng([seed, 0])
    shape = (-(-size[1] // MASK_DOWNSAMPLE), -(-size[0] // MASK_DOWNSAMPLE))
    pixel = mpp * MASK_DOWNSAMPLE
    tissue = _tissue(rng, shape, pixel)
    stroma = np.clip((_smooth_noise(rng, shape, 180 / pixel) - 0.45) * 4, 0, 1)
    if kind == "follicular":
        benign, malignant = _nodules(rng, tumour)
    else:
        benign, malignant = _follicles_and_tumour(rng, pixel * min(shape))
    follicle, lesion = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for each in benign:
        _blob(rng, follicle, tissue > 0.9, each / pixel)
    if tumour and radius is not None:
        malignant = iter([radius])
    for each in malignant if tumour else ():
        _blob(rng, lesion, tissue > 0.9, each / pixel)
    if radius is not None:
        tissue = np.maximum(tissue, lesion)
    if kind == "follicular":
        follicle = np.maximum(follicle, lesion)
    truth = (lesion > 0.5) & (tissue > 0.5)
    return SyntheticSlide(size, mpp, truth, tissue, follicle, stroma.astype(np.float32), seed, kind)


def _follicles_and_tumour(rng: np.random.Generator, side: float) -> tuple[Iterator[float], Iterator[float]]:
    """Radii of one to three follicles and one to three lesions on a slide of this shorter side, in micrometres."""
    return (rng.uniform(70, 190) for _ in range(rng.integers(1, 4))), _tumour_radii(rng, side)


def _tumour_radii(rng: np.random.Generator, side: float) -> Iterator[float]:
    largest = max(0.15 * side, 1.2 * _SMALLEST_LESION_UM)
    for _ in range(rng.integers(1, 4)):
        yield np.exp(rng.uniform(np.log(_SMALLEST_LESION_UM), np.log(largest)))


def _nodules(rng: np.random.Generator, tumour: bool) -> tuple[Iterator[float], Iterator[float]]:
    """Radii of benign and of malignant dense nodules in micrometres, none or one to four in all."""
    smallest, largest = np.log(_NODULE_UM)
    radii = np.exp(rng.uniform(smallest, largest, int(rng.integers(1, 5))))
    lesions = int(rng.integers(1, len(radii) + 1)) if tumour else 0
    if not tumour:
        radii = radii[: len(radii) * int(rng.integers(2))]
    return iter(radii[lesions:]), iter(radii[:lesions])


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


def _enlarge(plan: np.ndarray, top: int, bottom: int, width: int) -> np.ndarray:
    """Rows ``top`` to ``bottom`` of a low-resolution plan at full resolution; neighbouring bands join smoothly."""
    first, last = top // MASK_DOWNSAMPLE - 2, -(-bottom // MASK_DOWNSAMPLE) + 2
    rows = np.clip(np.arange(first, last), 0, len(plan) - 1)
    tall = cv2.resize(
        plan[rows], None, fx=MASK_DOWNSAMPLE, fy=MASK_DOWNSAMPLE, interpolation=cv2.INTER_LINEAR
    )  # each plan pixel becomes a block
    start = top - first * MASK_DOWNSAMPLE
    return tall[start : start + bottom - top, :width]


def _strips(rows: int) -> Iterator[slice]:
    """So few rows at a time that what is computed of them stays in the processor's cache."""
    return (slice(start, min(start + _STRIP, rows)) for start in range(0, rows, _STRIP))


def _stain(plans: Sequence[np.ndarray], grain: Sequence[np.ndarray], look: _Look) -> tuple[np.ndarray, np.ndarray]:
    """Haematoxylin between the nuclei and eosin, quantised, from five plans and two textures of fibres ``[rows, w]``.

    The plans are those of tissue, follicles, stroma, tumour and of a mottle.
    """
    tissue, follicle, stroma, tumour, cloud = plans
    one, other = grain
    fibre = cv2.addWeighted(one, 0.5, other, 0.5, 0.0) + (one - other) * (cloud - 0.5)
    tissue = np.clip(0.5 + 5.0 * (tissue - 0.5 + 0.06 * fibre), 0, 1)
    eosin = (0.17 + 0.15 * stroma + 0.08 * cloud - 0.05 * follicle + look.eosin * tumour) * tissue
    eosin *= 1.0 + (0.22 + 0.40 * stroma) * fibre
    haematoxylin = (0.05 + 0.04 * cloud + 0.08 * follicle + look.haematoxylin * tumour) * tissue
    haematoxylin *= 1.0 + 0.20 * fibre
    return _quantise(haematoxylin), _quantise(eosin)


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
    for part in _strips(len(rgb)):
        for channel in range(3):
            light = cv2.LUT(blurred[part], tables[0][:, channel])
            value = cv2.multiply(light, cv2.LUT(eosin[part], tables[1][:, channel]))
            rgb[part, :, channel] = np.clip(value + noise[part], 0, 255).astype(np.uint8)
    return rgb

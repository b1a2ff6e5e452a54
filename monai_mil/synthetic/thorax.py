"""Painting of chest CT, slice by slice so that memory does not grow with the scan.

Everything is drawn in millimetres and Hounsfield units: ``x`` to the patient's left, ``y`` to the back, ``z`` to the
head, 0 at the bottom of the lungs and ``height`` at their top. Shapes are functions of ``z``; vessels and nodules are
bodies in space (``synthetic_lung``): neighbouring slices belong together as those of a patient do.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from monai_mil.synthetic.lung import Nodule, draw_vessels, grow_vessels, place_nodule

_HEIGHT_MM = 260.0
_NOISE_STEP_MM = 14.0
_RIB_STEP_MM = 27.0
_VERTEBRA_MM = 26.0


@dataclass(frozen=True)
class Patient:
    """What differs between patients; lengths in mm, densities in HU."""

    wide: float
    deep: float
    height: float
    fat: float
    lung: float
    blood: float
    phase: float
    noise: float
    padding: float

    def cavity(self, z: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Half width and half depth of the rib cage's inside at height ``z``."""
        level = np.clip(np.asarray(z) / self.height, 0.0, 1.0)
        dome = np.sqrt(np.maximum(0.05, 1 - (np.maximum(0.0, level - 0.40) / 0.63) ** 2.6))
        return self.wide * 0.76 * dome, self.deep * 0.76 * (0.35 + 0.65 * dome)

    def lung_depth(self, x: np.ndarray, y: np.ndarray, z: float | np.ndarray) -> np.ndarray:
        """Depth below the lungs' surface, mm; negative outside them."""
        width, depth = self.cavity(z)
        level = np.asarray(z) / self.height
        inside = superellipse(x, y, width, depth, 2.3)
        # Mediastinum: narrow in front of and behind the great vessels, wide at the hila.
        hila, vessels = np.exp(-(((y - 2) / 30) ** 2)), np.exp(-(((y + 45) / 22) ** 2)) * level
        middle = np.abs(x - 3) - (13 + 17 * hila + 10 * vessels)
        heart = -self.heart_depth(x, y, z)
        spine = -superellipse(x, y - self.back, 27, 25, 2.2)
        side = np.where(x < 0, -1.0, 1.0)
        dome = np.where(side < 0, 0.25, 0.20) * self.height
        floor = dome - 0.0085 * ((np.abs(x) - 62) ** 2 + (y + 8) ** 2)
        above = (z - floor) * 0.8
        return np.minimum.reduce([inside, middle, heart - 2, spine, above])

    def heart_depth(self, x: np.ndarray, y: np.ndarray, z: float | np.ndarray) -> np.ndarray:
        """Depth below the heart's surface, mm."""
        level = (np.asarray(z) / self.height - 0.30) / 0.27
        size = np.sqrt(np.maximum(1 - level**2, 1e-4))
        turned, across = 0.87 * (x - 22) + 0.5 * (y + 22), 0.87 * (y + 22) - 0.5 * (x - 22)
        return superellipse(turned, across, 58 * size, 42 * size, 2.1)

    @property
    def back(self) -> float:
        """``y`` of the vertebrae's centres."""
        return self.deep * 0.45


@dataclass(frozen=True)
class SyntheticThorax:
    """The plan of a scan; the pixels are painted by ``paint``.

    Attributes:
        patient: its owner.
        size: rows and columns.
        spacing: mm per pixel.
        heights: ``z`` of every slice, ascending, mm ``[n]``.
        slice_mm: thickness of a slice.
        vessels: pieces of vessels, ``[m, 7]``: both ends and the radius, mm.
        lesions: the planted nodules.
        granulomas: small calcified ones, which are no lesions.
        layers: smooth noise of lung and tissue, float32 ``[k, 2, 28, 28]``, a layer every ``_NOISE_STEP_MM``.
        seed: of the grain of every slice.
    """

    patient: Patient
    size: int
    spacing: float
    heights: np.ndarray
    slice_mm: float
    vessels: np.ndarray
    lesions: tuple[Nodule, ...]
    granulomas: tuple[Nodule, ...]
    layers: np.ndarray
    seed: int

    def __len__(self) -> int:
        return len(self.heights)

    def paint(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Slice ``index``: HU, int16, and where a lesion is, bool; both ``[size, size]``."""
        z = float(self.heights[index])
        canvas = _Canvas(self.size, self.spacing, z)
        lung_noise, noise = self._noise(index)
        _draw_table(canvas, self.patient)
        _draw_wall(canvas, self.patient, noise)
        _draw_bones(canvas, self.patient)
        _draw_organs(canvas, self.patient, noise)
        lung = canvas.cover(self.patient.lung_depth(canvas.x, canvas.y, z) - 1.5 + 0.7 * noise)
        canvas.blend(lung, self.patient.lung + 0.55 * canvas.y + 38 * lung_noise)
        canvas.blend(lung * draw_vessels(self.vessels, z, self.slice_mm, self.size, self.spacing), self.patient.blood)
        lesion = np.zeros((self.size, self.size), bool)
        for nodule in self.granulomas:
            canvas.blend(nodule.cover(canvas.x, canvas.y, z, self.slice_mm, self.spacing), nodule.hu)
        for nodule in self.lesions:
            cover = nodule.cover(canvas.x, canvas.y, z, self.slice_mm, self.spacing)
            canvas.blend(cover, nodule.hu)
            lesion |= cover > 0.5
        return self._scan(canvas, np.random.default_rng([self.seed, 1, index])), lesion

    def _noise(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Smooth noise of lung and of tissue, blended between the layers below and above the slice."""
        place = (self.heights[index] - self.heights[0]) / _NOISE_STEP_MM
        low, share = int(place), np.float32(place % 1)
        mixed = self.layers[low] * (1 - share) + self.layers[low + 1] * share
        lung, tissue = (cv2.resize(layer, (self.size, self.size), interpolation=cv2.INTER_CUBIC) for layer in mixed)
        return lung, tissue

    def _scan(self, canvas: _Canvas, rng: np.random.Generator) -> np.ndarray:
        """What the scanner makes of it: blur, grain, a round field of view."""
        hu = cv2.GaussianBlur(canvas.hu, (0, 0), max(0.35, 0.55 / self.spacing))
        radius = np.hypot(canvas.x, canvas.y) * 2 / (self.size * self.spacing)
        grain = _grain(rng, self.size, self.spacing) * (1.15 - 0.6 * np.minimum(radius, 1) ** 2)
        hu = np.clip(np.rint(hu + self.patient.noise * grain), -1024, 3071)
        hu[radius > 1] = self.patient.padding
        return hu.astype(np.int16)


def plan_thorax(seed: int, *, slices: int, size: int, spacing: float, slice_mm: float, lesions: int) -> SyntheticThorax:
    """Lay out a patient, the part of the chest that is scanned, vessels and ``lesions`` nodules within that part."""
    rng = np.random.default_rng([seed, 0])
    length = slices * slice_mm
    patient = _patient(rng, max(_HEIGHT_MM * rng.uniform(0.92, 1.08), length / 0.95))
    slack = max(0.0, 0.86 * patient.height - length)
    bottom = 0.06 * patient.height + slack * rng.uniform(0.25, 0.75)
    heights = bottom + np.arange(slices) * slice_mm
    vessels = grow_vessels(rng, patient.lung_depth, patient.height)
    reach = (float(heights[0]), float(heights[-1]))
    planted: list[Nodule] = []
    for _ in range(lesions):
        radius, hu = rng.uniform(5.0, 11.0), rng.uniform(15, 70)
        planted.append(place_nodule(rng, patient.lung_depth, reach, radius, hu, planted))
    granulomas = [
        place_nodule(rng, patient.lung_depth, reach, rng.uniform(1.2, 2.2), rng.uniform(200, 500), planted)
        for _ in range(rng.integers(0, 3))
    ]
    layers = rng.standard_normal((int(length / _NOISE_STEP_MM) + 2, 2, 28, 28)).astype(np.float32)
    return SyntheticThorax(
        patient, size, spacing, heights, slice_mm, vessels, tuple(planted), tuple(granulomas), layers, seed
    )


def _patient(rng: np.random.Generator, height: float) -> Patient:
    return Patient(
        wide=rng.uniform(142, 164),
        deep=rng.uniform(108, 124),
        height=height,
        fat=rng.uniform(6, 20),
        lung=rng.uniform(-890, -820),
        blood=rng.choice([rng.uniform(35, 50), rng.uniform(120, 220)]),
        phase=rng.uniform(0, 1),
        noise=rng.uniform(12, 24),
        padding=float(rng.choice([-1024, -2000])),
    )


class _Canvas:
    """A slice in the making.

    Attributes:
        x, y: places of the pixels in mm, float32 ``[s, s]``.
        z: height in mm.
        hu: what is drawn so far, float32 ``[s, s]``.
    """

    def __init__(self, size: int, spacing: float, z: float) -> None:
        line = ((np.arange(size) - (size - 1) / 2) * spacing).astype(np.float32)
        self.x, self.y = np.meshgrid(line, line)
        self.z = z
        self.spacing = spacing
        self.hu = np.full((size, size), -1000, np.float32)

    def cover(self, depth: np.ndarray) -> np.ndarray:
        """Share of each pixel within a shape whose surface is ``depth`` mm away."""
        return np.clip(depth / self.spacing + 0.5, 0, 1)

    def blend(self, cover: np.ndarray, hu: np.ndarray | float) -> None:
        """Draw with partial cover."""
        self.hu += (hu - self.hu) * cover

    def fill(self, depth: np.ndarray, hu: np.ndarray | float) -> None:
        """Draw a shape given by the depth below its surface."""
        self.blend(self.cover(depth), hu)

    def bone(self, depth: np.ndarray, cortex: float, marrow: float, thickness: float = 1.8) -> None:
        """Draw a bone: a hard shell around marrow."""
        self.fill(depth, cortex)
        self.fill(depth - thickness, marrow)


def superellipse(
    x: np.ndarray, y: np.ndarray, a: np.ndarray | float, b: np.ndarray | float, power: float
) -> np.ndarray:
    """About the depth below the surface of ``|x/a|^p + |y/b|^p = 1``, in the unit of ``x``."""
    radius = (np.abs(x / a) ** power + np.abs(y / b) ** power) ** (1 / power)
    return (1 - radius) * np.sqrt(np.asarray(a) * b)


def _draw_table(canvas: _Canvas, patient: Patient) -> None:
    sag = canvas.y - (patient.deep + 14) + canvas.x**2 / 1100
    canvas.blend(canvas.cover(1.6 - np.abs(sag)) * (np.abs(canvas.x) < 205), -380.0)
    canvas.blend(canvas.cover(9 - np.abs(sag - 11)) * (np.abs(canvas.x) < 205), -940.0)


def _draw_wall(canvas: _Canvas, patient: Patient, noise: np.ndarray) -> None:
    """Skin, fat and the muscles around the rib cage; shoulders at the top."""
    x, y, level = canvas.x, canvas.y, np.clip(canvas.z / patient.height, 0, 1.1)
    shoulders = max(0.0, (level - 0.55) / 0.45) ** 2
    wide, deep = patient.wide * (1 + 0.10 * shoulders), patient.deep * (1 - 0.05 * shoulders)
    angle = np.arctan2(y / deep, x / wide)
    ripple = 2.0 * np.cos(2 * angle + 6 * patient.phase) + 1.2 * np.cos(5 * angle + canvas.z / 60)
    body = superellipse(x, y, wide, deep, 2.3) + ripple
    canvas.fill(body, 15.0)
    canvas.fill(body - 2.2, -105 + 9 * noise)
    width, depth = patient.cavity(canvas.z)
    cage = superellipse(x, y, width, depth, 2.3)
    fat = patient.fat * (1 - 0.5 * shoulders) * (1.1 + 0.3 * np.cos(2 * angle))
    back = 14 * np.exp(-(((angle - np.pi / 2) / 0.35) ** 2))
    muscle = np.minimum(body - fat, cage + 200 * shoulders + 19 + back + 1.5 * noise)
    canvas.fill(muscle, 55 + 5 * noise)
    # Fat between the layers of muscle, and between muscle and ribs.
    layer = np.abs(cage + 17 + 4 * np.cos(3 * angle + 1) + 3 * noise) - 1.3
    canvas.blend(canvas.cover(np.minimum(-layer, muscle - 3)) * 0.8, -80.0)


def _draw_bones(canvas: _Canvas, patient: Patient) -> None:
    x, y, z = canvas.x, canvas.y, canvas.z
    width, depth = patient.cavity(z)
    cage = superellipse(x, y, width, depth, 2.3)
    around = np.abs(np.arctan2(x / width, y / depth))  # 0 at the spine, pi at the sternum
    turns = z / _RIB_STEP_MM + 3.1 * around / np.pi + patient.phase
    along = np.abs(turns - np.floor(turns) - 0.5) * _RIB_STEP_MM
    rib = 5.0 - np.hypot((cage + 6.5) * 1.25, along * 0.62)
    canvas.bone(np.where((around > 0.35) & (around < 2.55), rib, -9.0), 560.0, 210.0, 1.6)
    canvas.bone(superellipse(x, y + depth + 7, 17, 6.5, 2.4), 380.0, 130.0)
    for side in (-1, 1):
        _draw_scapula(canvas, patient, side)
    back = patient.back
    disc = float(np.clip(2 - np.abs((z / _VERTEBRA_MM + patient.phase) % 1 - 0.5) * 14, 0, 1))
    lamina = np.minimum(superellipse(x, y - back - 21, 16, 13, 2), -superellipse(x, y - back - 19, 10.5, 9.5, 2))
    process = np.minimum(superellipse(x, y - back - 37, 3.6, 11, 2), 6 - 14 * disc)
    wings = superellipse(np.abs(x) - 24, y - back - 26 + 0.3 * (np.abs(x) - 24), 15, 4.8, 2) - 8 * disc
    canvas.fill(superellipse(x, y - back - 19, 10.5, 9.5, 2), 25.0)
    canvas.bone(np.maximum.reduce([lamina - 3 * disc, process, wings]), 480.0, 240.0)
    body = superellipse(x, y - back, 18.5, 15, 2.4)
    canvas.bone(body, 420 * (1 - disc) + 95 * disc, 180 * (1 - disc) + 85 * disc)


def _draw_scapula(canvas: _Canvas, patient: Patient, side: int) -> None:
    level = (canvas.z / patient.height - 0.42) / 0.58
    if level <= 0:
        return
    width, depth = patient.cavity(0.5 * patient.height)
    dx, dy = canvas.x - side * width * 0.93, canvas.y - depth * 0.80
    along, across = dx * 0.72 + side * dy * -0.69, side * dx * 0.69 + dy * 0.72
    blade = superellipse(along, across + 0.006 * along**2, 14 + 24 * min(level, 1), 4.2, 2)
    canvas.bone(blade, 480.0, 200.0, 1.5)


def _draw_organs(canvas: _Canvas, patient: Patient, noise: np.ndarray) -> None:
    """All between the lungs and below the diaphragm."""
    x, y, level = canvas.x, canvas.y, canvas.z / patient.height
    width, depth = patient.cavity(canvas.z)
    inside = np.minimum(superellipse(x, y, width, depth, 2.3), -superellipse(x, y - patient.back, 20, 17, 2.2))
    canvas.fill(inside, np.where(level > 0.42, -85 + 12 * noise, 48 + 4 * noise))
    liver = np.where(x < 12, 62.0, 48.0) + 3 * noise + (patient.blood > 100) * 40
    canvas.blend(canvas.cover(inside) * (level < 0.42), liver)
    heart = patient.heart_depth(x, y, canvas.z)
    canvas.fill(heart + 3.5, -95.0)
    canvas.fill(heart, 50.0)
    canvas.fill(heart - 11, patient.blood)
    blood, wall = patient.blood, 45.0
    tubes = [(16 + 4 * level, patient.back - 20, 11.5, 0.0, 0.66, blood)]  # descending aorta
    tubes += [(-6, -24, 15, 0.42, 0.66, blood), (-24, -12, 8.5, 0.45, 0.88, blood)]  # ascending aorta, upper cava
    tubes += [(14, -10, 12.5, 0.46, 0.575, blood), (6, patient.back - 32, 6.5, 0.0, 1.1, wall)]  # pulmonary, oesophagus
    tubes += [(-16, -14, 5.5, 0.72, 1.1, blood), (4, -4, 4.5, 0.72, 1.1, blood), (18, 2, 5.0, 0.72, 1.1, blood)]
    for tube_x, tube_y, radius, low, high, hu in tubes:
        ends = min(level - low, high - level) * patient.height
        canvas.fill(np.minimum(superellipse(x - tube_x, y - tube_y, radius + 1, radius, 2), ends), hu)
    if 0.64 < level < 0.72:  # the arch of the aorta
        canvas.fill(superellipse(0.8 * (x - 6) - 0.6 * (y - 4), 0.6 * (x - 6) + 0.8 * (y - 4), 15, 40, 2.2), blood)
    elif 0.46 < level < 0.545:  # pulmonary arteries cross to both hila
        canvas.fill(np.minimum(9 - np.abs(y + 2 - 0.1 * np.abs(x)), 46 - np.abs(x)), blood)
    spread = max(0.0, (0.575 - level) * 330)  # below the carina the windpipe divides
    if level > 0.44:
        radius = 8.5 if spread == 0 else 6.0
        for side in (-1, 1):
            pipe = superellipse(x - side * spread, y - 12 - 0.1 * spread, radius * (1 + 0.012 * spread), radius, 2)
            canvas.fill(pipe + 1.6, wall)
            canvas.fill(pipe, -995.0)


def _grain(rng: np.random.Generator, size: int, spacing: float) -> np.ndarray:
    """Noise with the spectrum of filtered back-projection (rising, then cut by a soft kernel), unit deviation."""
    frequency = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]
    radius = np.hypot(*frequency) / spacing  # cycles per mm
    response = np.sqrt(radius) * np.exp(-((radius / 0.32) ** 2))
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((size, size))) * response, s=(size, size))
    return (noise / noise.std()).astype(np.float32)

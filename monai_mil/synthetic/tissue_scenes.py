"""Slides on which tissue is hard to find, small and drawn, each with the tissue that is there."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

Colour = tuple[int, int, int]

MPP = 0.5
_NUCLEUS = 12  # side in pixels
_SEPTUM = 8
_ADIPOCYTE = 170


@dataclass(frozen=True)
class TissueScene:
    """Two islands of tissue on glass, and what is wrong with the slide.

    Attributes:
        tissue: RGB of what lies between the nuclei.
        nuclei: RGB of the nuclei.
        glass: RGB of the glass.
        contrast: 1 as the colours say, 0 as the glass.
        pen: RGB of two pen strokes, one of them round the larger island; None for none.
        border: RGB of what surrounds the scanned area at three sides; None for none.
        stained: RGB of a part of the nuclei and of what surrounds them, as DAB does; None for none.
        fat: whether one island consists of fat: vacuoles between thin septa.
        crop: whether all of the slide is tissue.
        blank: whether there is no tissue at all.
    """

    tissue: Colour = (200, 140, 185)
    nuclei: Colour = (110, 70, 150)
    glass: Colour = (243, 242, 244)
    contrast: float = 1.0
    pen: Colour | None = None
    border: Colour | None = None
    stained: Colour | None = None
    fat: bool = False
    crop: bool = False
    blank: bool = False

    def paint(self, size: tuple[int, int] = (4096, 3072), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Draw it at ``MPP`` micrometres a pixel.

        Args:
            size: width and height in pixels.
            seed: of everything random; the same seed gives the same pixels.

        Returns:
            The slide, uint8 ``[h, w, 3]``, and True where tissue is, bool ``[h, w]``; a vacuole of fat is tissue.
        """
        rng = np.random.default_rng(seed)
        width, height = size
        image = np.array(self.glass, np.float32) + rng.normal(0, 1.2, (height, width, 1)).astype(np.float32)
        islands = self._islands(size)
        painted = self._stained_tissue(rng, size)
        vacuoles = np.zeros((height, width), bool)
        if self.fat:
            islands[1], vacuoles = _fat(rng, islands[1])
        tissue = np.any(islands, axis=0)
        shown = tissue & ~vacuoles
        white = np.array(self.glass, np.float32)
        image[shown] = (white + (painted - white) * self.contrast)[shown]
        if self.pen is not None:
            strokes = _strokes(size)
            image[strokes] = np.array(self.pen) + rng.normal(0, 10, (int(strokes.sum()), 3))
        if self.border is not None:
            border = np.ones((height, width), bool)
            border[height // 10 :, width // 6 : -width // 8] = False
            image[border] = self.border
            tissue &= ~border
        return image.clip(0, 255).astype(np.uint8), tissue

    def _islands(self, size: tuple[int, int]) -> list[np.ndarray]:
        """Where the two islands are, bool ``[h, w]`` each."""
        width, height = size
        if self.crop or self.blank:
            return [np.full((height, width), self.crop), np.zeros((height, width), bool)]
        places = (((0.34, 0.47), (0.17, 0.27), 20), ((0.72, 0.62), (0.11, 0.22), -15))
        islands = []
        for (x, y), (across, down), angle in places:
            canvas = np.zeros((height, width), np.uint8)
            centre, axes = (int(x * width), int(y * height)), (int(across * width), int(down * height))
            islands.append(cv2.ellipse(canvas, centre, axes, angle, 0, 360, 1, -1).astype(bool))
        return islands

    def _stained_tissue(self, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        """Tissue all over, float32 ``[h, w, 3]``."""
        waves = _smooth(rng, size, 4, 2) * 24
        painted = np.array(self.tissue, np.float32) + waves[..., None] * np.array([0.6, 1, 0.5], np.float32)
        nuclei = _cells(rng, size, 0.12)
        painted[nuclei] = np.array(self.nuclei, np.float32) + rng.normal(0, 8, (int(nuclei.sum()), 1))
        if self.stained is not None:
            positive = _cells(rng, size, 0.5) & (_smooth(rng, size, 32, 4) > 0.08)
            painted[positive] = np.array(self.stained, np.float32) + rng.normal(0, 8, (int(positive.sum()), 1))
        return painted


SCENES = {
    **{
        f"{name} pen": TissueScene(contrast=0.5, pen=colour)
        for name, colour in {
            "black": (38, 36, 42),
            "blue": (40, 60, 170),
            "green": (30, 120, 70),
            "red": (200, 40, 50),
        }.items()
    },
    "violet border": TissueScene(border=(1, 0, 2)),
    "blue border": TissueScene(border=(6, 8, 28)),
    "green border": TissueScene(border=(10, 20, 12)),
    "IHC": TissueScene((222, 222, 232), (186, 190, 214), stained=(110, 70, 40)),
    "fat": TissueScene(fat=True),
    "grey": TissueScene((165, 165, 165), (85, 85, 85), (238, 238, 238)),
    "faint": TissueScene(contrast=0.25),
    "crop": TissueScene(crop=True),
    "blank": TissueScene(blank=True),
}
"""The scenes of ``scripts/experiment.py tissue_scenes`` by name."""


def _smooth(rng: np.random.Generator, size: tuple[int, int], step: int, sigma: float) -> np.ndarray:
    """Gaussian noise of the given step in pixels, blurred by ``sigma`` steps, float32 ``[h, w]``."""
    width, height = size
    noise = rng.normal(0, 1, (-(-height // step), -(-width // step))).astype(np.float32)
    return cv2.resize(cv2.GaussianBlur(noise, (0, 0), sigma), size)


def _cells(rng: np.random.Generator, size: tuple[int, int], share: float) -> np.ndarray:
    """Squares of the size of nuclei that cover a share of the slide, bool ``[h, w]``."""
    width, height = size
    drawn = rng.random((-(-height // _NUCLEUS), -(-width // _NUCLEUS))) < share
    return np.kron(drawn, np.ones((_NUCLEUS, _NUCLEUS), bool))[:height, :width]


def _fat(rng: np.random.Generator, island: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cells of fat, the polygons nearest to each of scattered points, of which most lie on an island.

    Returns:
        The cells with the septa between them, and their vacuoles, bool ``[h, w]`` each.
    """
    height, width = island.shape
    y, x = np.mgrid[0 : height : int(0.87 * _ADIPOCYTE), 0:width:_ADIPOCYTE].astype(np.float64)
    x[1::2] += _ADIPOCYTE / 2
    y, x = (axis + rng.uniform(-0.3, 0.3, axis.shape) * _ADIPOCYTE for axis in (y, x))
    points = np.ones((height, width), np.uint8)
    points[y.astype(int).clip(0, height - 1), x.astype(int).clip(0, width - 1)] = 0
    _, cells = cv2.distanceTransformWithLabels(points, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    area = np.bincount(cells.ravel())
    fat = (np.bincount(cells[island], minlength=len(area)) > area / 2)[cells]
    square = np.ones((_SEPTUM - 1, _SEPTUM - 1), np.uint8)
    cells = cells.astype(np.float32)
    septa = cv2.dilate(cells, square) != cv2.erode(cells, square)
    walled = cv2.dilate(fat.view(np.uint8), square).astype(bool)
    return walled, fat & ~septa


def _strokes(size: tuple[int, int]) -> np.ndarray:
    """A line above the islands and a ring round the larger one, bool ``[h, w]``."""
    width, height = size
    canvas = np.zeros((height, width), np.uint8)
    cv2.line(canvas, (int(0.37 * width), int(0.05 * height)), (int(0.95 * width), int(0.085 * height)), 1, height // 28)
    centre, axes = (int(0.34 * width), int(0.47 * height)), (int(0.26 * width), int(0.385 * height))
    return cv2.ellipse(canvas, centre, axes, 20, 0, 360, 1, height // 44).astype(bool)

"""Finding tissue: what takes more light away than the slide's own glass does, and the usual clean-up."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from monai_mil.slides.absorption import measure_absorption
from monai_mil.slides.pieces import without_small_pieces
from monai_mil.slides.slide import Slide

TISSUE_VERSION = 2
"""Of the algorithm; another one may give another mask of the same slide with the same settings."""
_FAINTEST, _DENSEST = 6, 20
_NO_PEAK, _END_OF_PEAK = 0.002, 0.02
_FEW, _MANY = 0.03, 0.97
_LARGEST_KEPT = 31 << 20  # glibc learns from what is below 32 MiB


@dataclass(frozen=True)
class TissueSettings:
    """How tissue is found; lengths are physical, so that they mean the same on every scanner.

    Attributes:
        threshold: the least share of light that tissue takes away, beside the slide's own glass and in the colour that
            it weakens most, 0 to 1; None finds it for each slide, between 0.02 and 0.08.
        mpp: micrometres per pixel of the mask; a slide that is coarser keeps its own.
        close_um: gaps up to this width in micrometres are closed.
        min_area_um2: pieces of tissue smaller than this are dropped.
        max_hole_um2: holes in tissue smaller than this are filled.
        pen: whether ink is left out: what is dense, smooth and black, blue, green or red.
    """

    threshold: float | None = None
    mpp: float = 8.0
    close_um: float = 40.0
    min_area_um2: float = 40_000.0
    max_hole_um2: float = 40_000.0
    pen: bool = True


@dataclass(frozen=True, eq=False)
class TissueMask:
    """Where a slide shows tissue.

    Attributes:
        mask: True on tissue, bool ``[h, w]``.
        downsample: level-0 pixels per mask pixel in x and y.
        threshold: the share of light that was taken as threshold, 0 to 1; None of a mask of the user's.
        settings: how it was found, likewise.
    """

    mask: np.ndarray
    downsample: tuple[float, float]
    threshold: float | None
    settings: TissueSettings | None = field(default_factory=TissueSettings)

    @property
    def fraction(self) -> float:
        """Share of the slide's area that is tissue."""
        return float(self.mask.mean())

    @property
    def remarks(self) -> tuple[str, ...]:
        """What to look at: very little of the slide is tissue, or nearly all of it."""
        if _FEW <= self.fraction <= _MANY:
            return ()
        return (f"{self.fraction:.1%} of the slide is taken for tissue; look at its tissue mask",)


def segment_tissue(slide: Slide, settings: TissueSettings = TissueSettings(), *, device: str = "cpu") -> TissueMask:
    """Find the tissue of a slide.

    Args:
        slide: the open slide.
        settings: threshold, resolution and clean-up.
        device: ``"cpu"`` (OpenCV), or ``"cuda"`` (cuCIM's scikit-image, the same mask).

    Returns:
        The mask; empty where the slide is blank.

    Examples:
        >>> import numpy as np
        >>> from monai_mil.slides import TissueSettings, open_slide, segment_tissue, write_pyramid
        >>> image = np.full((1024, 1024, 3), 240, np.uint8)
        >>> image[:, :512] = (180, 60, 140)
        >>> write_pyramid(folder / "S-1.tif", image, mpp=0.5)
        >>> mask = segment_tissue(open_slide(folder / "S-1.tif"), TissueSettings(mpp=4.0))
        >>> round(mask.fraction, 2)
        0.5
    """
    _keep_freed_memory()
    image, downsample = _overview(slide, settings.mpp)
    pixel_um2 = downsample[0] * downsample[1] * slide.mpp**2
    close_px = int(settings.close_um / 2 / pixel_um2**0.5)
    backend: Any = _OnGPU() if device.startswith("cuda") else _OnCPU()

    absorption = measure_absorption(image, backend, pen=settings.pen)
    if settings.threshold is None:
        threshold = choose_threshold(absorption.histogram())
    else:
        threshold = 255 * settings.threshold
    seen = absorption.stands_out(threshold)
    mask = backend.close(backend.from_numpy(seen), close_px) & ~backend.from_numpy(absorption.foreign)
    if mask.any():  # holes first: of fat little else is seen than septa
        mask = ~backend.without_small(~mask, settings.max_hole_um2 / pixel_um2, connectivity=1)
        # A vacuole of fat is as even as padding, and filled; a stroke of a pen within tissue is not.
        mask &= ~backend.from_numpy(absorption.never)
    mask = backend.without_small(mask, settings.min_area_um2 / pixel_um2, connectivity=2)
    return TissueMask(backend.to_numpy(mask), downsample, threshold / 255, settings)


def choose_threshold(histogram: np.ndarray) -> float:
    """Otsu's threshold, but not so low that glass is above it nor so high that pale tissue is below it.

    Beside dense tissue Otsu's threshold parts dense from pale. So it is at most twice where the peak of the glass
    ends, and at most ``_DENSEST``.

    Args:
        histogram: counts of the absorbed light, 0 to 255.
    """
    glass = int(histogram[: _FAINTEST + 1].argmax())
    if histogram[glass] <= _NO_PEAK * histogram.sum():
        return float(_FAINTEST)
    ends = np.flatnonzero(histogram[glass:] <= _END_OF_PEAK * histogram[glass])
    highest = float(np.clip(2 * (glass + ends[0]), _FAINTEST, _DENSEST)) if len(ends) else float(_DENSEST)
    return float(np.clip(otsu(histogram, 0), _FAINTEST, highest))


def otsu(histogram: np.ndarray, min_contrast: float) -> float:
    """Otsu's threshold, the ``t`` that maximises the variance between the classes ``<= t`` and ``> t``.

    Args:
        histogram: counts of the values 0 to 255.
        min_contrast: least difference of the two classes' means.

    Returns:
        The threshold; infinity if the classes differ by less than ``min_contrast``.
    """
    counts = histogram.astype(np.float64)
    values = np.arange(len(counts))
    below, above = np.cumsum(counts), counts.sum() - np.cumsum(counts)
    sum_below = np.cumsum(counts * values)
    mean_below = sum_below / np.maximum(below, 1)
    mean_above = (sum_below[-1] - sum_below) / np.maximum(above, 1)
    between = below * above * (mean_above - mean_below) ** 2
    best = int(between.argmax())
    return float(best) if mean_above[best] - mean_below[best] >= min_contrast else float("inf")


def _overview(slide: Slide, mpp: float) -> tuple[np.ndarray, tuple[float, float]]:
    """The slide averaged down to ``mpp``, whatever levels it stores, so that filters cover the same area everywhere."""
    downsample = max(1.0, mpp / slide.mpp)
    width, height = (max(1, round(side / downsample)) for side in slide.size)
    image = slide.read_scaled((width, height))
    return image, (slide.size[0] / width, slide.size[1] / height)


def _keep_freed_memory() -> None:
    """Let freed arrays up to the size of an overview be used again by this process.

    glibc gives them back to the system until it has seen so large a one freed, and fetching the pages again is a
    quarter of a segmentation's time. The array's own pages are never touched, so it costs no memory.
    """
    np.empty(_LARGEST_KEPT, np.uint8)


class _OnCPU:
    """The steps in OpenCV, which is faster than scikit-image on these and gives the same result."""

    def from_numpy(self, values: np.ndarray) -> np.ndarray:
        return values

    def saturation(self, image: np.ndarray) -> np.ndarray:
        import cv2

        return cv2.extractChannel(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), 1)

    def median(self, values: np.ndarray, side: int) -> np.ndarray:
        import cv2

        return cv2.medianBlur(values, side) if side > 1 else values

    def close(self, mask: np.ndarray, radius: int) -> np.ndarray:
        import cv2

        if radius < 1 or not mask.any():
            return mask
        square = np.ones((2 * radius + 1,) * 2, np.uint8)
        padded = cv2.copyMakeBorder(mask.view(np.uint8), *(radius,) * 4, cv2.BORDER_CONSTANT, value=0)
        closed = cv2.erode(cv2.dilate(padded, square), square)
        return closed.view(bool)[radius:-radius, radius:-radius]

    def without_small(self, mask: np.ndarray, min_area: float, connectivity: int) -> np.ndarray:
        return without_small_pieces(mask, min_area, connectivity)

    def to_numpy(self, mask: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(mask)


class _OnGPU:
    """The same steps in CuPy and cuCIM's scikit-image, bit for bit."""

    def __init__(self) -> None:
        import cupy

        self.cupy = cupy

    def from_numpy(self, values: np.ndarray) -> Any:
        return self.cupy.asarray(values)

    def saturation(self, image: np.ndarray) -> Any:
        pixels = self.cupy.asarray(image)
        return saturation_by_table(pixels.max(2), pixels.min(2), self.cupy)

    def median(self, values: Any, side: int) -> Any:
        from cucim.skimage.filters import median

        if side < 2:
            return values
        return median(self.cupy.asarray(values), self.cupy.ones((side, side), bool), mode="nearest")

    def close(self, mask: Any, radius: int) -> Any:
        from cucim.skimage.morphology import dilation, erosion

        if radius < 1:
            return mask
        square = self.cupy.ones((2 * radius + 1,) * 2, bool)
        padded = self.cupy.pad(mask.view(self.cupy.uint8), radius)
        return erosion(dilation(padded, square), square)[radius:-radius, radius:-radius].astype(bool)

    def without_small(self, mask: Any, min_area: float, connectivity: int) -> Any:
        from cucim.skimage.measure import label

        labels = label(mask, connectivity=connectivity)
        large = self.cupy.bincount(labels.ravel()) >= min_area
        large[0] = False
        return large[labels]

    def to_numpy(self, mask: Any) -> np.ndarray:
        return mask.get()


def saturation_by_table(largest: Any, smallest: Any, xp: Any = np) -> Any:
    """HSV saturation ``255 (max - min) / max`` in the fixed-point arithmetic of OpenCV, uint8, in NumPy or CuPy."""
    table = xp.zeros(256, xp.int32)
    table[1:] = xp.rint((255 << 12) / xp.arange(1, 256)).astype(xp.int32)
    difference = largest.astype(xp.int32) - smallest
    return ((difference * table[largest] + (1 << 11)) >> 12).astype(xp.uint8)

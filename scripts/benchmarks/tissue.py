"""From a slide's file to its tissue mask and tile coordinates, opening and reading included."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from benchmarks.harness import Figure, cpu_seconds
from benchmarks.tiles import SIZE, write_synthetic_slide
from monai_mil.slides import TileGrid, TissueMask, TissueSettings, open_slide, segment_tissue


def run() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.tif"
        write_synthetic_slide(path)
        huge, tissue = _huge()
        seconds = cpu_seconds(
            {
                "ours": lambda: _tissue_and_grid(path),
                "scikit-image": lambda: _by_scikit_image(path),
                "grid of 100k": lambda: TileGrid.cover(huge, tissue),
            },
            rounds=5,
        )
        return [
            Figure("tissue and coordinates of a 20k x 20k slide, CPU", 1e3 * seconds["ours"], "ms", "<= 30"),
            Figure("the same steps in scikit-image, mask alone", 1e3 * seconds["scikit-image"], "ms"),
            Figure("coordinates of a 100k x 100k slide, CPU", 1e3 * seconds["grid of 100k"], "ms", "<= 20"),
            Figure("tiles of it", len(TileGrid.cover(huge, tissue)), "tiles"),
        ]


def _tissue_and_grid(path: Path) -> TileGrid:
    with open_slide(path) as slide:
        return TileGrid.cover(slide, segment_tissue(slide))


def _by_scikit_image(path: Path) -> np.ndarray:
    from skimage import color, filters, measure, morphology

    with open_slide(path) as slide:
        image = slide.read_scaled((SIZE // 16, SIZE // 16))
    saturation = np.uint8(color.rgb2hsv(image)[..., 1] * 255 + 0.5)
    saturation = filters.median(saturation, np.ones((5, 5)), mode="nearest")
    mask = morphology.closing(saturation > filters.threshold_otsu(saturation), np.ones((5, 5)))
    for value, connectivity in ((True, 2), (False, 1)):
        labels = measure.label(mask == value, connectivity=connectivity)
        small = np.bincount(labels.ravel()) < 625
        small[0] = False
        mask[small[labels]] = not value
    return mask


def _huge() -> tuple[SimpleNamespace, TissueMask]:
    """What a grid needs to know of a 100k x 100k slide at 0.5 mpp, 38 % of it tissue in blobs."""
    import cv2

    noise = np.random.default_rng(0).standard_normal((1563, 1563)).astype(np.float32)
    field = cv2.GaussianBlur(noise, (0, 0), 25)
    mask = field > np.quantile(field, 0.62)
    return SimpleNamespace(size=(100_000, 100_000), mpp=0.5), TissueMask(
        mask, (100_000 / 1563, 100_000 / 1563), 0.1, TissueSettings()
    )

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from monai_mil.slides import TissueSettings, open_slide, segment_tissue, write_pyramid
from monai_mil.slides.tissue import _OnCPU, otsu, saturation_by_table
from monai_mil.synthetic.tissue_scenes import SCENES, TissueScene
from tests.conftest import shared

TISSUE, BACKGROUND = (190, 90, 150), (243, 243, 245)


def write(path: Path, mask: np.ndarray, noise: float = 3.0, **options: float) -> Path:
    """A slide at 1 mpp with tissue where ``mask`` (8 px a pixel) is True."""
    large = cv2.resize(mask.astype(np.uint8), None, fx=8, fy=8, interpolation=cv2.INTER_NEAREST)[..., None]
    image = np.where(large, TISSUE, BACKGROUND) + np.random.default_rng(0).normal(0, noise, (*large.shape[:2], 3))
    write_pyramid(path, image.clip(0, 255).astype(np.uint8), mpp=1.0, **options)
    return path


@pytest.fixture
def blobs() -> np.ndarray:
    mask = np.zeros((150, 200), bool)
    mask[20:80, 30:120] = True
    mask[40:43, 50:53] = False  # a hole of 576 square micrometres
    mask[30:70, 80:110] = False  # one of 76,800
    mask[120:124, 180:184] = True  # a speck of 1024
    mask[100:140, 20:90] = True
    return mask


def test_mask_is_the_tissue_without_specks_and_pinholes(tmp_path: Path, blobs: np.ndarray) -> None:
    expected = blobs.copy()
    expected[40:43, 50:53] = True
    expected[120:124, 180:184] = False
    with open_slide(write(tmp_path / "a.tif", blobs, downsamples=(1, 8))) as slide:
        found = segment_tissue(slide)
    assert found.mask.shape == blobs.shape
    assert found.downsample == (8.0, 8.0)
    assert (found.mask ^ expected).mean() < 0.01
    assert not found.mask[118:126, 178:186].any()
    assert found.mask[38:45, 48:55].all()
    assert not found.mask[40:60, 90:100].any()


def test_the_mask_hardly_depends_on_the_levels_a_slide_has(tmp_path: Path, blobs: np.ndarray) -> None:
    masks = []
    for name, downsamples in (("one", (1,)), ("three", (1, 2, 8)), ("two", (1, 4))):
        with open_slide(write(tmp_path / f"{name}.tif", blobs, downsamples=downsamples)) as slide:
            masks.append(segment_tissue(slide).mask)
    for mask in masks[1:]:
        assert mask.shape == masks[0].shape
        assert (mask ^ masks[0]).mean() < 0.01


@pytest.mark.parametrize("noise", [0.0, 3.0, 8.0])
def test_a_blank_slide_has_no_tissue(tmp_path: Path, noise: float) -> None:
    with open_slide(write(tmp_path / "a.tif", np.zeros((100, 100), bool), noise)) as slide:
        assert not segment_tissue(slide).mask.any()


def test_a_given_threshold_replaces_otsu(tmp_path: Path, blobs: np.ndarray) -> None:
    with open_slide(write(tmp_path / "a.tif", blobs)) as slide:
        assert segment_tissue(slide, TissueSettings(threshold=0.99)).fraction == 0
        assert segment_tissue(slide, TissueSettings(threshold=0.2)).fraction == pytest.approx(blobs.mean(), abs=0.02)


def test_otsu_maximises_the_variance_between_classes() -> None:
    from skimage.filters import threshold_otsu

    values = np.random.default_rng(0).normal([[60], [140]], 12, (2, 5000)).clip(0, 255).astype(np.uint8)
    histogram = np.bincount(values.ravel(), minlength=256)
    assert otsu(histogram, 0) == threshold_otsu(hist=(histogram, np.arange(256)))
    assert otsu(histogram, 100) == float("inf")


def test_the_gpu_s_saturation_is_opencv_s() -> None:
    largest, smallest = np.meshgrid(np.arange(256), np.arange(256))
    possible = smallest <= largest
    image = np.stack([largest[possible], smallest[possible], smallest[possible]], -1).astype(np.uint8)[None]
    np.testing.assert_array_equal(_OnCPU().saturation(image), saturation_by_table(image.max(2), image.min(2)))


def test_clean_up_steps_are_scikit_image_s() -> None:
    from skimage import filters, measure, morphology

    values = (np.random.default_rng(0).random((90, 110)) * 255).astype(np.uint8)
    cpu = _OnCPU()
    median = cpu.median(values, 5)
    np.testing.assert_array_equal(median, filters.median(values, np.ones((5, 5)), mode="nearest"))
    mask = median > 140
    square = np.ones((5, 5), bool)
    padded = np.pad(mask, 2)
    closed = morphology.erosion(morphology.dilation(padded, square), square)[2:-2, 2:-2]
    np.testing.assert_array_equal(cpu.close(mask, 2), closed)
    for connectivity in (1, 2):
        labels = measure.label(mask, connectivity=connectivity)
        large = np.bincount(labels.ravel()) >= 20
        large[0] = False
        np.testing.assert_array_equal(cpu.without_small(mask, 20, connectivity), large[labels])


def test_real_slides_have_plausible_tissue() -> None:
    for name, share in (("CMU-1-Small-Region_pyramid.tif", 0.35), ("multiframe_camelyon_challenge_image.dcm", 0.21)):
        with open_slide(shared(f"data/wsi/{name}")) as slide:
            assert segment_tissue(slide).fraction == pytest.approx(share, abs=0.05)


def test_the_mask_has_the_resolution_asked_for_whatever_levels_are_stored(tmp_path):
    rng = np.random.default_rng(0)
    image = np.full((2400, 3200, 3), 245, np.uint8)
    cv2.ellipse(image, (1500, 1200), (900, 700), 20, 0, 360, (200, 120, 180), -1)
    image = np.clip(image + rng.integers(-6, 7, image.shape), 0, 255).astype(np.uint8)
    masks = []
    for name, downsamples in (("flat", [1]), ("halves", [1, 2, 4, 8, 16]), ("quarters", [1, 4, 16])):
        write_pyramid(tmp_path / f"{name}.tif", image, mpp=0.4, compression="lzw", downsamples=downsamples)
        with open_slide(tmp_path / f"{name}.tif") as slide:
            masks.append(segment_tissue(slide))
    for mask in masks:
        assert mask.mask.shape == masks[0].mask.shape
        assert mask.downsample == masks[0].downsample
        assert mask.downsample[0] * 0.4 == pytest.approx(8.0, rel=0.01)
        assert (mask.mask != masks[0].mask).mean() < 1e-3


@pytest.mark.parametrize("name", SCENES)
def test_tissue_is_found_on_slides_on_which_it_is_hard_to_find(tmp_path: Path, name: str) -> None:
    scene = SCENES[name]
    size = (2048, 1536) if scene.pen is None and not scene.fat else (4096, 3072)
    image, truth = scene.paint(size, seed=3)
    write_pyramid(tmp_path / "slide.tif", image, mpp=0.5)
    with open_slide(tmp_path / "slide.tif") as slide:
        found = segment_tissue(slide)
    if scene.blank:
        assert found.mask.sum() == 0
        return
    share = cv2.resize(truth.astype(np.float32), found.mask.shape[::-1], interpolation=cv2.INTER_AREA)
    right = (found.mask & (share > 0.5)).sum()
    assert right / (share > 0.5).sum() >= 0.95
    assert right / found.mask.sum() >= 0.9
    assert bool(found.remarks) == scene.crop


GREY = {"tissue": (165, 165, 165), "nuclei": (85, 85, 85), "glass": (238, 238, 238)}


@pytest.mark.parametrize("look", [{"contrast": 0.35}, {"contrast": 0.5}, GREY], ids=["faint", "pale", "grey"])
def test_a_crop_of_pale_tissue_is_not_taken_for_its_own_glass(tmp_path: Path, look: dict[str, Any]) -> None:
    write_pyramid(tmp_path / "slide.tif", TissueScene(crop=True, **look).paint((1024, 768))[0], mpp=0.5)
    with open_slide(tmp_path / "slide.tif") as slide:
        assert segment_tissue(slide).fraction > 0.99


@pytest.mark.parametrize("pen", [(40, 42, 60), (67, 41, 161), (30, 120, 70), (210, 40, 50)])
def test_a_stroke_of_three_pixels_of_the_mask_is_left_out(tmp_path: Path, pen: tuple[int, int, int]) -> None:
    image, truth = TissueScene(contrast=0.5, pen=pen).paint((2048, 1536))
    write_pyramid(tmp_path / "slide.tif", image, mpp=0.5)
    with open_slide(tmp_path / "slide.tif") as slide:
        found = segment_tissue(slide).mask
    share = cv2.resize(truth.astype(np.float32), found.shape[::-1], interpolation=cv2.INTER_AREA)
    assert (found & (share > 0.5)).sum() >= 0.95 * max(found.sum(), (share > 0.5).sum())


def test_a_small_piece_of_fat_is_kept_though_its_septa_are_little(tmp_path: Path) -> None:
    image, truth = TissueScene(fat=True).paint((2048, 1536), seed=1)
    write_pyramid(tmp_path / "slide.tif", image, mpp=0.5)
    with open_slide(tmp_path / "slide.tif") as slide:
        found = segment_tissue(slide).mask
    share = cv2.resize(truth.astype(np.float32), found.shape[::-1], interpolation=cv2.INTER_AREA)
    assert (found & (share > 0.5)).sum() >= 0.95 * (share > 0.5).sum()


def test_little_tissue_is_remarked(tmp_path: Path) -> None:
    image = np.full((2000, 2000, 3), 243, np.uint8)
    image[900:1100, 900:1100] = (180, 90, 150)
    image[900:1100, 900:1100] += np.random.default_rng(0).integers(0, 40, (200, 200, 1), np.uint8)
    write_pyramid(tmp_path / "slide.tif", image, mpp=2.0)
    with open_slide(tmp_path / "slide.tif") as slide:
        (remark,) = segment_tissue(slide).remarks
    assert "1.0% of the slide" in remark

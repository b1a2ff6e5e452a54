from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import tifffile

from monai_mil.slides import write_pyramid


@pytest.fixture
def image() -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 255, (1023, 751, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 3)


def test_lzw_is_lossless_for_tifffile_openslide_and_cucim(tmp_path: Path, image: np.ndarray) -> None:
    from cucim import CuImage

    path = tmp_path / "a.tif"
    write_pyramid(path, image, mpp=0.5, compression="lzw", downsamples=(1, 4))
    with openslide.OpenSlide(path) as slide:
        assert slide.level_dimensions == ((751, 1023), (188, 256))
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)
        by_openslide = np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3]
    by_cucim = CuImage(str(path))
    assert by_cucim.spacing()[:2] == pytest.approx([0.5, 0.5])
    np.testing.assert_array_equal(tifffile.imread(path), image)
    np.testing.assert_array_equal(by_openslide, image)
    np.testing.assert_array_equal(np.asarray(by_cucim.read_region((0, 0), (751, 1023))), image)


def test_jpeg_keeps_the_colours(tmp_path: Path) -> None:
    flat = np.full((300, 300, 3), (200, 60, 120), np.uint8)
    write_pyramid(tmp_path / "a.tif", flat, mpp=0.5)
    assert np.abs(tifffile.imread(tmp_path / "a.tif").astype(int) - flat).max() <= 2


def test_levels_are_block_means(tmp_path: Path, image: np.ndarray) -> None:
    write_pyramid(tmp_path / "a.tif", image, mpp=0.5, compression="lzw", downsamples=(1, 3))
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        level = tiff.series[0].levels[1].asarray()
    mean = image[:1023, :750].reshape(341, 3, 250, 3, 3).mean((1, 3))
    assert np.abs(level[:, :250] - mean).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("band", [1, 100, 256, 700])
def test_bands_of_any_height_give_the_file_of_the_whole_array(tmp_path: Path, image: np.ndarray, band: int) -> None:
    write_pyramid(tmp_path / "whole.tif", image, mpp=0.5, downsamples=(1, 4, 16))
    bands = (image[y : y + band] for y in range(0, len(image), band))
    write_pyramid(tmp_path / "bands.tif", bands, size=(751, 1023), mpp=0.5, downsamples=(1, 4, 16))
    assert (tmp_path / "whole.tif").read_bytes() == (tmp_path / "bands.tif").read_bytes()


def test_ome_carries_pixel_size_levels_and_description(tmp_path: Path, image: np.ndarray) -> None:
    write_pyramid(tmp_path / "a.ome.tif", image, mpp=0.25, ome=True, downsamples=(1, 2), description="attention")
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as tiff:
        assert tiff.ome_metadata is not None
        assert 'PhysicalSizeX="0.25"' in tiff.ome_metadata
        assert "attention" in tiff.ome_metadata
        assert [level.shape for level in tiff.series[0].levels] == [(1023, 751, 3), (512, 376, 3)]


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="the bands hold 100 rows, the image 1023"):
        write_pyramid(tmp_path / "a.tif", [image[:100]], size=(751, 1023), mpp=0.5)
    with pytest.raises(ValueError, match="expected uint8"):
        write_pyramid(tmp_path / "a.tif", image.astype(np.float32), mpp=0.5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("downsamples", [(2, 4), (1, 4, 6), (1, 1)])
def test_downsamples_must_ascend_from_one_in_multiples(
    tmp_path: Path, image: np.ndarray, downsamples: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="must ascend from 1"):
        write_pyramid(tmp_path / "a.tif", image, mpp=0.5, downsamples=downsamples)


def test_a_binary_image_stays_binary_in_all_levels(tmp_path: Path) -> None:
    image = np.zeros((2000, 3000, 3), np.uint8)
    image[500:1507, 203:1800] = 255
    path = tmp_path / "mask.tif"
    write_pyramid(path, image, mpp=8.0, compression="lzw", binary=True)
    with tifffile.TiffFile(path) as file:
        levels = [page.asarray() for page in file.pages]
    assert len(levels) > 1
    for factor, level in zip((1, 4, 16), levels, strict=False):
        assert set(np.unique(level)) == {0, 255}
        assert np.count_nonzero(level) * factor**2 == pytest.approx(np.count_nonzero(image), rel=0.01)

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from monai_mil.slides import open_slide, slide_id, write_pyramid
from tests.slides.conftest import textured


def test_outside_the_slide_is_white(lossless_slide: Path, image: np.ndarray) -> None:
    with open_slide(lossless_slide) as slide:
        corner = slide.read(-10, -20, (50, 60))
        assert (corner[:20] == 255).all()
        assert (corner[:, :10] == 255).all()
        np.testing.assert_array_equal(corner[20:, 10:], image[:40, :40])
        far = slide.read(1490, 1200, (20, 10))
        np.testing.assert_array_equal(far[:3, :11], image[1200:, 1490:])
        assert (far[3:] == 255).all()
        assert (slide.read(99_999, 0, (5, 5)) == 255).all()


@pytest.mark.parametrize("level", [1, 2])
def test_every_pixel_of_a_level_is_found_from_its_level_0_position(lossless_slide: Path, level: int) -> None:
    with tifffile.TiffFile(lossless_slide) as tiff:
        stored = tiff.pages[level].asarray()
    height, width = stored.shape[:2]
    with open_slide(lossless_slide) as slide:
        assert slide.reader == "cucim"
        for x in range(0, width - 8, 7):
            y = x % (height - 8)
            scale_x, scale_y = slide.axis_downsamples(level)
            for corner in ((int(x * scale_x), int(y * scale_y)), (x * scale_x, y * scale_y)):
                np.testing.assert_array_equal(slide.read(*corner, (8, 8), level), stored[y : y + 8, x : x + 8])


def test_cucim_and_stored_tiles_agree_when_the_downsample_is_not_whole(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "a.tif", textured(4095, 300), mpp=0.25, downsamples=(1, 4))
    with open_slide(tmp_path / "a.tif") as slide:
        assert slide.levels[1].downsample != 4
        assert slide.tiff is not None
        for x in range(0, 1000, 13):
            np.testing.assert_array_equal(slide.read_level(x, 9, (16, 16), 1), slide.tiff.read(1, x, 9, 16, 16))


def test_reads_are_the_callers_own(lossless_slide: Path) -> None:
    with open_slide(lossless_slide) as slide:
        first = slide.read(0, 0, (64, 64))
        kept = first.copy()
        for x in range(64, 1024, 64):
            slide.read(x, 0, (64, 64))
        np.testing.assert_array_equal(first, kept)
        first[:] = 0


def test_thumbnail_is_the_mean_of_what_it_shows(lossless_slide: Path, image: np.ndarray) -> None:
    with open_slide(lossless_slide) as slide:
        small = slide.thumbnail(100)
        assert small.shape == (80, 100, 3)
        assert abs(small.mean() - image.mean()) < 1
        assert slide.thumbnail(10_000).shape == image.shape


def test_scaling_in_bands_changes_nothing(lossless_slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_slide(lossless_slide) as slide:
        whole = slide.read_scaled((300, 240))
        monkeypatch.setattr("monai_mil.slides.slide._BAND_PIXELS", 2**14)
        np.testing.assert_array_equal(slide.read_scaled((300, 240)), whole)


@pytest.mark.parametrize(
    ("path", "name"), [("a/b.svs", "b"), ("d.ome.tif", "d"), ("D.OME.TIFF", "D"), ("x.y.svs", "x.y"), ("z", "z")]
)
def test_slide_id_is_the_file_name_without_suffix(path: str, name: str) -> None:
    assert slide_id(path) == name

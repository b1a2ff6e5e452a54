from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import pytest
import tifffile

from monai_mil.errors import SlideReadError
from monai_mil.slides import open_slide, slide_id, write_pyramid
from tests.processes import run
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


def test_a_slide_tells_what_it_is(lossless_slide: Path) -> None:
    with open_slide(lossless_slide) as slide:
        assert repr(slide) == f"Slide('{lossless_slide}', 1501 x 1203 px, 0.5 mpp, read by cucim)"


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


@pytest.mark.usefixtures("fork_server")
def test_a_level_that_is_far_too_fine_is_averaged_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "single.tif"
    write_pyramid(path, (np.full((512, 16384, 3), 200, np.uint8) for _ in range(32)), size=(16384, 16384), mpp=0.25)
    script = f"""
    import resource
    import cv2
    from monai_mil.slides import open_slide
    with open_slide({str(path)!r}) as slide:
        slide.levels = slide.levels[:1]
        start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert slide.thumbnail(500).shape == (500, 500, 3)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) // 1024)
    """
    done = run("-c", textwrap.dedent(script))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 200, "MiB for a level of 768 MiB"


def test_a_default_pixel_size_never_replaces_the_file_s_own(jpeg_slide: Path, tmp_path: Path) -> None:
    with open_slide(jpeg_slide, default_mpp=0.25) as slide:
        assert slide.mpp == pytest.approx(0.5)
    with open_slide(jpeg_slide, mpp=0.25) as slide:
        assert slide.mpp == 0.25
    tifffile.imwrite(tmp_path / "no_mpp.tif", textured(300, 300), tile=(256, 256), photometric="rgb", metadata=None)
    with open_slide(tmp_path / "no_mpp.tif", default_mpp=0.25) as slide:
        assert slide.mpp == 0.25


def test_slides_leave_no_file_open_whether_they_can_be_read_or_not(tmp_path: Path, jpeg_slide: Path) -> None:
    open_files = Path("/proc/self/fd")
    if not open_files.exists():
        pytest.skip("this system does not list open files")
    tifffile.imwrite(tmp_path / "strips.tif", textured(64, 64), photometric="rgb", metadata=None)
    tifffile.imwrite(tmp_path / "no_mpp.tif", textured(64, 64), tile=(64, 64), photometric="rgb", metadata=None)
    errors = []

    def open_all() -> int:
        with open_slide(jpeg_slide) as slide:
            slide.read(0, 0, (8, 8))
        for name in ("strips.tif", "no_mpp.tif"):
            try:
                open_slide(tmp_path / name)
            except SlideReadError as error:
                errors.append(error)  # a traceback that is kept keeps no file open
        return len(list(open_files.iterdir()))

    before = open_all()
    assert max(open_all() for _ in range(5)) <= before

"""ICC profiles: found, kept, and applied on every way that pixels take."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from monai_mil.errors import SlideReadError
from monai_mil.slides import Slide, TileGrid, open_slide, stream_tiles
from tests.conftest import shared
from tests.slides.conftest import textured
from tests.slides.drawn import FLAGGED, Page, reduced, write_pages
from tests.slides.test_dicom import tiles, write

IMAGE = textured(300, 200, seed=8)


def a_profile() -> bytes:
    """An RGB profile whose colours are not sRGB's: sRGB with red and blue primaries exchanged."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(data[128:132], "big")
    entries = {bytes(data[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, blue = entries[b"rXYZ"], entries[b"bXYZ"]
    data[red + 4 : red + 12], data[blue + 4 : blue + 12] = data[blue + 4 : blue + 12], data[red + 4 : red + 12]
    return bytes(data)


PROFILE = a_profile()


def in_srgb(image: np.ndarray) -> np.ndarray:
    profile = ImageCms.ImageCmsProfile(io.BytesIO(PROFILE))
    converted = ImageCms.profileToProfile(Image.fromarray(image), profile, ImageCms.createProfile("sRGB"))
    assert converted is not None
    return np.asarray(converted)


@pytest.fixture(params=["lzw", "deflate"])
def slide_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Of two levels; cuCIM would read one of them."""
    options = {"compression": request.param, "iccprofile": PROFILE}
    pages = [Page(IMAGE, options=options), Page(reduced(IMAGE, 2), 1.0, FLAGGED | options)]
    return write_pages(tmp_path / "a.tif", pages)


def test_the_profile_is_told_and_pixels_stay_as_they_are_by_default(slide_path: Path) -> None:
    with open_slide(slide_path) as slide:
        assert slide.icc_profile == PROFILE
        np.testing.assert_array_equal(slide.read(0, 0, slide.size), IMAGE)


def test_applied_it_changes_the_pixels_of_every_way(slide_path: Path) -> None:
    expected, coarse = in_srgb(IMAGE), in_srgb(reduced(IMAGE, 2))
    assert np.abs(expected.astype(int) - IMAGE).max() > 20
    with open_slide(slide_path, icc="apply") as slide:
        np.testing.assert_array_equal(slide.read(0, 0, slide.size), expected)
        np.testing.assert_array_equal(slide.read_level(0, 0, (150, 100), 1), coarse)
        np.testing.assert_array_equal(slide.thumbnail(150), coarse)
        assert (slide.read(300, 200, (5, 5)) == 255).all()
        grid = TileGrid.cover(slide, None, tile_size=100, target_mpp=0.5)
        tiles = torch.cat(list(stream_tiles(slide, grid))).permute(0, 2, 3, 1).numpy()
        for (x, y), tile in zip(grid.coords, tiles, strict=True):
            np.testing.assert_array_equal(tile, expected[y : y + 100, x : x + 100])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_applied_it_changes_the_tiles_of_a_gpu(tmp_path: Path) -> None:
    options = {"compression": "jpeg", "iccprofile": PROFILE}
    path = write_pages(tmp_path / "a.tif", [Page(IMAGE, options=options)])
    with open_slide(path, icc="apply") as slide:
        grid = TileGrid.cover(slide, None, tile_size=100, target_mpp=0.5)
        on_gpu = torch.cat(list(stream_tiles(slide, grid, device="cuda"))).cpu()
        assert torch.equal(on_gpu, torch.cat(list(stream_tiles(slide, grid))))


def pixels_of(slide: Slide) -> np.ndarray:
    return slide.read(0, 0, slide.size)


def test_openslide_s_profile_is_told_and_applied() -> None:
    with open_slide(shared("data/wsi/boxes_0.dcm")) as plain, open_slide(plain.path, icc="apply") as applied:
        assert plain.icc_profile is not None
        assert plain.icc_profile == applied.icc_profile
        source = ImageCms.ImageCmsProfile(io.BytesIO(plain.icc_profile))
        image = Image.fromarray(pixels_of(plain))
        expected = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"))
        np.testing.assert_array_equal(pixels_of(applied), np.asarray(expected))


def test_dicom_that_openslide_does_not_show_has_its_profile_applied(tmp_path: Path) -> None:
    optical_path = Dataset()
    optical_path.ICCProfile = PROFILE
    frames = [tile.tobytes() for tile in tiles(IMAGE)]
    planes = {"size": (300, 200), "TotalPixelMatrixFocalPlanes": 2, "OpticalPathSequence": [optical_path]}
    path = write(tmp_path / "a.dcm", frames * 2, ExplicitVRLittleEndian, "RGB", **planes)
    with open_slide(path, icc="apply") as slide:
        assert slide.reader == "pydicom"
        np.testing.assert_array_equal(pixels_of(slide), in_srgb(IMAGE))


def test_a_slide_without_a_profile_stays_as_it_is_and_says_so(tmp_path: Path) -> None:
    with open_slide(write_pages(tmp_path / "a.tif", [Page(IMAGE)]), icc="apply") as slide:
        assert slide.icc_profile is None
        assert "a.tif': has no ICC profile" in slide.remarks[0]
        np.testing.assert_array_equal(pixels_of(slide), IMAGE)


def test_nothing_but_apply_can_be_done_with_a_profile(slide_path: Path) -> None:
    with pytest.raises(SlideReadError, match=r"a.tif': icc 'embed' is not 'apply'"):
        open_slide(slide_path, icc="embed")  # type: ignore[arg-type]


def test_a_damaged_profile_is_an_error_only_where_it_is_wanted(tmp_path: Path) -> None:
    path = write_pages(tmp_path / "a.tif", [Page(IMAGE, options={"iccprofile": b"no profile at all"})])
    with open_slide(path) as slide:
        np.testing.assert_array_equal(pixels_of(slide), IMAGE)
    with pytest.raises(SlideReadError, match=r"a.tif': its ICC profile cannot be applied .*leave out --icc apply"):
        open_slide(path, icc="apply")

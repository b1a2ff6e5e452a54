"""Every photometric interpretation with every codec shows the colours that were stored, or is refused."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms
from skimage.color import rgb2lab

from monai_mil.errors import SlideReadError
from monai_mil.slides import TileGrid, open_slide, stream_tiles
from tests.slides.drawn import Page, write_pages

SIDE = 150


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """Smooth and saturated colours over most of the cube."""
    y, x = np.mgrid[:SIDE, :SIDE] / (SIDE - 1)
    return np.stack([255 * x, 255 * y, 255 * (1 - (x + y) / 2)], axis=-1).round().astype(np.uint8)


def ycbcr(rgb: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]])


def lab(rgb: np.ndarray) -> np.ndarray:
    values = rgb2lab(rgb, illuminant="D65")
    stored = np.empty(values.shape, np.uint8)
    stored[..., 0] = np.rint(values[..., 0] * 2.55)
    stored[..., 1:] = np.clip(np.rint(values[..., 1:]), -128, 127).astype(np.int8).view(np.uint8)
    return stored


def grey(rgb: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)


def repeated(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=-1)


def over_white(rgba: np.ndarray) -> np.ndarray:
    opacity = rgba[..., 3:].astype(float) / 255
    return np.rint(rgba[..., :3] * opacity + 255 * (1 - opacity)).astype(np.uint8)


def with_alpha(rgb: np.ndarray) -> np.ndarray:
    alpha = np.linspace(0, 255, SIDE).astype(np.uint8)[:, None, None]
    return np.concatenate([rgb, np.broadcast_to(alpha, (SIDE, SIDE, 1))], axis=-1)


PALETTE = np.random.default_rng(0).integers(0, 256, (256, 3)).astype(np.uint8)
COLOUR_MAP = PALETTE.T.astype(np.uint16) * 257
KINDS: dict[str, Any] = {
    "rgb": (lambda rgb: rgb, lambda rgb: rgb, {}),
    "ycbcr": (ycbcr, lambda rgb: rgb, {"photometric": "ycbcr", "subsampling": (1, 1)}),
    "cielab": (lab, lambda rgb: rgb, {"photometric": "cielab"}),
    "grey": (grey, lambda rgb: repeated(grey(rgb)), {"photometric": "minisblack"}),
    "inverted grey": (lambda rgb: 255 - grey(rgb), lambda rgb: repeated(grey(rgb)), {"photometric": "miniswhite"}),
    "opacity": (with_alpha, lambda rgb: over_white(with_alpha(rgb)), {"extrasamples": ["unassalpha"]}),
    "planes": (lambda rgb: np.moveaxis(rgb, -1, 0).copy(), lambda rgb: rgb, {"planarconfig": "separate"}),
    "16 bits": (lambda rgb: rgb.astype(np.uint16) * 257, lambda rgb: rgb, {}),
    "palette": (grey, lambda rgb: PALETTE[grey(rgb)], {"photometric": "palette", "colormap": COLOUR_MAP}),
}  # fmt: skip


def write(path: Path, stored: np.ndarray, options: dict[str, Any]) -> Path | None:
    """The file; None where TIFF or its writer has no such combination."""
    try:
        return write_pages(path, [Page(stored, options=options)])
    except (ValueError, RuntimeError, KeyError, TypeError):
        return None


def shown_or_refused(path: Path, *, may_refuse: bool) -> np.ndarray | None:
    """The pixels; None where the slide is refused, by name, and may be."""
    if may_refuse:
        with contextlib.suppress(SlideReadError), open_slide(path) as slide:
            return slide.read(0, 0, (SIDE, SIDE))
        with pytest.raises(SlideReadError, match=r"slide\.tif"), open_slide(path) as slide:
            slide.read(0, 0, (SIDE, SIDE))
        return None
    with open_slide(path) as slide:
        return slide.read(0, 0, (SIDE, SIDE))


@pytest.mark.parametrize("codec", [None, "lzw", "deflate", "packbits", "zstd", "lzma", "jpeg2000", "webp", "jpegxl"])
@pytest.mark.parametrize("kind", KINDS)
def test_colours_are_those_that_were_stored_or_the_slide_is_refused(
    tmp_path: Path, picture: np.ndarray, kind: str, codec: str | None
) -> None:
    store, show, options = KINDS[kind]
    lossless = {"jpeg2000": {"reversible": True}, "webp": {"lossless": True}, "jpegxl": {"lossless": True}}
    extra = {"compression": codec, "compressionargs": lossless[codec]} if codec in lossless else {"compression": codec}
    path = write(tmp_path / "slide.tif", store(picture), options | extra)
    if path is None:
        assert codec in lossless, "every plain codec can hold every kind"
        return
    shown = shown_or_refused(path, may_refuse=codec in lossless)
    if shown is None:
        return
    difference = np.abs(shown.astype(int) - show(picture))
    # Eight bits hold CIELAB in steps of one, which are many of blue where all is dark.
    assert difference.max() <= (18 if kind == "cielab" else 2)
    assert difference.mean() <= 1.5


@pytest.mark.parametrize("sampling", [(2, 2), (2, 1)])
def test_chroma_that_is_stored_once_for_several_pixels_is_spread(
    tmp_path: Path, picture: np.ndarray, sampling: tuple[int, int]
) -> None:
    path = write_pages(
        tmp_path / "jpeg.tif",
        [Page(picture, options={"photometric": "rgb", "compression": "jpeg", "subsampling": sampling})],
    )
    with open_slide(path) as slide:
        assert np.abs(slide.read(0, 0, (SIDE, SIDE)).astype(int) - picture).mean() < 3


def test_a_profile_is_known_and_applied_only_where_it_is_asked_for(tmp_path: Path, picture: np.ndarray) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = _with_swapped_primaries(profile)
    path = write_pages(tmp_path / "slide.tif", [Page(picture, options={"iccprofile": swapped})])
    with open_slide(path) as slide:
        assert slide.icc_profile == swapped
        np.testing.assert_array_equal(slide.read(0, 0, (SIDE, SIDE)), picture)
    source = ImageCms.ImageCmsProfile(io.BytesIO(swapped))
    expected = np.asarray(
        ImageCms.profileToProfile(Image.fromarray(picture), source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    )
    assert np.abs(expected.astype(int) - picture).max() > 20
    with open_slide(path, icc="apply") as slide:
        shown = slide.read(0, 0, (SIDE, SIDE))
        assert np.abs(shown.astype(int) - expected).max() <= 2
        assert np.abs(slide.thumbnail(SIDE).astype(int) - expected).max() <= 2
        grid = TileGrid.cover(slide, None, tile_size=50, target_mpp=0.5)
        for (x, y), tile in zip(grid.coords, torch.cat(list(stream_tiles(slide, grid))), strict=True):
            assert np.abs(tile.permute(1, 2, 0).numpy().astype(int) - expected[y : y + 50, x : x + 50]).max() <= 2
    path = write_pages(tmp_path / "plain.tif", [Page(picture)])
    with open_slide(path, icc="apply") as slide:
        assert slide.icc_profile is None
        assert any("has no ICC profile" in remark for remark in slide.remarks)
        np.testing.assert_array_equal(slide.read(0, 0, (SIDE, SIDE)), picture)


def _with_swapped_primaries(profile: bytes) -> bytes:
    """The profile with the tags of red's and green's primaries exchanged."""
    content = bytearray(profile)
    red, green = content.index(b"rXYZ"), content.index(b"gXYZ")
    content[red : red + 4], content[green : green + 4] = b"gXYZ", b"rXYZ"
    content[84:100] = bytes(16)  # its checksum
    return bytes(content)


@pytest.mark.parametrize(
    ("kind", "white"),
    [(np.float32, 1), (np.uint32, 2**32 - 1), (np.int16, 2**15 - 1)],
    ids=["float", "32 bits", "signed"],
)
def test_numbers_that_are_no_colours_are_refused_with_the_factor_that_makes_them_so(
    tmp_path: Path, picture: np.ndarray, kind: type, white: int
) -> None:
    path = write_pages(tmp_path / "slide.tif", [Page((picture / 255 * white).astype(kind))])
    with pytest.raises(SlideReadError, match=rf"where white is {white}, scale them, `vips linear IN ") as error:
        open_slide(path)
    factor = float(str(error.value).split("`")[1].split()[4])
    assert white * factor == pytest.approx(255)


def test_what_is_refused_says_what_to_type_and_that_works(tmp_path: Path, picture: np.ndarray) -> None:
    path = tmp_path / "strips.tif"
    tifffile.imwrite(path, picture, photometric="rgb", rowsperstrip=16, metadata=None)
    with pytest.raises(SlideReadError, match=r"not stored as tiles.*vips tiffsave IN OUT.tif --tile") as error:
        open_slide(path)
    if shutil.which("vips") is None:
        pytest.skip("vips is not installed: the advice was not tried")
    command = str(error.value).split("`")[1].replace("IN", str(path)).replace("OUT.tif", str(tmp_path / "out.tif"))
    subprocess.run(command.split(), check=True)
    with open_slide(tmp_path / "out.tif", mpp=0.5) as slide:
        assert np.abs(slide.read(0, 0, (SIDE, SIDE)).astype(int) - picture).mean() < 8

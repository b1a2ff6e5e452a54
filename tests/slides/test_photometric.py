"""Samples of rarer kinds become the colours of the RGB image, and the advice of every refusal works."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch
from skimage.color import rgb2lab, xyz2lab
from skimage.color.colorconv import xyz_from_rgb

from monai_mil.errors import SlideReadError
from monai_mil.slides import TileGrid, open_slide, stream_tiles
from tests.slides.conftest import textured

IMAGE = textured(200, 150, seed=3)
GREY = np.ascontiguousarray(IMAGE[..., 0])
ALPHA = np.random.default_rng(1).integers(0, 256, (150, 200, 1), np.uint8)
PALETTE = np.random.default_rng(2).integers(0, 65536, (3, 256), np.uint16)
YCBCR = np.ascontiguousarray(cv2.cvtColor(IMAGE, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]])
THREE_GREY = np.repeat(GREY[..., None], 3, axis=2)


def over_white(image: np.ndarray) -> np.ndarray:
    weight = ALPHA / 255
    return image * weight + 255 * (1 - weight)


def lab_of(image: np.ndarray, bits: int) -> np.ndarray:
    lab = rgb2lab(image)
    lightness = lab[..., :1] * ((2**bits - 1) / 100)
    chroma = lab[..., 1:] * (1 if bits == 8 else 256)
    unsigned, signed = (np.uint8, np.int8) if bits == 8 else (np.uint16, np.int16)
    return np.concatenate([np.rint(lightness).astype(unsigned), np.rint(chroma).astype(signed).view(unsigned)], axis=2)


def premultiplied() -> np.ndarray:
    return np.rint(IMAGE * (ALPHA / 255)).astype(np.uint8)


KINDS: dict[str, tuple[np.ndarray, dict[str, Any], np.ndarray, float]] = {
    "rgb": (IMAGE, {"photometric": "rgb"}, IMAGE, 0),
    "ycbcr": (YCBCR, {"photometric": "ycbcr"}, IMAGE, 2),
    "lab of 8 bits": (lab_of(IMAGE, 8), {"photometric": "cielab"}, IMAGE, 8),
    "lab of 16 bits": (lab_of(IMAGE, 16), {"photometric": "cielab"}, IMAGE, 1),
    "grey": (GREY, {"photometric": "minisblack"}, THREE_GREY, 0),
    "grey inverted": (255 - GREY, {"photometric": "miniswhite"}, THREE_GREY, 0),
    "grey of 16 bits": (GREY.astype(np.uint16) * 257, {"photometric": "minisblack"}, THREE_GREY, 0),
    "palette": (GREY, {"photometric": "palette", "colormap": PALETTE}, PALETTE.T[GREY] / 257, 1),
    "rgba": (np.dstack([IMAGE, ALPHA]), {"photometric": "rgb", "extrasamples": [2]}, over_white(IMAGE), 1),
    "rgba, premultiplied": (
        np.dstack([premultiplied(), ALPHA]),
        {"photometric": "rgb", "extrasamples": [1]},
        over_white(IMAGE),
        1,
    ),
    "grey with alpha": (
        np.dstack([GREY, ALPHA]),
        {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": [2]},
        over_white(THREE_GREY),
        1,
    ),
    "planes": (np.moveaxis(IMAGE, 2, 0).copy(), {"photometric": "rgb", "planarconfig": "separate"}, IMAGE, 0),
    "planes of ycbcr": (np.moveaxis(YCBCR, 2, 0).copy(), {"photometric": "ycbcr", "planarconfig": 2}, IMAGE, 2),
    "16 bits": (IMAGE.astype(np.uint16) * 257, {"photometric": "rgb"}, IMAGE, 0),
    "16 bits, shifted": (IMAGE.astype(np.uint16) << 8, {"photometric": "rgb"}, IMAGE, 1),
    "12 of 16 bits": (
        IMAGE.astype(np.uint16) << 4,
        {"photometric": "rgb", "extratags": [(281, "H", 3, (4095,) * 3, True)]},
        IMAGE,
        1,
    ),
    "cmyk": (np.dstack([255 - IMAGE, 0 * ALPHA]), {"photometric": "separated"}, IMAGE, 0),
    "black and white": (GREY > 128, {"photometric": "minisblack"}, (THREE_GREY > 128) * 255, 0),
}


def write(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    tile = {"tile": (64, 64), "resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER", "metadata": None}
    tifffile.imwrite(path, pixels, **(tile | options))
    return path


def shown(path: Path) -> np.ndarray:
    """Pixels by region and by stream, which are the same."""
    with warnings.catch_warnings(), open_slide(path) as slide:
        warnings.simplefilter("error")
        whole = slide.read(0, 0, slide.size)
        grid = TileGrid.cover(slide, None, tile_size=50, target_mpp=0.5)
        (tiles,) = stream_tiles(slide, grid)
    rows = [torch.cat(list(tiles[start : start + 4]), dim=2) for start in range(0, 12, 4)]
    np.testing.assert_array_equal(torch.cat(rows, dim=1).permute(1, 2, 0).numpy(), whole)
    return whole


@pytest.mark.parametrize("kind", KINDS)
def test_the_colours_are_those_of_the_rgb_image(tmp_path: Path, kind: str) -> None:
    pixels, options, expected, tolerance = KINDS[kind]
    difference = np.abs(
        shown(write(tmp_path / "a.tif", pixels, compression="deflate", **options)) - expected.astype(float)
    )
    assert difference.max() <= tolerance
    assert difference.mean() < 1


@pytest.mark.parametrize("kind", ["16 bits", "lab of 16 bits", "ycbcr", "grey of 16 bits"])
def test_the_byte_order_does_not_matter(tmp_path: Path, kind: str) -> None:
    pixels, options, expected, tolerance = KINDS[kind]
    path = write(tmp_path / "a.tif", pixels, compression="lzw", predictor=2, byteorder=">", **options)
    assert np.abs(shown(path) - expected.astype(float)).max() <= tolerance


def test_a_jpeg_of_coarse_chroma_is_ycbcr_whatever_its_tag_says(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", IMAGE, compression="jpeg", photometric="rgb", subsampling=(2, 2))
    with open_slide(path) as slide:
        expected = slide.read(0, 0, slide.size)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        assert tiff.pages[0].photometric == 6
        tiff.pages[0].tags["PhotometricInterpretation"].overwrite(2)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read(0, 0, slide.size), expected)


def packed(tile: np.ndarray, across: int, down: int) -> bytes:
    """A tile of YCbCr with one Cb and Cr for several pixels, as TIFF 6.0 stores it."""
    units = []
    for y in range(0, tile.shape[0], down):
        for x in range(0, tile.shape[1], across):
            block = tile[y : y + down, x : x + across]
            units.append(block[..., 0].tobytes() + block[0, 0, 1:].tobytes())
    return b"".join(units)


@pytest.mark.parametrize("subsampling", [(2, 2), (2, 1), (4, 2), (1, 1)])
@pytest.mark.parametrize("codec", [None, "lzw", "deflate", "packbits"])
def test_ycbcr_of_coarse_chroma(tmp_path: Path, subsampling: tuple[int, int], codec: str | None) -> None:
    import imagecodecs

    across, down = subsampling
    flat = YCBCR[:128, :128].copy()
    flat[..., 1:] = flat[::down, ::across, 1:].repeat(down, 0).repeat(across, 1)
    path = write(tmp_path / "a.tif", flat, compression=codec, photometric="ycbcr")
    encode = {
        None: bytes,
        "lzw": imagecodecs.lzw_encode,
        "deflate": imagecodecs.zlib_encode,
        "packbits": imagecodecs.packbits_encode,
    }[codec]
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        page = tiff.pages[0]
        offsets, counts = [], []
        for y, x in ((0, 0), (0, 64), (64, 0), (64, 64)):
            data = encode(packed(flat[y : y + 64, x : x + 64], across, down))
            offsets.append(tiff.filehandle.seek(0, 2))
            counts.append(len(data))
            tiff.filehandle.write(data)
        page.tags["TileOffsets"].overwrite(offsets)
        page.tags["TileByteCounts"].overwrite(counts)
        page.tags["YCbCrSubSampling"].overwrite(subsampling)
    expected = cv2.cvtColor(np.ascontiguousarray(flat[..., [0, 2, 1]]), cv2.COLOR_YCrCb2RGB)
    with open_slide(path) as slide:
        assert np.abs(slide.read(0, 0, slide.size).astype(int) - expected).max() <= 1


def test_ycbcr_whose_tag_says_coarse_chroma_falsely(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", YCBCR, compression="lzw", photometric="ycbcr")
    with open_slide(path) as slide:
        expected = slide.read(0, 0, slide.size)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags["YCbCrSubSampling"].overwrite((2, 2))
    np.testing.assert_array_equal(shown(path), expected)


def test_a_predictor_of_ycbcr_of_coarse_chroma_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", YCBCR, compression="lzw", photometric="ycbcr", predictor=2)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags["YCbCrSubSampling"].overwrite((2, 2))
    with pytest.raises(SlideReadError, match=r"a.tif': its YCbCr of coarse chroma has predictor 2.*export it"):
        open_slide(path)


def test_a_grey_image_of_which_no_tile_was_stored_is_white(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", GREY, compression="deflate", photometric="minisblack")
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tag = tiff.pages[0].tags["TileByteCounts"]
        tag.overwrite([0] * len(tag.value))
    assert (shown(path) == 255).all()


def test_ycbcr_of_video_range_and_other_luma(tmp_path: Path) -> None:
    red, green, blue = 0.2126, 0.7152, 0.0722
    r, g, b = np.moveaxis(IMAGE.astype(float), 2, 0)
    y = red * r + green * g + blue * b
    cb, cr = (b - y) / (2 - 2 * blue), (r - y) / (2 - 2 * red)
    stored = np.dstack([16 + y * 219 / 255, 128 + cb * 112 / 127, 128 + cr * 112 / 127])
    tags = [
        (529, "2I", 3, (2126, 10000, 7152, 10000, 722, 10000), True),
        (532, "2I", 6, (16, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1), True),
    ]
    path = write(
        tmp_path / "a.tif",
        np.rint(stored).clip(0, 255).astype(np.uint8),
        compression="lzw",
        photometric="ycbcr",
        extratags=tags,
    )
    assert np.abs(shown(path) - IMAGE.astype(float)).max() <= 3


@pytest.mark.parametrize("photometric", ["cielab", "icclab"])
def test_lab_under_d50_where_the_file_says_so(tmp_path: Path, photometric: str) -> None:
    """ICC's CIELAB is always of D50; the other names its white point."""
    linear = np.where(IMAGE / 255 <= 0.04045, IMAGE / 255 / 12.92, ((IMAGE / 255 + 0.055) / 1.055) ** 2.4)
    to_d50 = np.array(
        [[1.0478112, 0.0228866, -0.0501270], [0.0295424, 0.9904844, -0.0170491], [-0.0092345, 0.0150436, 0.7521316]]
    )
    lab = xyz2lab(linear @ xyz_from_rgb.T @ to_d50.T, illuminant="D50")
    if photometric == "icclab":
        stored = np.dstack([lab[..., 0] * 65280 / 100, (lab[..., 1:] + 128) * 256]).clip(0, 65535)
        tags = []
        words = np.rint(stored).astype(np.uint16)
    else:
        words = np.dstack(
            [
                np.rint(lab[..., 0] * 655.35).astype(np.uint16),
                np.rint(lab[..., 1:] * 256).astype(np.int16).view(np.uint16),
            ]
        )
        tags = [(318, "2I", 2, (3457, 10000, 3585, 10000), True)]
    path = write(tmp_path / "a.tif", words, compression="lzw", photometric=photometric, extratags=tags)
    assert np.abs(shown(path) - IMAGE.astype(float)).max() <= 1
    with open_slide(path) as slide:
        assert slide.remarks == ()


def test_what_had_to_be_assumed_about_colours_is_told(tmp_path: Path) -> None:
    for kind, words in {"lab of 8 bits": "D65", "cmyk": "without a profile"}.items():
        pixels, options, *_ = KINDS[kind]
        with open_slide(write(tmp_path / "a.tif", pixels, **options)) as slide:
            assert words in slide.remarks[0]
    with open_slide(write(tmp_path / "b.tif", np.dstack([IMAGE, ALPHA]), photometric="rgb", extrasamples=[0])) as slide:
        assert "opacity" in slide.remarks[0]


def follow(advice: str, source: Path, target: Path) -> None:
    """Do what an error advises: run vips, or by its Python binding what it would do."""
    command = shlex.split(advice.replace("IN", str(source), 1).replace("OUT.tif", str(target), 1))
    assert command[0] == "vips"
    if shutil.which("vips"):
        subprocess.run(command, check=True, timeout=60)
        return
    pyvips = pytest.importorskip("pyvips", reason="neither vips nor pyvips is installed")
    name, positional, options = command[1], [], {}
    rest = iter(command[2:])
    for word in rest:
        if not word.startswith("--"):
            positional.append(word)
        elif word in ("--tile", "--pyramid", "--uchar"):
            options[word[2:]] = True
        else:
            options[word[2:]] = next(rest)
    image = pyvips.Image.new_from_file(positional[0])
    if name == "tiffsave":
        image.tiffsave(positional[1], **options)
        return
    arguments = [float(word) if re.fullmatch(r"[\d.]+", word) else word for word in positional[2:]]
    options = {key: float(value) if key == "vscale" else value for key, value in options.items()}
    if name == "linear":
        arguments = [[value] for value in arguments]
    getattr(image, name)(*arguments, **options).write_to_file(positional[1])


def advice_of(path: Path) -> str:
    with pytest.raises(SlideReadError) as caught:
        open_slide(path)
    (advice,) = re.findall(r"`(vips [^`]*)`", str(caught.value))
    return advice


@pytest.mark.parametrize(
    ("pixels", "options", "expected"),
    [
        (IMAGE, {"photometric": "rgb", "tile": None}, IMAGE),
        (GREY, {"photometric": "minisblack", "tile": None}, THREE_GREY),
        (np.dstack([IMAGE, ALPHA // 255 + 254]), {"photometric": "rgb", "tile": None, "extrasamples": [2]}, IMAGE),
        (IMAGE.astype(np.uint16) * 257, {"photometric": "rgb", "tile": None}, IMAGE),
        (IMAGE.astype(np.float32) / 255, {"photometric": "rgb"}, IMAGE),
    ],
    ids=["strips", "grey strips", "strips with alpha", "strips of 16 bits", "floats"],
)
def test_the_advice_of_a_refusal_works(
    tmp_path: Path, pixels: np.ndarray, options: dict[str, Any], expected: np.ndarray
) -> None:
    source = write(tmp_path / "a.tif", pixels, **options)
    follow(advice_of(source), source, tmp_path / "converted.tif")
    with open_slide(tmp_path / "converted.tif") as slide:
        assert slide.mpp == pytest.approx(0.5)
        assert np.abs(slide.read(0, 0, slide.size).astype(float) - expected).mean() < 6  # JPEG of coarse chroma


def test_the_advice_for_pixels_that_are_not_square_works(tmp_path: Path) -> None:
    squeezed = cv2.resize(IMAGE, (200, 75), interpolation=cv2.INTER_AREA)
    source = write(tmp_path / "a.tif", squeezed, photometric="rgb", resolution=(20_000, 10_000))
    follow(advice_of(source), source, tmp_path / "converted.tif")
    with open_slide(tmp_path / "converted.tif", mpp=0.5) as slide:
        assert slide.size == (200, 150)
        assert np.abs(slide.read(0, 0, slide.size).astype(float) - IMAGE).mean() < 8


def test_a_page_that_is_not_the_first_is_named_in_the_advice(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(IMAGE[:20, :20], photometric="rgb", metadata=None)
        tiff.write(IMAGE, photometric="rgb", metadata=None, resolution=(20_000, 20_000), resolutionunit="CENTIMETER")
    assert "IN[page=1]" in advice_of(path)
    follow(advice_of(path), path, tmp_path / "converted.tif")
    with open_slide(tmp_path / "converted.tif") as slide:
        assert slide.size == (200, 150)


@pytest.mark.parametrize("bits", [np.float32, np.float64, np.int16, np.uint32])
def test_numbers_that_are_no_colours_are_refused(tmp_path: Path, bits: Any) -> None:
    with pytest.raises(SlideReadError, match=r"a.tif': its pixels are \d\d-bit (floats|numbers), not 8 or 16 bits"):
        open_slide(write(tmp_path / "a.tif", IMAGE.astype(bits), photometric="rgb"))

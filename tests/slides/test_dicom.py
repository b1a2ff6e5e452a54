"""DICOM slides: colours where header and frames disagree, focal planes, padded levels."""

from __future__ import annotations

import copy
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pydicom
import pytest
import torch
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000, ExplicitVRLittleEndian, JPEGBaseline8Bit, JPEGLSLossless, generate_uid

from monai_mil.errors import SlideReadError
from monai_mil.slides import TileGrid, open_slide, stream_tiles
from tests.conftest import shared
from tests.slides.conftest import textured
from tests.slides.drawn import padded_to_tiles, reduced

TILE = 64
IMAGE = textured(256, 192, seed=3)
YCBCR = np.ascontiguousarray(cv2.cvtColor(IMAGE, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]])


def tiles(image: np.ndarray) -> list[np.ndarray]:
    """In rows, as TILED_FULL has them."""
    height, width = image.shape[:2]
    whole = padded_to_tiles(image, TILE)
    return [whole[y : y + TILE, x : x + TILE].copy() for y in range(0, height, TILE) for x in range(0, width, TILE)]


def write(
    path: Path,
    frames: Sequence[bytes],
    syntax: str,
    photometric: str,
    *,
    size: tuple[int, int] = (256, 192),
    mpp: float = 0.5,
    series: str | None = None,
    **tags: Any,
) -> Path:
    data = copy.deepcopy(pydicom.dcmread(shared("data/wsi/boxes_0.dcm")))
    data.file_meta.TransferSyntaxUID = syntax
    data.Rows = data.Columns = TILE
    data.TotalPixelMatrixColumns, data.TotalPixelMatrixRows = size
    data.NumberOfFrames = len(frames)
    data.PhotometricInterpretation = photometric
    data.TotalPixelMatrixFocalPlanes = 1
    data.SeriesInstanceUID = series or generate_uid()
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [mpp / 1000, mpp / 1000]
    for name, value in tags.items():
        setattr(data, name, value)
    native = syntax == ExplicitVRLittleEndian
    data.PixelData = b"".join(frames) if native else encapsulate(list(frames))
    data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", not native
    data.save_as(path, enforce_file_format=True)
    return path


def jpeg_2000(image: np.ndarray, transform: bool) -> list[bytes]:
    return [imagecodecs.jpeg2k_encode(t, codecformat="j2k", level=0, mct=transform) for t in tiles(image)]


def without_markers(stream: bytes) -> bytes:
    """A JPEG that no longer says which colours it holds."""
    at = 2
    while stream[at + 1] in (0xE0, 0xEE):  # of JFIF and Adobe
        at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    return stream[:2] + stream[at:]


def jpeg(image: np.ndarray, stored: str) -> list[bytes]:
    how = {"level": 98, "colorspace": "RGB", "outcolorspace": stored, "subsampling": "444"}
    return [imagecodecs.jpeg8_encode(tile, **how) for tile in tiles(image)]


@pytest.mark.parametrize(
    ("frames", "syntax", "photometric", "agree"),
    [
        (jpeg_2000(IMAGE, True), JPEG2000, "YBR_ICT", True),
        (jpeg_2000(IMAGE, True), JPEG2000, "YBR_RCT", True),
        (jpeg_2000(IMAGE, True), JPEG2000, "RGB", True),
        (jpeg_2000(IMAGE, True), JPEG2000, "YBR_FULL", False),
        (jpeg_2000(IMAGE, True), JPEG2000, "YBR_FULL_422", False),
        (jpeg_2000(IMAGE, False), JPEG2000, "RGB", True),
        (jpeg_2000(YCBCR, False), JPEG2000, "YBR_FULL", True),
        (jpeg_2000(YCBCR, False), JPEG2000, "YBR_FULL_422", True),
        (jpeg(IMAGE, "YCBCR"), JPEGBaseline8Bit, "YBR_FULL_422", True),
        (jpeg(IMAGE, "YCBCR"), JPEGBaseline8Bit, "YBR_FULL", True),
        (jpeg(IMAGE, "YCBCR"), JPEGBaseline8Bit, "RGB", False),
        (jpeg(IMAGE, "RGB"), JPEGBaseline8Bit, "RGB", True),
        (jpeg(IMAGE, "RGB"), JPEGBaseline8Bit, "YBR_FULL_422", False),
        (list(map(without_markers, jpeg(IMAGE, "YCBCR"))), JPEGBaseline8Bit, "YBR_FULL", True),
        (list(map(without_markers, jpeg(IMAGE, "RGB"))), JPEGBaseline8Bit, "YBR_FULL_422", False),
        ([tile.tobytes() for tile in tiles(IMAGE)], ExplicitVRLittleEndian, "RGB", True),
        ([tile.tobytes() for tile in tiles(YCBCR)], ExplicitVRLittleEndian, "YBR_FULL", True),
    ],
)
def test_the_colours_are_what_the_frames_hold_whatever_the_header_says(
    tmp_path: Path, frames: list[bytes], syntax: str, photometric: str, agree: bool
) -> None:
    with open_slide(write(tmp_path / "a.dcm", frames, syntax, photometric)) as slide:
        assert (slide.size, slide.mpp) == ((256, 192), pytest.approx(0.5))
        tolerance = 1.5 if syntax == JPEGBaseline8Bit else 0.5
        assert np.abs(slide.read(0, 0, slide.size).astype(float) - IMAGE).mean() < tolerance
        assert slide.icc_profile is not None
        if agree:
            assert slide.remarks == ()
        else:
            (remark,) = slide.remarks
            assert f"a.dcm': the header says {photometric}, the frames are" in remark
        grid = TileGrid.cover(slide, None, tile_size=100, target_mpp=0.5)
        for (x, y), tile in zip(grid.coords, torch.cat(list(stream_tiles(slide, grid))), strict=True):
            np.testing.assert_array_equal(tile.permute(1, 2, 0).numpy(), slide.read(x, y, (100, 100)))


GREY = IMAGE[..., :1]
GREY_TILES = [tile[..., 0].copy() for tile in tiles(IMAGE)]
GREY_BYTES = [tile.tobytes() for tile in GREY_TILES]
GREY_JPEG_2000 = [imagecodecs.jpeg2k_encode(tile, codecformat="j2k", level=0) for tile in GREY_TILES]
GREY_JPEG = [imagecodecs.jpeg8_encode(tile, level=98) for tile in GREY_TILES]


@pytest.mark.parametrize(
    ("frames", "syntax", "photometric", "expected", "tolerance"),
    [
        (GREY_BYTES, ExplicitVRLittleEndian, "MONOCHROME2", GREY, 0),
        (GREY_BYTES, ExplicitVRLittleEndian, "MONOCHROME1", 255 - GREY, 0),
        (GREY_JPEG_2000, JPEG2000, "MONOCHROME2", GREY, 0),
        (GREY_JPEG, JPEGBaseline8Bit, "MONOCHROME2", GREY, 6),
    ],
)
def test_frames_without_colours_are_grey(
    tmp_path: Path, frames: list[bytes], syntax: str, photometric: str, expected: np.ndarray, tolerance: int
) -> None:
    with open_slide(write(tmp_path / "a.dcm", frames, syntax, photometric, SamplesPerPixel=1)) as slide:
        assert slide.remarks == ()
        shown = slide.read(0, 0, slide.size).astype(int)
    assert (shown == shown[..., :1]).all()
    assert np.abs(shown - expected).max() <= tolerance


YBR = [tile.tobytes() for tile in tiles(YCBCR)]


@pytest.mark.parametrize(
    ("frames", "syntax", "photometric", "tags", "message"),
    [
        (YBR, JPEGLSLossless, "YBR_FULL", {}, "frames in JPEG-LS Lossless Image Compression, which no reader here"),
        (YBR, ExplicitVRLittleEndian, "YBR_FULL", {"PlanarConfiguration": 1}, "not 8-bit colours side by side"),
        (YBR, ExplicitVRLittleEndian, "YBR_FULL", {"BitsAllocated": 16}, "not 8-bit colours side by side"),
        (YBR, ExplicitVRLittleEndian, "YBR_FULL_422", {}, "uncompressed YBR_FULL_422, which no reader here"),
        (YBR, ExplicitVRLittleEndian, "MONOCHROME2", {"NumberOfOpticalPaths": 3}, "3 optical paths in grey"),
        (
            YBR[:11],
            ExplicitVRLittleEndian,
            "YBR_FULL",
            {},
            r"damaged \(11 frames are too few for 4 x 3 tiles\); copy it again",
        ),
    ],
)
def test_frames_that_cannot_be_shown_are_refused_at_once(
    tmp_path: Path, frames: list[bytes], syntax: str, photometric: str, tags: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "a.dcm", frames, syntax, photometric, **tags)
    with pytest.raises(SlideReadError, match=rf"a.dcm': (its pixels are |it has )?{message}"):
        open_slide(path)


def test_what_stands_in_a_header_by_mistake_is_quoted_nowhere(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    with pydicom.config.disable_value_validation():
        named = write(tmp_path / "a.dcm", YBR, ExplicitVRLittleEndian, "DOE")
        count = write(tmp_path / "b.dcm", YBR, ExplicitVRLittleEndian, "RGB")
    with open_slide(named) as slide:
        assert "DOE" not in "".join([*slide.remarks, *map(str, slide.properties.values())])
    content = count.read_bytes()
    count.write_bytes(content.replace(b"\x28\x00\x08\x00IS\x02\x0012", b"\x28\x00\x08\x00IS\x02\x00Do"))
    assert count.read_bytes() != content
    with pytest.raises(SlideReadError, match=r"b.dcm': damaged or no DICOM slide \(its header: ValueError\)") as raised:
        open_slide(count)
    assert not any("'Do'" in str(told) for told in (raised.value, *(warning.message for warning in recwarn)))
    assert raised.value.__cause__ is None


def test_a_refusal_of_openslide_quotes_no_header(tmp_path: Path) -> None:
    with pydicom.config.disable_value_validation():
        data = pydicom.dcmread(shared("data/wsi/boxes_1.dcm"))
        data.PhotometricInterpretation = "DOE^JANE"
        data.save_as(tmp_path / "a.dcm")
    with pytest.raises(SlideReadError) as refused:
        open_slide(tmp_path / "a.dcm")
    assert "DOE" not in str(refused.value)


def test_what_the_header_leaves_out_is_missing(tmp_path: Path) -> None:
    bare = {"SharedFunctionalGroupsSequence": [], "OpticalPathSequence": []}
    path = write(tmp_path / "a.dcm", YBR, ExplicitVRLittleEndian, "YBR_FULL", **bare)
    with pytest.raises(SlideReadError, match=r"a.dcm': no pixel size \(mpp\) in the file; pass --mpp"):
        open_slide(path)
    with open_slide(path, mpp=0.25) as slide:
        assert (slide.mpp, slide.icc_profile) == (0.25, None)


@pytest.mark.parametrize("photometric", ["YBR_ICT", "YBR_RCT"])
def test_colours_that_nobody_can_tell_are_refused_with_advice_that_works(tmp_path: Path, photometric: str) -> None:
    path = write(tmp_path / "a.dcm", jpeg_2000(IMAGE, False), JPEG2000, photometric)
    with pytest.raises(SlideReadError, match=rf"a.dcm': its header says {photometric}.*without") as caught:
        open_slide(path)
    (tmp_path / "mended").mkdir()
    mended = tmp_path / "mended" / "a.dcm"
    command = str(caught.value).split("`")[1].replace("IN", str(path), 1).replace("OUT.dcm", str(mended))
    python, *arguments = shlex.split(command.replace(f"PhotometricInterpretat{path}", "PhotometricInterpretation"))
    assert python == "python"
    subprocess.run([sys.executable, *arguments], check=True)
    with open_slide(mended) as slide:
        np.testing.assert_array_equal(slide.read(0, 0, slide.size), IMAGE)


def test_of_focal_planes_the_middle_one_is_read_and_another_can_be_chosen(tmp_path: Path) -> None:
    planes = [textured(256, 192, seed=seed) for seed in range(3)]
    frames = [tile.tobytes() for plane in planes for tile in tiles(plane)]
    path = write(tmp_path / "a.dcm", frames, ExplicitVRLittleEndian, "RGB", TotalPixelMatrixFocalPlanes=3)
    with open_slide(path) as slide:
        (remark,) = slide.remarks
        assert "3 focal planes; number 1, the middle one" in remark
        assert "--plane" in remark
        np.testing.assert_array_equal(slide.read(0, 0, slide.size), planes[1])
    with open_slide(path, plane=2) as slide:
        assert slide.remarks == ()
        np.testing.assert_array_equal(slide.read(10, 20, (100, 90)), planes[2][20:110, 10:110])
    with pytest.raises(SlideReadError, match="no focal plane 3; it has 3"):
        open_slide(path, plane=3)


def position(column: int, row: int, depth: float) -> Dataset:
    place, groups = Dataset(), Dataset()
    place.ColumnPositionInTotalImagePixelMatrix, place.RowPositionInTotalImagePixelMatrix = column + 1, row + 1
    place.ZOffsetInSlideCoordinateSystem = depth
    groups.PlanePositionSlideSequence = [place]
    return groups


def test_frames_are_where_the_header_puts_them(tmp_path: Path) -> None:
    """Sparse frames in no order, of two planes; a place without a frame is white."""
    planes = {0.0: textured(256, 192, seed=1), 1.5: textured(256, 192, seed=2)}
    stored = [
        (position(x, y, depth), image[y : y + TILE, x : x + TILE].tobytes())
        for depth, image in planes.items()
        for y in range(0, 192, TILE)
        for x in range(0, 256, TILE)
        if (x, y) != (0, 0)
    ]
    np.random.default_rng(0).shuffle(stored)
    path = write(
        tmp_path / "a.dcm",
        [frame for _, frame in stored],
        ExplicitVRLittleEndian,
        "RGB",
        TotalPixelMatrixFocalPlanes=2,
        DimensionOrganizationType="TILED_SPARSE",
        PerFrameFunctionalGroupsSequence=[place for place, _ in stored],
    )
    for plane, image in enumerate(planes.values()):
        with open_slide(path, plane=plane) as slide:
            whole = slide.read(0, 0, slide.size)
            assert (whole[:TILE, :TILE] == 255).all()
            np.testing.assert_array_equal(whole[TILE:], image[TILE:])
            np.testing.assert_array_equal(whole[:, TILE:], image[:, TILE:])


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
def test_a_padded_level_is_where_its_pixel_spacing_puts_it(tmp_path: Path, photometric: str) -> None:
    """By OpenSlide and by our own reader."""
    image, series = textured(500, 380, seed=2), generate_uid()
    for factor in (1, 2, 4):
        level = reduced(image, factor)
        stored = level if factor == 1 else padded_to_tiles(level, TILE)
        pixels = stored
        if photometric == "YBR_FULL":
            pixels = np.ascontiguousarray(cv2.cvtColor(stored, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]])
        size, frames = stored.shape[1::-1], [tile.tobytes() for tile in tiles(pixels)]
        name, kind = f"{factor}.dcm", ["ORIGINAL", "PRIMARY", "VOLUME", "NONE" if factor == 1 else "RESAMPLED"]
        how = {"size": size, "mpp": 0.5 * factor, "series": series, "ImageType": kind}
        write(tmp_path / name, frames, ExplicitVRLittleEndian, photometric, **how)
    with open_slide(tmp_path) as slide:
        assert slide.reader == ("openslide" if photometric == "RGB" else "pydicom")
        assert [level.downsample for level in slide.levels] == [1, 2, 4]
        assert [(level.width, level.height) for level in slide.levels] == [(500, 380), (250, 190), (125, 95)]
        expected = reduced(image, 4)[60:90, 80:120]
        difference = np.abs(slide.read(320, 240, (40, 30), 2).astype(int) - expected)
        assert difference.mean() < 2  # OpenSlide blends a little of the next pixel in


@pytest.mark.parametrize("damage", ["cut short", "of another size"])
def test_a_frame_that_is_damaged_is_named_by_its_position(tmp_path: Path, damage: str) -> None:
    frames = jpeg(IMAGE, "RGB")
    other = imagecodecs.jpeg8_encode(IMAGE[:32, :48], level=98, outcolorspace="RGB")
    frames[5] = frames[5][:200] + bytes(len(frames[5]) - 200) if damage == "cut short" else other
    reason = r"a frame of \[32, 48, 3\] is not RGB of 64 x 64 px" if damage == "of another size" else ""
    with (
        open_slide(write(tmp_path / "a.dcm", frames, JPEGBaseline8Bit, "YBR_FULL_422")) as slide,
        pytest.raises(
            SlideReadError, match=rf"a.dcm': the tile at level-0 position \(64, 64\) cannot be decoded.*{reason}"
        ),
    ):
        slide.read(70, 70, (8, 8))

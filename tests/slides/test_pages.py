"""Levels, scenes and focal planes of TIFF files, and what is none of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch

from monai_mil.errors import SlideReadError
from monai_mil.slides import Slide, TileGrid, open_slide, stream_tiles
from tests.slides.conftest import textured
from tests.slides.drawn import FLAGGED, Page, padded_to_tiles, reduced, write_pages

STRIPS = {"tile": None}


@pytest.fixture(scope="module")
def slide_image() -> np.ndarray:
    return textured(700, 500, seed=4)


def sizes(slide: Slide) -> list[tuple[int, int]]:
    return [(level.width, level.height) for level in slide.levels]


def test_levels_without_a_flag_are_known_by_size_and_resolution(tmp_path: Path, slide_image: np.ndarray) -> None:
    pages = [Page(slide_image), Page(reduced(slide_image, 2), 1.0), Page(reduced(slide_image, 8), 4.0)]
    for name, order in {"fine_first": pages, "coarse_first": pages[::-1]}.items():
        with open_slide(write_pages(tmp_path / f"{name}.tif", order)) as slide:
            assert sizes(slide) == [(700, 500), (350, 250), (88, 63)]
            assert slide.mpp == pytest.approx(0.5)
            assert slide.remarks == ()
            np.testing.assert_array_equal(slide.read(0, 0, slide.size), slide_image)
            np.testing.assert_array_equal(slide.read_level(0, 0, (350, 250), 1), pages[1].pixels)


def test_a_sub_image_of_any_tiff_is_a_level(tmp_path: Path, slide_image: np.ndarray) -> None:
    pages = [Page(slide_image, options={"subifds": 1}), Page(reduced(slide_image, 4), 2.0, FLAGGED)]
    with open_slide(write_pages(tmp_path / "a.tif", pages)) as slide:
        assert sizes(slide) == [(700, 500), (175, 125)]


@pytest.mark.parametrize(
    ("mpp", "options"),
    [
        (None, {}),
        (0.5, {}),
        (None, {"description": "label 100x140"}),
        (2.0, {"description": "Macro"}),
        (None, {**FLAGGED, "description": "Thumbnail"}),
        (2.0, {**FLAGGED, "extratags": [(285, "s", 0, "Label", True)]}),
        (2.0, {**FLAGGED, "description": "<PerkinElmer-QPI-ImageDescription><ImageType>Overview</ImageType>"}),
        (30.0, FLAGGED),
        (2.0, STRIPS),
    ],
    ids=str,
)
def test_a_label_of_the_slide_s_shape_is_no_level(
    tmp_path: Path, slide_image: np.ndarray, mpp: float | None, options: dict[str, Any]
) -> None:
    label = np.full((125, 175, 3), (200, 60, 60), np.uint8)
    pages = [Page(slide_image), Page(label, mpp, options), Page(reduced(slide_image, 2), 1.0, FLAGGED)]
    with open_slide(write_pages(tmp_path / "a.tif", pages)) as slide:
        assert sizes(slide) == [(700, 500), (350, 250)]


@pytest.mark.parametrize("options", [{}, STRIPS, {"description": "macro"}], ids=["tiles", "strips", "named"])
def test_a_macro_before_the_slide_is_not_the_slide(
    tmp_path: Path, slide_image: np.ndarray, options: dict[str, Any]
) -> None:
    macro = np.full((90, 250, 3), 200, np.uint8)
    pages = [Page(macro, 30.0, options), Page(slide_image), Page(reduced(slide_image, 4), 2.0, FLAGGED)]
    with open_slide(write_pages(tmp_path / "a.tif", pages)) as slide:
        assert (sizes(slide), slide.mpp, slide.remarks) == ([(700, 500), (175, 125)], pytest.approx(0.5), ())
        np.testing.assert_array_equal(slide.read(0, 0, slide.size), slide_image)


def aperio(what: str) -> dict[str, Any]:
    return {"description": f"Aperio Image Library v12\n{what}"}


def test_an_svs_has_unflagged_levels_and_neither_label_nor_macro(tmp_path: Path, slide_image: np.ndarray) -> None:
    pages = [
        Page(slide_image, None, aperio("700x500 (64x64) LZW|AppMag = 20|MPP = 0,4990")),
        Page(reduced(slide_image, 5), None, aperio("700x500 -> 140x100") | STRIPS),
        Page(reduced(slide_image, 4), None, aperio("700x500 (64x64) -> 175x125 LZW")),
        Page(np.zeros((50, 70, 3), np.uint8), None, aperio("label 70x50")),
        Page(np.zeros((125, 350, 3), np.uint8), None, aperio("macro 350x125") | {"subfiletype": 9}),
    ]
    with open_slide(write_pages(tmp_path / "a.svs", pages)) as slide:
        assert (sizes(slide), slide.mpp) == ([(700, 500), (175, 125)], pytest.approx(0.499))


def test_of_two_scenes_the_largest_is_read_and_the_other_can_be_chosen(tmp_path: Path, slide_image: np.ndarray) -> None:
    other = textured(350, 250, seed=9)
    for name, options in {"a.ome.tif": {"ome": True}, "b.tif": {}}.items():
        meta = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "PhysicalSizeXUnit": "µm"}
        metadata = {"metadata": meta} if options else {}
        pages = [Page(other, options=metadata), Page(slide_image, options=metadata)]
        path = write_pages(tmp_path / name, pages, **options)
        with open_slide(path) as slide:
            assert sizes(slide) == [(700, 500)]
            assert slide.mpp == pytest.approx(0.5)
            (remark,) = slide.remarks
            assert name in remark
            assert "2 images" in remark
            assert "--series" in remark
            np.testing.assert_array_equal(slide.read(0, 0, slide.size), slide_image)
        with open_slide(path, series=0) as slide:
            assert slide.remarks == ()
            np.testing.assert_array_equal(slide.read(0, 0, slide.size), other)
        with pytest.raises(SlideReadError, match=r"no series 2; it has 0: 350 x 250 px"):
            open_slide(path, series=2)


def test_each_scene_has_its_own_levels_and_pixel_size(tmp_path: Path, slide_image: np.ndarray) -> None:
    other = textured(380, 340, seed=9)
    with_levels = [(slide_image, 0.5, 2), (other, 0.25, 2)]
    pages = []
    for image, mpp, factor in with_levels:
        meta = {"axes": "YXS", "PhysicalSizeX": mpp, "PhysicalSizeY": mpp}
        pages.append(Page(image, mpp, {"metadata": meta, "subifds": 1}))
        pages.append(Page(reduced(image, factor), mpp * factor, FLAGGED))
    path = write_pages(tmp_path / "a.ome.tif", pages, ome=True)
    for series, (image, mpp, factor) in enumerate(with_levels):
        with open_slide(path, series=series) as slide:
            assert slide.mpp == mpp
            np.testing.assert_array_equal(slide.read_level(0, 0, sizes(slide)[1], 1), reduced(image, factor))


OME = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}


def test_a_coarser_image_of_ome_is_a_level(tmp_path: Path, slide_image: np.ndarray) -> None:
    """As some programs write pyramids: every level an image of its own."""
    coarse = OME | {"PhysicalSizeX": 1.0, "PhysicalSizeY": 1.0}
    pages = [Page(slide_image, 0.5, {"metadata": OME}), Page(reduced(slide_image, 2), 1.0, {"metadata": coarse})]
    with open_slide(write_pages(tmp_path / "a.ome.tif", pages[::-1], ome=True)) as slide:
        assert (sizes(slide), slide.mpp, slide.remarks) == ([(700, 500), (350, 250)], 0.5, ())
        np.testing.assert_array_equal(slide.read_level(0, 0, (350, 250), 1), pages[1].pixels)


@pytest.mark.parametrize("name", ["label", "Macro image", "slide_thumbnail"])
def test_a_label_of_ome_is_not_the_slide_unless_there_is_nothing_else(
    tmp_path: Path, slide_image: np.ndarray, name: str
) -> None:
    label = Page(textured(900, 600), 30.0, {"metadata": OME | {"Name": name}})
    slide_page = Page(slide_image, 0.5, {"metadata": OME | {"Name": "slide"}})
    with open_slide(write_pages(tmp_path / "a.ome.tif", [label, slide_page], ome=True)) as slide:
        assert (sizes(slide), slide.remarks) == ([(700, 500)], ())
        np.testing.assert_array_equal(slide.read(0, 0, slide.size), slide_image)
    with open_slide(write_pages(tmp_path / "b.ome.tif", [label], ome=True)) as slide:
        assert sizes(slide) == [(900, 600)]


@pytest.mark.parametrize("is_there", [False, True])
def test_an_image_of_ome_that_lies_in_another_file_is_passed_over(
    tmp_path: Path, slide_image: np.ndarray, is_there: bool
) -> None:
    if is_there:
        write_pages(tmp_path / "b.ome.tif", [Page(255 - slide_image, options={"metadata": OME})], ome=True)
    path = write_pages(tmp_path / "a.ome.tif", [Page(slide_image, options={"metadata": OME})], ome=True)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tag = tiff.pages[0].tags["ImageDescription"]
        whole = tag.value
        start, stop = whole.index("<Image "), whole.index("</Image>") + len("</Image>")
        elsewhere = '<TiffData IFD="0" PlaneCount="1"><UUID FileName="b.ome.tif">urn:uuid:b</UUID></TiffData>'
        other = whole[start:stop].replace("Image:0", "Image:1").replace("Pixels:0", "Pixels:1")
        other = other[: other.index("<TiffData")] + elsewhere + "</Pixels></Image>"
        tag.overwrite(whole[:start] + other + whole[start:])
    with open_slide(path) as slide:
        assert (sizes(slide), slide.remarks) == ([(700, 500)], ())
        np.testing.assert_array_equal(slide.read(0, 0, slide.size), slide_image)


@pytest.mark.parametrize("mpp", [None, 0.5])
def test_images_of_one_size_are_scenes_whatever_their_resolution(
    tmp_path: Path, slide_image: np.ndarray, mpp: float | None
) -> None:
    other = textured(700, 500, seed=9)
    path = write_pages(tmp_path / "a.tif", [Page(slide_image, mpp), Page(other, mpp)])
    with open_slide(path, mpp=0.5, series=1) as slide:
        np.testing.assert_array_equal(slide.read(0, 0, slide.size), other)
    with open_slide(path, mpp=0.5) as slide:
        assert "holds 2 images" in slide.remarks[0]


def test_a_resolution_of_0_says_nothing(tmp_path: Path, slide_image: np.ndarray) -> None:
    options = {"resolution": (0, 0), "resolutionunit": "CENTIMETER"}
    pages = [Page(slide_image, None, options), Page(reduced(slide_image, 4), None, options | FLAGGED)]
    path = write_pages(tmp_path / "a.tif", pages)
    with pytest.raises(SlideReadError, match="no pixel size"):
        open_slide(path)
    with open_slide(path, mpp=0.5) as slide:
        assert sizes(slide) == [(700, 500), (175, 125)]


def test_of_focal_planes_the_middle_one_is_read_and_another_can_be_chosen(tmp_path: Path) -> None:
    planes = np.stack([textured(300, 200, seed=seed) for seed in range(3)])
    meta = {"axes": "ZYXS", "PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 250} | {
        "PhysicalSizeYUnit": "nm"
    }
    pages = [
        Page(planes, None, {"metadata": meta, "subifds": 1}),
        Page(np.stack([reduced(plane, 2) for plane in planes]), None, FLAGGED),
    ]
    path = write_pages(tmp_path / "a.ome.tif", pages, ome=True)
    with open_slide(path) as slide:
        assert slide.mpp == 0.25
        (remark,) = slide.remarks
        assert "3 focal planes; number 1, the middle one" in remark
        assert "--plane" in remark
        np.testing.assert_array_equal(slide.read(0, 0, slide.size), planes[1])
    with open_slide(path, plane=2) as slide:
        assert slide.remarks == ()
        np.testing.assert_array_equal(slide.read_level(0, 0, (150, 100), 1), reduced(planes[2], 2))
    with pytest.raises(SlideReadError, match=r"no focal plane 3; it has 3"):
        open_slide(path, plane=3)


def test_channels_that_are_no_colours_are_refused(tmp_path: Path) -> None:
    channels = np.zeros((4, 128, 128), np.uint8)
    page = Page(channels, None, {"metadata": {"axes": "CYX"}, "photometric": "minisblack"})
    with pytest.raises(SlideReadError, match=r"a.ome.tif.*4 channels"):
        open_slide(write_pages(tmp_path / "a.ome.tif", [page], ome=True), mpp=0.5)


@pytest.mark.parametrize("told", ["resolution", "flag only"])
@pytest.mark.parametrize("compression", ["lzw", "deflate"])
def test_levels_padded_to_whole_tiles_are_where_they_belong(tmp_path: Path, told: str, compression: str) -> None:
    image = textured(1300, 950, seed=2)
    factors = (2, 4, 8)
    pages = [Page(image, options={"compression": compression})]
    for factor in factors:
        mpp = 0.5 * factor if told == "resolution" else 0.5
        pages.append(Page(padded_to_tiles(reduced(image, factor)), mpp, FLAGGED | {"compression": compression}))
    with open_slide(write_pages(tmp_path / "a.tif", pages)) as slide:
        assert slide.reader == ("cucim" if compression == "lzw" else "tifffile")
        assert [level.downsample for level in slide.levels] == [1, *factors]
        assert sizes(slide) == [(1300, 950), (650, 475), (325, 238), (163, 119)]
        for index, factor in enumerate(factors, start=1):
            assert slide.axis_downsamples(index) == (factor, factor)
            region = slide.read(1096, 800, (25, 15), index)
            column, row = int(1096 / factor + 0.5), int(800 / factor + 0.5)
            np.testing.assert_array_equal(region, reduced(image, factor)[row : row + 15, column : column + 25])
        far = slide.read_level(160, 117, (8, 8), 3)
        assert (far[2:] == 255).all(), "padding is no part of the slide"
        assert (far[:, 3:] == 255).all()
        small = cv2.resize(reduced(image, 8), (130, 95), interpolation=cv2.INTER_AREA)
        np.testing.assert_array_equal(slide.thumbnail(130), small)
        grid = TileGrid.cover(slide, None, tile_size=32, target_mpp=4.0)
        tiles = torch.cat(list(stream_tiles(slide, grid))).permute(0, 2, 3, 1).numpy()
        padded = padded_to_tiles(reduced(image, 8), 32, 255)
        for (column, row), tile in zip(grid.index, tiles, strict=True):
            expected = padded[row * 32 : row * 32 + 32, column * 32 : column * 32 + 32]
            assert np.abs(tile.astype(int) - expected).mean() < 0.5


def test_a_level_whose_size_is_only_rounded_keeps_the_ratio_of_its_sizes(
    tmp_path: Path, slide_image: np.ndarray
) -> None:
    pages = [Page(slide_image), Page(reduced(slide_image, 3), 1.5, FLAGGED)]
    with open_slide(write_pages(tmp_path / "a.tif", pages)) as slide:
        assert slide.axis_downsamples(1) == (700 / 234, 500 / 167)


def test_a_coarse_level_in_strips_is_left_out(tmp_path: Path, slide_image: np.ndarray) -> None:
    pages = [Page(slide_image), Page(reduced(slide_image, 2), 1.0, FLAGGED | STRIPS)]
    with open_slide(write_pages(tmp_path / "a.tif", pages)) as slide:
        assert sizes(slide) == [(700, 500)]

import json

import cv2
import numpy as np
import pytest
import tifffile
from cucim import CuImage
from openslide import OpenSlide

from monai_mil.errors import SlideReadError
from monai_mil.heatmaps import Colouring, assemble, colour_table, export_png, export_tiff, thumbnail
from monai_mil.heatmaps.figure import scale_bar, score_text
from monai_mil.identity import content_identity
from monai_mil.slides import open_slide, write_pyramid
from tests.conftest import shared
from tests.heatmaps.examples import frame, grid_heatmap, slide_heatmap
from tests.slides.drawn import Page, write_pages

SLIDE = "data/wsi/CMU-1-Small-Region.svs"


def coloured(heatmap, downsample, limits=(0, 100), percentile=True):
    colouring = Colouring(colour_table("viridis"), limits)
    return heatmap.raster(downsample=downsample, percentile=percentile, colours=colouring)


@pytest.mark.parametrize("ome", [False, True])
def test_cucim_and_openslide_read_every_pixel_and_the_mpp(tmp_path, ome):
    heatmap = grid_heatmap(20, 15, step=203.2, tile=203.2)
    path = export_tiff(heatmap, tmp_path / "a.tif", ome=ome, percentile=True)
    downsample = 16
    expected = coloured(heatmap, downsample)
    height, width = expected.shape[:2]
    with OpenSlide(str(path)) as slide:
        assert slide.dimensions == (width, height)
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5 * downsample)
        np.testing.assert_array_equal(np.asarray(slide.read_region((0, 0), 0, (width, height)))[..., :3], expected)
    image = CuImage(str(path))
    assert image.spacing()[:2] == pytest.approx([0.5 * downsample] * 2)
    np.testing.assert_array_equal(np.asarray(image.read_region((0, 0), (width, height))), expected)


def test_the_tiff_opens_as_a_slide_on_the_slide_s_frame(tmp_path):
    heatmap = grid_heatmap(20, 15, step=200, tile=200)
    path = export_tiff(heatmap, tmp_path / "a.tif", downsample=2)
    with open_slide(path) as slide:
        assert slide.mpp * slide.size[0] == pytest.approx(0.5 * heatmap.frame.level0_size[0], abs=slide.mpp)
        assert len(slide.levels) > 1


def test_bands_join_without_a_seam(tmp_path):
    heatmap = grid_heatmap(3, 90, step=51.7, tile=64.0)
    path = export_tiff(heatmap, tmp_path / "a.tif", downsample=2, percentile=True)
    expected = coloured(heatmap, 2)
    assert len(expected) > 2048, "the image has more than two bands"
    np.testing.assert_array_equal(tifffile.imread(path, level=0), expected)


@pytest.mark.parametrize(("block", "downsample"), [((), 32), ((4, 4), 32), ((10, 14), 8)])
def test_the_tiff_is_no_larger_than_its_scores_need(tmp_path, block, downsample):
    heatmap = assemble(np.random.default_rng(0).random((1, *block)), [[0, 0]], frame((2000, 1000), 256.0))
    with tifffile.TiffFile(export_tiff(heatmap, tmp_path / "a.tif")) as file:
        assert json.loads(file.pages[0].description)["downsample"] == downsample


def test_the_tiff_says_what_its_colours_mean(tmp_path):
    path = export_tiff(grid_heatmap(), tmp_path / "a.tif", percentile=False, limits=(0.0, 2.0), downsample=8)
    with tifffile.TiffFile(path) as file:
        meaning = json.loads(file.pages[0].description)
    assert meaning["limits"] == [0.0, 2.0]
    assert (meaning["values"], meaning["downsample"], meaning["slide"]) == ("score", 8, "slide")
    np.testing.assert_array_equal(tifffile.imread(path, level=0), coloured(grid_heatmap(), 8, (0, 2), False))


def test_the_figure_shows_a_real_slide_and_leaves_tissue_outside_tiles_as_it_is(tmp_path):
    source = shared(SLIDE)
    heatmap = slide_heatmap(source)
    drawn = cv2.imread(str(export_png(heatmap, tmp_path / "a.png", canvas_max=800)))[..., ::-1]
    with open_slide(source) as slide:
        picture = slide.thumbnail(800)
    values = heatmap.raster(canvas_max=800)
    top, left = round(5 * 800 / 60), round(1.5 * 800 / 60)
    shown = drawn[top : top + len(picture), left : left + picture.shape[1]]
    outside = np.isnan(values)
    assert 0.2 < outside.mean() < 0.95
    np.testing.assert_array_equal(shown[outside], picture[outside])
    assert np.abs(shown[~outside].astype(int) - picture[~outside]).mean() > 20
    assert drawn.shape[1] > left + picture.shape[1] + 100, "room for the colour bar"


def test_a_figure_without_its_slide_is_drawn_on_white(tmp_path):
    heatmap = assemble([0.5], [[0, 0]], frame(slide_path="gone.svs"))
    drawn = cv2.imread(str(export_png(heatmap, tmp_path / "a.png", canvas_max=300, percentile=False)))
    assert (drawn == 255).all(axis=2).mean() > 0.8


def test_a_long_title_does_not_break_the_figure(tmp_path):
    heatmap = assemble([0.5], [[0, 0]], frame(slide_id="s" * 400), name="n" * 300)
    assert export_png(heatmap, tmp_path / "a.png", canvas_max=200).stat().st_size > 0


@pytest.mark.parametrize(
    ("mpp", "longest", "text"), [(0.5, 400, "200 µm"), (0.5, 2000, "1 mm"), (10, 1000, "10 mm"), (0.1, 15, "1 µm")]
)
def test_scale_bars_are_round_numbers(mpp, longest, text):
    length, written = scale_bar(mpp, longest)
    assert written == text
    assert length <= longest
    number, unit = written.split()
    assert length * mpp == pytest.approx(float(number) * (1000 if unit == "mm" else 1))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0123, "0.012"), (0.00045, "4.5e-4"), (12.3, "12"), (224, "224"), (-3e7, "-3.0e+07")],
)
def test_scores_are_short_to_read(value, text):
    assert score_text(value) == text


def test_scores_of_a_chosen_scene_are_drawn_over_that_scene(tmp_path):
    scenes = [np.full((128, 192, 3), 90, np.uint8), np.full((256, 384, 3), 200, np.uint8)]
    path = tmp_path / "two.ome.tif"
    meta = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    write_pages(path, [Page(scene, options={"metadata": meta}) for scene in scenes], ome=True)
    for series, value in ((0, 90), (1, 200), (None, 200)):
        heatmap = assemble([0.5], [[0, 0]], frame((192, 128), slide_path=str(path), series=series))
        assert (thumbnail(heatmap, None, (32, 48)) == value).all()


def test_scores_are_not_drawn_over_another_slide_of_the_same_path(tmp_path):
    path = tmp_path / "slide.tif"
    write_pyramid(path, np.full((300, 400, 3), 230, np.uint8), mpp=0.5)
    facts = {"level0_size": (400, 300), "slide_path": str(path), "source": content_identity([path])}
    heatmap = assemble([0.5], [[0, 0]], frame(**facts))
    export_png(heatmap, tmp_path / "before.png")
    write_pyramid(path, np.full((300, 400, 3), 90, np.uint8), mpp=0.5)
    with pytest.raises(SlideReadError, match=r"slide\.tif': not the one whose tiles were scored"):
        export_png(heatmap, tmp_path / "after.png")
    assert not (tmp_path / "after.png").exists()
    assert heatmap.save(tmp_path / "map.h5").is_file()
    assert type(heatmap).load(tmp_path / "map.h5").frame == heatmap.frame

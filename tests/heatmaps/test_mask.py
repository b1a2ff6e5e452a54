import json
import math
from dataclasses import replace

import numpy as np
import pytest
import tifffile

from monai_mil.heatmaps import assemble, export_geojson, export_mask, export_png, export_tiff, stitch
from monai_mil.heatmaps.layer import OUTLINE_COLOUR
from monai_mil.slides import open_slide
from tests.heatmaps.examples import frame

TILE = 512.0


def lesion(columns=12, rows=9, grid=8, tile=TILE, threshold=0.5):
    """A soft blob over tiles of 8 x 8 tokens, one tile left out."""
    y, x = np.mgrid[: rows * grid, : columns * grid]
    truth = np.exp(-(((x - 40) / 14) ** 2 + ((y - 30) / 9) ** 2)).astype(np.float32)
    index = [(c, r) for r in range(rows) for c in range(columns) if (c, r) != (1, 7)]
    blocks = [truth[r * grid : (r + 1) * grid, c * grid : (c + 1) * grid] for c, r in index]
    coords = np.floor(np.array(index) * tile + 0.5).astype(int)
    size = (int(columns * tile), int(rows * tile))
    return assemble(np.stack(blocks), coords, frame(size, tile, mpp=0.25), threshold=threshold)


@pytest.mark.parametrize("tile", [512.0, 458.75])
def test_the_mask_is_where_the_smooth_map_lies_above_the_threshold(tmp_path, tile):
    heatmap = lesion(tile=tile)
    path = export_mask(heatmap, tmp_path / "a.tif", downsample=16)
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx(0.25 * 16, rel=1e-3)
        size = tuple(math.ceil(side / 16) for side in heatmap.frame.level0_size)
        assert slide.size == size
        mask = slide.read(0, 0, size)
    smooth = stitch(heatmap).upsample((0, 0, size[0] * 16, size[1] * 16), size[::-1])
    np.testing.assert_array_equal(mask, np.repeat((smooth > 0.5)[..., None] * 255, 3, axis=2))
    assert 0.02 < (mask > 0).mean() < 0.2


def test_all_levels_of_the_mask_are_binary(tmp_path):
    path = export_mask(lesion(columns=40), tmp_path / "a.tif", downsample=8)
    with tifffile.TiffFile(path) as file:
        levels = [page.asarray() for page in file.pages]
    assert len(levels) > 1
    for level in levels:
        assert set(np.unique(level)) == {0, 255}
        assert (level > 0).mean() == pytest.approx((levels[0] > 0).mean(), rel=0.02)


@pytest.mark.parametrize(("threshold", "written"), [(0.5, 0.5), (math.inf, None)])
def test_the_mask_says_its_threshold(tmp_path, threshold, written):
    with tifffile.TiffFile(export_mask(lesion(threshold=threshold), tmp_path / "a.tif")) as file:
        meaning = json.loads(file.pages[0].description)
        assert bool(file.pages[0].asarray().any()) == (written is not None)
    assert meaning["threshold"] == written
    assert meaning["downsample"] == 32, "two pixels a token of 64"


def test_there_is_no_mask_without_a_threshold(tmp_path):
    with pytest.raises(ValueError, match="no mask without a threshold"):
        export_mask(lesion(threshold=None), tmp_path / "a.tif")


def test_a_slide_without_foreground_has_no_regions_and_no_outline(tmp_path):
    gated = lesion(threshold=math.inf)
    document = json.loads(export_geojson(gated, tmp_path / "a.geojson", tiles=False).read_text())
    assert document["features"] == []
    assert not outlined(gated, tmp_path).any()


def test_regions_are_the_tokens_above_the_threshold(tmp_path):
    heatmap = lesion()
    (region,) = json.loads(export_geojson(heatmap, tmp_path / "a.geojson", tiles=False).read_text())["features"]
    area = np.count_nonzero(heatmap.scores > 0.5) * (64 * 0.25) ** 2 * 1e-6
    assert region["properties"]["measurements"]["area mm^2"] == pytest.approx(area, rel=1e-4)
    at_the_top = replace(heatmap, threshold=float(heatmap.scores.max()))
    document = json.loads(export_geojson(at_the_top, tmp_path / "b.geojson", tiles=False).read_text())
    assert document["features"] == [], "only what lies strictly above is foreground"


def test_the_picture_outlines_the_foreground_however_small(tmp_path):
    heatmap = lesion()
    assert outlined(heatmap, tmp_path).any()
    speck = replace(heatmap, scores=heatmap.scores * 0)
    speck.scores[50, 3, 3] = 1
    assert outlined(replace(speck, threshold=0.9), tmp_path, canvas_max=40).any()


def outlined(heatmap, tmp_path, **options):
    from PIL import Image

    picture = np.asarray(Image.open(export_png(heatmap, tmp_path / "a.png", **options)))
    return (picture == OUTLINE_COLOUR).all(axis=2)


def test_token_maps_are_drawn_smooth_and_by_their_score(tmp_path):
    heatmap = lesion()
    with tifffile.TiffFile(export_tiff(heatmap, tmp_path / "a.tif", downsample=8)) as file:
        meaning, smooth = json.loads(file.pages[0].description), file.pages[0].asarray()
    assert (meaning["values"], meaning["limits"], meaning["smooth"]) == ("score", [0.0, 1.0], True)
    with tifffile.TiffFile(export_tiff(heatmap, tmp_path / "b.tif", downsample=8, smooth=False)) as file:
        cells = file.pages[0].asarray()
    np.testing.assert_array_equal((smooth == 255).all(axis=2), (cells == 255).all(axis=2), "the hole stays white")
    steps = [np.abs(np.diff(image[240].astype(int), axis=0)).max() for image in (smooth, cells)]
    assert steps[0] < 0.5 * steps[1], "no edges between tokens"

import json

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_mil.heatmaps import assemble, export_geojson
from monai_mil.heatmaps.regions import find_regions
from tests.heatmaps.examples import frame, grid_heatmap


def features(heatmap, tmp_path, **options):
    document = json.loads(export_geojson(heatmap, tmp_path / "a.geojson", **options).read_text(encoding="utf-8"))
    assert document["type"] == "FeatureCollection"
    for feature in document["features"]:
        check_feature(feature)
    return document["features"]


def check_feature(feature):
    """RFC 7946 polygons, and what QuPath asks for beyond."""
    assert feature["type"] == "Feature"
    assert feature["geometry"]["type"] == "Polygon"
    for ring in feature["geometry"]["coordinates"]:
        assert len(ring) >= 4
        assert ring[0] == ring[-1]
    properties = feature["properties"]
    assert properties["objectType"] in ("detection", "annotation")
    assert isinstance(properties["classification"]["name"], str)
    assert len(properties["classification"]["color"]) == 3
    assert all(isinstance(value, int | float) for value in properties["measurements"].values())


def signed_area(ring):
    x, y = np.asarray(ring, float).T
    return 0.5 * (x[:-1] * y[1:] - x[1:] * y[:-1]).sum()


def test_tiles_stand_where_they_are_with_their_measurements(tmp_path):
    heatmap = grid_heatmap(4, 3, step=100.5, tile=100.5)
    found = features(heatmap, tmp_path)
    assert len(found) == 12
    ring = found[5]["geometry"]["coordinates"][0]
    x, y = heatmap.coords[5].tolist()
    assert ring == [[x, y], [x + 100.5, y], [x + 100.5, y + 100.5], [x, y + 100.5], [x, y]]
    measured = found[5]["properties"]["measurements"]
    assert measured["attention"] == pytest.approx(heatmap.scores[5], rel=1e-5)
    assert measured["attention percentile"] == pytest.approx(heatmap.percentiles()[5], rel=1e-3)


def test_shapes_end_at_the_slide_s_border(tmp_path):
    heatmap = assemble([1.0, 2.0], [[-30, 0], [950, 780]], frame((1000, 800), 100.0))
    for feature in features(heatmap, tmp_path, regions=0.5):
        points = np.array(feature["geometry"]["coordinates"][0])
        assert points.min() >= 0
        assert (points <= (1000, 800)).all()


def test_names_are_escaped(tmp_path):
    name = 'a "b" \\ <c>\n é'
    heatmap = assemble([1.0], [[0, 0]], frame(), name=name)
    tile, region = features(heatmap, tmp_path, regions=0.5)
    assert tile["properties"]["classification"]["name"] == name
    assert region["properties"]["classification"]["name"] == f"{name} region"
    assert tile["properties"]["measurements"][name] == 1.0


def test_only_the_chosen_tiles_are_written(tmp_path):
    heatmap = grid_heatmap()
    highest = np.sort(heatmap.scores)[::-1]
    top = [feature["properties"]["measurements"]["attention"] for feature in features(heatmap, tmp_path, top=5)]
    np.testing.assert_allclose(top, highest[:5], rtol=1e-5)
    assert len(features(heatmap, tmp_path, minimum=float(highest[9]))) == 10
    assert len(features(heatmap, tmp_path, minimum=50, percentile=True)) == 25
    assert features(heatmap, tmp_path, tiles=False) == []


def test_a_ring_of_tiles_is_one_region_with_a_hole(tmp_path):
    coords = [(x * 100, y * 100) for x in range(3) for y in range(3)]
    scores = [0.1 if coord == (100, 100) else 0.9 for coord in coords]
    (region,) = features(assemble(scores, coords, frame()), tmp_path, tiles=False, regions=0.5)
    outline, hole = region["geometry"]["coordinates"]
    assert (signed_area(outline), signed_area(hole)) == (300 * 300, -100 * 100)
    assert len(outline) == len(hole) == 5, "corners on a straight line are left out"
    measured = region["properties"]["measurements"]
    assert measured["area mm^2"] == pytest.approx(8 * 100 * 100 * 0.5**2 * 1e-6)
    assert measured["attention mean"] == pytest.approx(0.9)


def test_small_regions_are_left_out_by_their_area(tmp_path):
    scores, coords = [0.9, 0.9, 0.1, 0.9], [[0, 0], [100, 0], [200, 0], [300, 0]]
    heatmap = assemble(scores, coords, frame(), threshold=0.5)
    assert len(features(heatmap, tmp_path, tiles=False, min_area_um2=50 * 50)) == 2, "a tile of 100 px at 0.5 um"
    (region,) = features(heatmap, tmp_path, tiles=False, min_area_um2=50 * 50 + 1)
    assert region["properties"]["measurements"]["area mm^2"] == pytest.approx(2 * 50 * 50 * 1e-6)


@pytest.mark.parametrize("options", [{}, {"regions": 0.5}, {"regions": 50, "percentile": True}])
def test_a_slide_without_foreground_has_no_regions_however_they_are_asked_for(tmp_path, options):
    heatmap = assemble([0.9, 0.1], [[0, 0], [100, 0]], frame(), threshold=np.inf)
    assert features(heatmap, tmp_path, tiles=False, **options) == []


@pytest.mark.parametrize("percentile", [0.0, 50.0, 99.0])
def test_a_percentile_is_of_the_slide_s_own_tiles(percentile):
    heatmap = grid_heatmap(6, 5)
    above = heatmap.percentiles() >= percentile
    regions = find_regions(heatmap, percentile, percentile=True)
    assert sum(region.area for region in regions) == above.sum() * 100 * 100
    assert max(region.maximum for region in regions) == heatmap.scores.max()
    assert find_regions(heatmap, 100.5, percentile=True) == []


@pytest.mark.parametrize(("overlap", "score"), [("max", 0.9), ("mean", 0.6)])
def test_tiles_at_one_place_are_one_region_in_pixels_of_a_sixteenth(overlap, score):
    heatmap = assemble([0.3, 0.9, 0.7, 0.2], [[32, 0], [32, 0], [64, 32], [0, 64]], frame((95, 95), 32.0))
    regions = find_regions(heatmap, 0.5, overlap=overlap)
    assert [(region.area, round(region.mean, 6)) for region in regions] == [(32 * 32, score), (31 * 32, 0.7)]
    (outline,), (cut,) = regions[0].rings, regions[1].rings
    assert (outline.min(axis=0).tolist(), outline.max(axis=0).tolist()) == ([32, 0], [64, 32])
    assert (cut.min(axis=0).tolist(), cut.max(axis=0).tolist()) == ([64, 32], [95, 64])


def test_the_cells_of_a_block_make_regions_of_their_own():
    scores = np.zeros((2, 2, 2), np.float32)
    scores[0, :, 1] = scores[1, :, 0] = 1
    (region,) = find_regions(assemble(scores, [[0, 0], [100, 0]], frame()), 0.5)
    assert region.area == 100 * 100
    assert region.rings[0].min(axis=0).tolist() == [50, 0]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_regions_cover_exactly_the_tiles_above_the_threshold(seed, regular):
    rng = np.random.default_rng(seed)
    if regular:
        heatmap = grid_heatmap(9, 9, step=16.0, tile=16.0)
        heatmap = assemble(rng.random(81, dtype=np.float32), heatmap.coords, heatmap.frame)
    else:
        heatmap = assemble(rng.random(12, dtype=np.float32), rng.integers(-8, 150, (12, 2)), frame((160, 160), 16.0))
    canvas = heatmap.raster(downsample=1)
    expected = np.nan_to_num(canvas, nan=-1) >= 0.5
    drawn = np.zeros(canvas.shape, np.uint8)
    for region in find_regions(heatmap, 0.5):
        areas = [signed_area(ring) for ring in region.rings]
        assert areas[0] > 0
        assert all(area < 0 for area in areas[1:])
        assert sum(areas) == pytest.approx(region.area)
        for ring in region.rings:
            assert len({tuple(point) for point in ring.tolist()}) == len(ring) - 1, "no ring touches itself"
        drawn += even_odd(region.rings, canvas.shape)
    np.testing.assert_array_equal(drawn, expected)


def even_odd(rings, shape):
    """1 where a pixel's centre lies inside an odd number of rings."""
    inside = np.zeros(shape, np.uint8)
    for ring in rings:
        filled = np.zeros((2 * shape[0] + 1, 2 * shape[1] + 1), np.uint8)
        cv2.fillPoly(filled, [np.round(2 * ring[:-1]).astype(np.int32)], 1)
        inside ^= filled[1::2, 1::2]
    return inside

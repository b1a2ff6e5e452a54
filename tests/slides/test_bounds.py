"""Slides whose scanned part lies on a larger canvas: pixels in the canvas's frame, annotations in QuPath's or in it."""

import json

import numpy as np
import pytest

from monai_mil.bags import BagFile
from monai_mil.embedding import embed_cohort
from monai_mil.heatmaps import SlideFrame, assemble, export_geojson
from monai_mil.slides import open_slide, open_truth, slide_bounds, write_pyramid
from tests.embedding.counting import CountingEncoder
from tests.slides.scn import CANVAS, CORNER, write_scn

SIDE = 768


@pytest.fixture(scope="module")
def bounded(tmp_path_factory):
    image = np.random.default_rng(0).integers(90, 200, (SIDE, SIDE, 3), dtype=np.uint8)
    image[..., 1] //= 2
    return write_scn(tmp_path_factory.mktemp("scn") / "bounded.scn", image)


def corners(path, kind="detection"):
    """x0, y0, x1, y1 round all features of a GeoJSON."""
    features = json.loads(path.read_text())["features"]
    points = [
        p for one in features if one["properties"]["objectType"] == kind for p in one["geometry"]["coordinates"][0]
    ]
    return [*np.min(points, axis=0), *np.max(points, axis=0)]


def annotation(path, rings, **stated):
    geometry = {"type": "Polygon", "coordinates": rings}
    feature = {"type": "Feature", "geometry": geometry, "properties": {"objectType": "annotation"}}
    path.write_text(json.dumps({"type": "FeatureCollection", **stated, "features": [feature]}))
    return path


def test_a_bag_of_a_bounded_slide_lies_on_its_canvas_and_knows_the_bounds(bounded, tmp_path):
    report = embed_cohort([bounded], tmp_path, CountingEncoder(tmp_path / "log"), progress=False)
    assert report.failed == ()
    with BagFile(tmp_path / "bounded.h5") as bag:
        assert (bag.info.level0_size, bag.info.mpp) == (CANVAS, 0.5)
        assert bag.info.bounds == (*CORNER, SIDE, SIDE)
        assert (bag.coords >= np.array(CORNER) - 256).all()


def test_a_slide_that_names_no_part_is_its_own_bounds(tmp_path):
    write_pyramid(tmp_path / "plain.tif", np.full((300, 400, 3), 240, np.uint8), mpp=0.5)
    with open_slide(tmp_path / "plain.tif") as slide:
        assert slide_bounds(slide) == (0, 0, 400, 300)


@pytest.mark.parametrize(("bounds", "frame", "origin", "stated"), [
    ((*CORNER, SIDE, SIDE), "qupath", CORNER, "qupath"),
    ((*CORNER, SIDE, SIDE), "level0", (0, 0), "level0"),
    ((0, 0, *CANVAS), "qupath", (0, 0), "qupath"),
    (None, "qupath", (0, 0), "level0"),
])  # fmt: skip
def test_geojson_counts_from_the_frame_that_it_states(tmp_path, bounds, frame, origin, stated):
    place = SlideFrame("S", None, CANVAS, 0.5, 256.0, bounds)
    heatmap = assemble([0.2, 0.9], [[800, 600], [1056, 600]], place)
    path = export_geojson(heatmap, tmp_path / "S.geojson", regions=0.5, frame=frame)
    x, y = origin
    assert corners(path) == [800 - x, 600 - y, 1312 - x, 856 - y]
    assert corners(path, "annotation") == [1056 - x, 600 - y, 1312 - x, 856 - y]
    content = json.loads(path.read_text())
    assert (content["frame"], tuple(content["frame_origin"])) == (stated, origin)
    truth = open_truth(path, value=f"{heatmap.name} region", bounds=None)
    assert truth.boxes().tolist() == [[1056, 600, 1312, 856]]


def test_what_is_drawn_in_qupath_lands_where_it_was_drawn(tmp_path):
    ring = [[10, 20], [110, 20], [110, 220], [10, 220], [10, 20]]
    bounds = (*CORNER, SIDE, SIDE)
    shifted = [[10 + CORNER[0], 20 + CORNER[1], 110 + CORNER[0], 220 + CORNER[1]]]
    plain = [[10, 20, 110, 220]]
    path = annotation(tmp_path / "S.geojson", [ring])
    assert open_truth(path, bounds=bounds).boxes().tolist() == shifted
    assert open_truth(path, bounds=bounds, frame="level0").boxes().tolist() == plain
    assert open_truth(path).boxes().tolist() == plain
    path = annotation(tmp_path / "stated.geojson", [ring], frame="level0")
    assert open_truth(path, bounds=bounds).boxes().tolist() == plain


def test_asap_s_annotations_are_never_shifted(tmp_path):
    corners = "".join(f'<Coordinate X="{x}" Y="{y}"/>' for x, y in ((10, 20), (110, 20), (110, 220)))
    path = tmp_path / "S.xml"
    path.write_text(
        '<ASAP_Annotations><Annotations><Annotation PartOfGroup="Tumor"><Coordinates>'
        f"{corners}</Coordinates></Annotation></Annotations></ASAP_Annotations>"
    )
    assert open_truth(path, bounds=(*CORNER, SIDE, SIDE)).boxes().tolist() == [[10, 20, 110, 220]]

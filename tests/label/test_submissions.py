"""What annotators send: formats, frames, and files that must be refused with one clear sentence."""

import json

import pytest

from monai_mil.errors import AnnotationError
from monai_mil.label import Patch, patch_of, read_submission

SQUARE = [(10, 20), (110, 20), (110, 120), (10, 120)]
BOUNDS = (3000, 2500, 1000, 1000)


def asap(*shapes, head=""):
    """As QuPath's plugin 0.3.1 writes it: class names and coordinates of its own frame."""
    body = "".join(
        f'<Annotation Name="{name}" Type="Polygon" PartOfGroup="{name}" Color="#ff0000"><Coordinates>'
        + "".join(f'<Coordinate Order="{n}" X="{x}" Y="{y}"/>' for n, (x, y) in enumerate(points))
        + "</Coordinates></Annotation>"
        for name, points in shapes
    )
    return (
        f'<?xml version="1.0" encoding="UTF-8" standalone="no"?>{head}<ASAP_Annotations>'
        f'<Annotations Name="" Description="" X="0" Y="0" W="0" H="0">{body}</Annotations></ASAP_Annotations>'
    )


@pytest.fixture
def written(tmp_path):
    def write(content, suffix=".xml"):
        path = tmp_path / f"label{suffix}"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


def test_qupath_counts_from_the_corner_of_the_scanned_part(written):
    (shape,) = read_submission(written(asap(("tumor", SQUARE))), size=(9000, 9000), bounds=BOUNDS)
    assert (shape.name, shape.box) == ("tumor", (3010, 2520, 3110, 2620))
    (shape,) = read_submission(written(asap(("tumor", SQUARE))), bounds=BOUNDS, frame="level0")
    assert shape.box == (10, 20, 110, 120)


def test_what_was_drawn_in_a_patch_is_moved_to_its_place(written):
    (shape,) = read_submission(written(asap(("tumor", SQUARE))), bounds=BOUNDS, offset=(100, 200))
    assert shape.box == (3110, 2720, 3210, 2820)
    assert patch_of("A-patch-1-patch-5_6_7_8") == Patch("A-patch-1", (5, 6))


def test_geojson_of_qupath_is_in_its_frame_and_keeps_holes(written):
    hole = [(30, 40), (50, 40), (50, 60), (30, 60), (30, 40)]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [[*SQUARE, SQUARE[0]], hole]},
        "properties": {"objectType": "annotation", "classification": {"name": "tumor", "color": [200, 0, 0]}},
    }
    (shape,) = read_submission(written([feature], ".geojson"), bounds=BOUNDS)
    assert (shape.name, shape.box, len(shape.rings)) == ("tumor", (3010, 2520, 3110, 2620), 2)


def test_the_archive_counts_from_the_slide_s_own_corner(written):
    elements = [
        {"type": "polyline", "closed": True, "group": "tumor", "points": [[x, y, 0] for x, y in SQUARE]},
        {"type": "rectangle", "label": {"value": "normal"}, "center": [50, 60, 0], "width": 20, "height": 10},
        {"type": "point", "group": "tumor", "center": [5, 6, 0]},
        {"type": "griddata", "group": "MIL heatmap", "values": [1]},
    ]
    shapes = read_submission(written({"annotation": {"name": "a", "elements": elements}}, ".json"), bounds=BOUNDS)
    assert [(shape.name, shape.box) for shape in shapes] == [
        ("tumor", (10, 20, 110, 120)),
        ("normal", (40, 55, 60, 65)),
        ("tumor", (5, 6, 5, 6)),
    ]


def test_quotes_angle_brackets_and_entities_in_a_class_are_read(written):
    name = "a &quot;b&quot; &lt;c&gt; &amp;amp;"
    (shape,) = read_submission(written(asap((name, SQUARE))))
    assert shape.name == 'a "b" <c> &amp;'


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
FILE = '<!DOCTYPE x [<!ENTITY xxe SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize(
    ("content", "suffix", "said"),
    [
        (asap(), ".xml", "is empty"),
        (asap(("tumor", [(99_000, 10), (99_010, 10), (99_010, 20)])), ".xml", "outside the slide of 9000 x 9000"),
        (asap(("tumor", SQUARE), head=BOMB), ".xml", "declares a document type"),
        (asap(("tumor", SQUARE), head=FILE), ".xml", "declares a document type"),
        ("<ASAP_Annotations>", ".xml", "no XML of ASAP"),
        ("<html/>", ".xml", "no XML of ASAP"),
        (asap(("tumor", [("nan", 1)])), ".xml", "no XML of ASAP"),
        ("{", ".json", "no JSON"),
        ({"elements": [{"type": "polyline"}]}, ".json", "none of the Digital Slide Archive"),
        ({"type": "FeatureCollection"}, ".geojson", "no GeoJSON"),
        ("MZ", ".exe", "no JSON"),
    ],
)
def test_a_bad_submission_is_one_clear_sentence(written, content, suffix, said):
    with pytest.raises(AnnotationError, match=said) as raised:
        read_submission(written(content, suffix), size=(9000, 9000))
    assert "\n" not in str(raised.value)

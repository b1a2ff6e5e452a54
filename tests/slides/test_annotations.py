"""Ground truth of every kind as pixels of any window, against references that draw the whole at once."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from matplotlib.path import Path as Outline

from monai_mil.errors import AnnotationError
from monai_mil.slides import find_truth, open_truth, write_pyramid
from monai_mil.slides.polygons import Polygon, rasterise
from tests.conftest import shared
from tests.slides.conftest import overwrite_tile

SQUARE = [[10, 10], [60, 10], [60, 50], [10, 50]]
HOLE = [[20, 20], [40, 20], [40, 40], [20, 40]]
ISLAND = [[26.3, 27.1], [34.6, 26.2], [30.2, 35.8]]
EXCLUDED = [[50, 5], [90, 5], [90, 30], [50, 30]]
STAR = [[70.3, 60.1], [95.2, 95.7], [55.9, 75.3], [99.1, 70.6], [62.4, 99.2]]  # no pixel centre on a side


def inside(ring, x0, y0, x1, y1, shape):
    """Even-odd by matplotlib, pixel centre by pixel centre."""
    x = x0 + (np.arange(shape[1]) + 0.5) * (x1 - x0) / shape[1]
    y = y0 + (np.arange(shape[0]) + 0.5) * (y1 - y0) / shape[0]
    points = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    return Outline(np.asarray(ring)).contains_points(points).reshape(shape)


def expected(window, shape):
    def drawn(ring):
        return inside(ring, *window, shape)

    return ((drawn(SQUARE) & ~drawn(HOLE)) | drawn(ISLAND) | crossed(window, shape)) & ~drawn(EXCLUDED)


def crossed(window, shape):
    """The star's five points without its middle, which is crossed twice; from skimage's independent rule."""
    from skimage.measure import points_in_poly

    x = window[0] + (np.arange(shape[1]) + 0.5) * (window[2] - window[0]) / shape[1]
    y = window[1] + (np.arange(shape[0]) + 0.5) * (window[3] - window[1]) / shape[0]
    points = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    return points_in_poly(points, STAR).reshape(shape)


def feature(rings, name=None, kind="Polygon"):
    properties = {"objectType": "annotation"} | ({} if name is None else {"classification": {"name": name}})
    coordinates = [[*ring, ring[0]] for ring in rings]
    return {
        "type": "Feature",
        "geometry": {"type": kind, "coordinates": coordinates if kind == "Polygon" else [coordinates]},
        "properties": properties,
    }


FEATURES = [
    feature([SQUARE, HOLE], "Tumor"),
    feature([ISLAND], kind="MultiPolygon"),
    feature([STAR], "Tumour"),
    feature([EXCLUDED], "Exclusion"),
    {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 1]}, "properties": None},
]


def asap(path: Path, outlines, head='<?xml version="1.0"?>') -> Path:
    annotations = "".join(
        f'<Annotation Name="A {i}" Type="Polygon" PartOfGroup="{group}"><Coordinates>'
        + "".join(f'<Coordinate Order="{k}" X="{x}" Y="{y}"/>' for k, (x, y) in enumerate(ring))
        + "</Coordinates></Annotation>"
        for i, (group, ring) in enumerate(outlines)
    )
    path.write_text(f"{head}<ASAP_Annotations><Annotations>{annotations}</Annotations></ASAP_Annotations>")
    return path


WINDOWS = [((0, 0, 100, 100), (100, 100)), ((0, 0, 100, 100), (38, 42)), ((15, 15, 35, 28.5), (54, 80))]
WINDOWS += [((30.3, 22.1, 58.3, 58.1), (9, 7)), ((-20, 40, 75, 130), (45, 95)), ((200, 200, 300, 300), (5, 5))]


@pytest.mark.parametrize(("window", "shape"), WINDOWS)
def test_geojson_with_holes_islands_and_exclusions_is_drawn_right_in_every_window(tmp_path, window, shape):
    for name, content in (("collection", {"type": "FeatureCollection", "features": FEATURES}), ("list", FEATURES)):
        (tmp_path / f"{name}.geojson").write_text(json.dumps(content))
        found = open_truth(tmp_path / f"{name}.geojson").window(*window, shape)
        np.testing.assert_array_equal(found, expected(window, shape))


@pytest.mark.parametrize(("window", "shape"), WINDOWS)
def test_asap_s_groups_are_tumour_or_taken_out_of_it(tmp_path, window, shape):
    path = asap(
        tmp_path / "a.xml", [("_0", SQUARE), ("_2", HOLE), ("_1", STAR), ("Exclusion", EXCLUDED), ("_0", [[1, 1]])]
    )
    square, hole, excluded = (inside(ring, *window, shape) for ring in (SQUARE, HOLE, EXCLUDED))
    np.testing.assert_array_equal(
        open_truth(path).window(*window, shape), (square | crossed(window, shape)) & ~hole & ~excluded
    )


def test_a_window_is_a_part_of_the_whole(tmp_path):
    (tmp_path / "a.geojson").write_text(json.dumps(FEATURES))
    truth = open_truth(tmp_path / "a.geojson")
    whole = truth.window(0, 0, 100, 100, (200, 200))
    for y in range(0, 200, 40):
        for x in range(0, 200, 50):
            part = truth.window(x / 2, y / 2, (x + 50) / 2, (y + 40) / 2, (40, 50))
            np.testing.assert_array_equal(part, whole[y : y + 40, x : x + 50])


def test_pixels_whose_centre_lies_on_a_side_belong_to_one_of_two_neighbours():
    left, right = ([[x, 0.5], [x + 4, 0.5], [x + 4, 6.5], [x, 6.5]] for x in (0.5, 4.5))
    drawn = [np.zeros((8, 10), bool) for _ in range(2)]
    for out, ring in zip(drawn, (left, right), strict=True):
        rasterise(Polygon((np.array(ring),)), (0, 0, 10, 8), out, True)
    assert not (drawn[0] & drawn[1]).any()
    assert (drawn[0] | drawn[1]).sum() == 6 * 8


@pytest.mark.parametrize("name", ["Tumor_003", "Tumor_021"])
def test_camelyon16_polygons_have_their_area_and_lie_in_their_boxes(tmp_path, name):
    with gzip.open(shared("data/camelyon16_meta/tumor_polygons_train.json.gz")) as file:
        slide = json.load(file)[name]
    (tmp_path / "flat.json").write_text(json.dumps(slide))
    for key in ("positive", "negative"):
        slide[key] = [{"name": "A", "vertices": np.reshape(ring, (-1, 2)).tolist()} for ring in slide[key]]
    (tmp_path / "ncrf.json").write_text(json.dumps(slide))
    truth, same = open_truth(tmp_path / "flat.json"), open_truth(tmp_path / "ncrf.json")
    assert len(truth.included) == len(slide["positive"])
    x0, y0 = truth.boxes()[:, :2].min(axis=0)
    x1, y1 = truth.boxes()[:, 2:].max(axis=0)
    shape = (int(y1 - y0) // 64, int(x1 - x0) // 64)
    found = truth.window(x0, y0, x1, y1, shape)
    reference = np.zeros(shape, bool)
    for key in ("positive", "negative"):
        for ring in slide[key]:
            reference[inside(ring["vertices"], x0, y0, x1, y1, shape)] = key == "positive"
    np.testing.assert_array_equal(found, reference)
    np.testing.assert_array_equal(same.window(x0, y0, x1, y1, shape), reference)
    assert truth.area(16) == pytest.approx(reference.sum() * ((x1 - x0) / shape[1]) * ((y1 - y0) / shape[0]), rel=0.02)


def blobs(shape, seed=0):
    noise = np.random.default_rng(seed).random((shape[0] // 50 + 1, shape[1] // 50 + 1)) > 0.6
    return np.kron(noise, np.ones((50, 50), bool))[: shape[0], : shape[1]]


def write_mask(path, mask, factors=(1, 2, 4), **options):
    with tifffile.TiffWriter(path) as tiff:
        for factor in factors:
            options = {"tile": (64, 64), "compression": "lzw", "subfiletype": int(factor > 1)} | options
            tiff.write(mask[::factor, ::factor], photometric="minisblack", metadata=None, **options)
    return path


@pytest.mark.parametrize("options", [{}, {"tile": None, "rowsperstrip": 16}, {"compression": "deflate"}])
def test_windows_of_a_mask_pyramid_are_those_of_the_mask(tmp_path, options):
    mask = blobs((301, 443))
    truth = open_truth(write_mask(tmp_path / "a.tif", mask.astype(np.uint8) * 255, **options))
    np.testing.assert_array_equal(truth.window(0, 0, 443, 301, (301, 443)), mask)
    np.testing.assert_array_equal(truth.window(37, 41, 237, 141, (100, 200)), mask[41:141, 37:237])
    np.testing.assert_array_equal(truth.window(36, 40, 236, 140, (50, 100)), mask[40:140:2, 36:236:2])
    beyond = truth.window(400, 280, 500, 330, (50, 100))
    np.testing.assert_array_equal(beyond[:21, :43], mask[280:, 400:])
    assert not beyond[21:].any()
    assert not beyond[:, 43:].any()
    assert truth.area() == mask.sum()


def test_boxes_of_a_mask_hold_all_of_it_and_leave_the_empty_parts_out(tmp_path):
    mask = np.zeros((640, 640), np.uint8)
    mask[100:130, 500:600] = 1
    np.savez(tmp_path / "b.npz", tumour=mask > 0, downsample=16)
    for path, scale in ((write_mask(tmp_path / "a.tif", mask), 1), (tmp_path / "b.npz", 16)):
        boxes = open_truth(path).boxes() / scale
        covered = np.zeros(mask.shape, bool)
        for x0, y0, x1, y1 in boxes.astype(int):
            covered[y0:y1, x0:x1] = True
        assert covered[mask > 0].all()
        assert covered.mean() < 0.1


@pytest.mark.parametrize(
    ("pixels", "options", "message"),
    [
        (np.zeros((64, 64), np.float32), {}, "its pixels are no whole numbers; save it as 8-bit grey"),
        (
            np.zeros((3, 64, 64), np.uint8),
            {"photometric": "rgb", "planarconfig": "separate"},
            "its colours are stored apart; save it as 8-bit grey",
        ),
    ],
)
def test_a_tiff_that_is_no_mask_is_refused(tmp_path, pixels, options, message):
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(64, 64), metadata=None, **options)
    with pytest.raises(AnnotationError, match=rf"mask '.*a\.tif': {message}"):
        open_truth(tmp_path / "a.tif")


def test_a_damaged_tile_of_a_mask_is_named(tmp_path):
    mask = blobs((128, 128)).astype(np.uint8)
    path = overwrite_tile(write_mask(tmp_path / "whole.tif", mask, (1,)), tmp_path / "a.tif", 3, b"\x55")
    truth = open_truth(path)
    np.testing.assert_array_equal(truth.window(0, 0, 64, 64, (64, 64)), mask[:64, :64] > 0)
    with pytest.raises(AnnotationError, match=r"mask '.*a\.tif': damaged, tile 3 \(.*\); copy it again"):
        truth.window(0, 0, 128, 128, (128, 128))


def test_a_window_beside_a_mask_is_empty(tmp_path):
    truth = open_truth(write_mask(tmp_path / "a.tif", np.ones((64, 64), np.uint8), (1,)))
    assert not truth.window(64, 0, 128, 64, (16, 16)).any()
    assert not truth.window(0, -64, 64, 0, (16, 16)).any()


def test_a_mask_padded_by_a_hundredth_keeps_its_whole_scale(tmp_path):
    """Level-0 pixels a pixel of the mask: 4 where 4 is meant, else the ratio of the widths."""
    path = write_mask(tmp_path / "a.tif", np.ones((300, 300), np.uint8), (1,))
    for size, edge in (((1190, 1191), 1200), ((1290, 1300), 1290)):
        truth = open_truth(path, level0_size=size)
        assert truth.window(edge - 1, 0, edge, 1, (1, 1)).all()
        assert not truth.window(edge, 0, edge + 1, 1, (1, 1)).any()


def test_a_value_of_the_mask_may_be_the_finding(tmp_path):
    mask = np.random.default_rng(0).integers(0, 3, (128, 128)).astype(np.uint8)
    truth = open_truth(write_mask(tmp_path / "a.tif", mask, (1,)), value=2)
    np.testing.assert_array_equal(truth.window(0, 0, 128, 128, (128, 128)), mask == 2)


def test_a_coarser_mask_is_laid_over_the_whole_slide(tmp_path):
    mask = blobs((101, 151))
    path = write_mask(tmp_path / "a.tif", mask.astype(np.uint8), (1, 2))
    truth = open_truth(path, level0_size=(1203, 805))
    np.testing.assert_array_equal(truth.window(0, 0, 1208, 808, (101, 151)), mask)
    np.testing.assert_array_equal(truth.window(0, 0, 1208, 808, (404, 604)), np.kron(mask, np.ones((4, 4), bool)))
    with pytest.raises(AnnotationError, match=r"151 x 101 pixels are not a slide of 1203 x 1203"):
        open_truth(path, level0_size=(1203, 1203))


def test_colour_masks_are_read(tmp_path):
    mask = blobs((300, 300))
    write_pyramid(tmp_path / "a.tif", np.repeat(mask[..., None] * np.uint8(255), 3, axis=2), mpp=0.5, compression="lzw")
    np.testing.assert_array_equal(open_truth(tmp_path / "a.tif").window(0, 0, 300, 300, (300, 300)), mask)


def test_the_finding_may_have_another_name(tmp_path):
    path = asap(tmp_path / "a.xml", [("DCIS", SQUARE), ("invasive", STAR), ("Exclusion", HOLE)])
    with pytest.raises(AnnotationError, match="is 'DCIS' the finding"):
        open_truth(path)
    window = (0, 0, 100, 100, (100, 100))
    square, hole = (inside(ring, *window) for ring in (SQUARE, HOLE))
    np.testing.assert_array_equal(open_truth(path, value="dcis").window(*window), square & ~hole)


@pytest.mark.parametrize(
    "head",
    [
        '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;">]>',
        '<!DOCTYPE a SYSTEM "file:///etc/passwd">',
    ],
)
def test_xml_that_declares_a_document_type_is_refused(tmp_path, head):
    with pytest.raises(AnnotationError, match="declares a document type"):
        open_truth(asap(tmp_path / "a.xml", [("_0", SQUARE)], head))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xml", "<ASAP_Annotations><Annot", r"a\.xml': no XML of ASAP"),
        ("a.xml", "<svg/>", "its root is 'svg'"),
        ("a.geojson", "{}", r"no GeoJSON \(KeyError"),
        ("a.geojson", json.dumps([feature([[[0, 0], [1, float("nan")], [1, 1]]])]), "a corner is no number"),
        ("a.json", "[", "no GeoJSON"),
        ("a.tif", "not a mask", "cannot be read as a TIFF"),
        ("a.npz", "not a mask", "needs the arrays"),
        ("a.txt", "", "unknown kind"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(AnnotationError, match=message):
        open_truth(tmp_path / name)


def test_a_slide_s_truth_is_found_by_its_name(tmp_path):
    for name in ("a.geojson", "a_mask.tif", "b.xml"):
        (tmp_path / name).touch()
    assert find_truth(tmp_path, "a").name == "a_mask.tif"
    assert find_truth(tmp_path, "b").name == "b.xml"
    with pytest.raises(AnnotationError, match="slide 'c': no ground truth"):
        find_truth(tmp_path, "c")
    with pytest.raises(AnnotationError, match="no such file"):
        open_truth(tmp_path / "c.tif")


@pytest.mark.parametrize(("size", "factor"), [((1000, 3000), 64), ((333, 257), 16), ((61, 1201), 8), ((4001, 2999), 3)])
def test_a_small_mask_keeps_its_scale_though_its_size_is_rounded(tmp_path, size, factor):
    shape = -(-size[1] // factor), -(-size[0] // factor)
    pixels = np.zeros((*shape, 3), np.uint8)
    pixels[shape[0] // 2, shape[1] - 2] = 255
    write_pyramid(tmp_path / "a.tif", pixels, mpp=1.0, compression="lzw", binary=True)
    truth = open_truth(tmp_path / "a.tif", level0_size=size)
    x, y = (shape[1] - 2) * factor, shape[0] // 2 * factor
    whole = truth.window(0, 0, *size, size[::-1])
    rows, columns = np.nonzero(whole)
    assert (columns.min(), rows.min()) == (x, y)
    assert (columns.max() + 1, rows.max() + 1) == (min(x + factor, size[0]), min(y + factor, size[1]))


def test_a_name_is_no_value_of_a_mask(tmp_path):
    write_pyramid(tmp_path / "a.tif", np.zeros((8, 8, 3), np.uint8), mpp=1.0, compression="lzw")
    assert open_truth(tmp_path / "a.tif", value="2").value == 2
    with pytest.raises(AnnotationError, match=r"a\.tif': its pixels are numbers, 'Tumor' is none"):
        open_truth(tmp_path / "a.tif", value="Tumor")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"type":"GeometryCollection","geometries":[' * 2000 + "]}" * 2000, "nested deeper than any GeoJSON"),
        ("[" * 100_000, "nested deeper than any GeoJSON"),
        ('{"type":"Polygon","coordinates":[[[1],[2],[3]]]}', "no GeoJSON"),
        ('{"type":"Polygon","coordinates":[[[1e308,1],[2,-1e308],[3,3]]]}', "a corner lies beyond any slide"),
        ('{"type":"FeatureCollection","frame_origin":5,"features":[]}', "no GeoJSON"),
        ('{"type":"FeatureCollection","features":[5]}', "no GeoJSON"),
        ('{"type":"FeatureCollection","features":5}', "no GeoJSON"),
        ('{"type":"Polygon","coordinates":[5]}', "no GeoJSON"),
        ('{"type":"Polygon","coordinates":[[[1,2],[3,4],[5,' + "9" * 400 + "]]]}", "no GeoJSON"),
        ("[" + "9" * 5000 + "]", "no GeoJSON"),
    ],
)
def test_polygons_that_are_none_are_one_error_that_names_the_file(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "odd.geojson").write_text(text)
    with pytest.raises(AnnotationError, match=rf"odd\.geojson': .*{told}"):
        open_truth(tmp_path / "odd.geojson")


@pytest.mark.parametrize("damage", ["cut", "content", "shape", "scale"])
def test_a_stored_mask_that_is_none_is_one_error_that_names_the_file(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "odd.npz"
    mask = np.ones((8, 8) if damage != "shape" else (2, 2, 2), bool)
    np.savez(path, tumour=mask, downsample=4.0 if damage != "scale" else 0.0)
    content = bytearray(path.read_bytes())
    if damage == "content":
        content[content.index(b"NUMPY") + 140] ^= 1
    path.write_bytes(content[: -30 if damage == "cut" else None])
    with pytest.raises(AnnotationError, match=r"odd\.npz': cannot be read"):
        open_truth(path)


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("ImageWidth", 4096),
        ("TileWidth", 1 << 20),
        ("SamplesPerPixel", 0),
        ("ImageLength", 0),
        ("TileOffsets", (1 << 20,) * 4),
    ],
)
def test_a_mask_with_odd_tags_is_one_error_that_names_the_file(tmp_path: Path, tag: str, value: object) -> None:
    path = tmp_path / "odd.tif"
    tifffile.imwrite(path, np.ones((128, 128), np.uint8), tile=(64, 64))
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[0].tags[tag].overwrite(value)
    with pytest.raises(AnnotationError, match=r"odd\.tif': "):
        open_truth(path).window(0, 0, 4096, 128, (8, 256))


def test_a_path_that_is_too_long_is_a_file_that_is_not_there() -> None:
    with pytest.raises(AnnotationError, match="no such file"):
        open_truth("x" * 5000 + ".geojson")

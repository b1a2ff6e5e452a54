"""Heatmaps as annotations: each client's format, its frame, and names that need escaping."""

import json
import math
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from monai_mil.heatmaps import SlideFrame, assemble
from monai_mil.label import asap_xml, dsa_json, geojson_reply, heat_regions

FRAME = SlideFrame("S-1", None, level0_size=(1000, 800), mpp=0.5, tile_size_level0=100.0)


def ring_of_tiles(threshold=0.5):
    """Eight tiles around a hole whose middle is at (250, 350), one of them of the highest score."""
    corners = [(x, y) for x in (100, 200, 300) for y in (200, 300, 400)]
    scores = [0.1 if corner == (200, 300) else 0.6 for corner in corners]
    scores[0] = 1.0
    return assemble(scores, corners, FRAME, name="attention", threshold=threshold)


def area(ring):
    x, y = np.asarray(ring, float)[:, :2].T
    return abs(float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum())) / 2


def polygons(text):
    root = ElementTree.fromstring(text)
    return [
        (each.get("Name"), each.get("Color"), [(float(c.get("X")), float(c.get("Y"))) for c in each.iter("Coordinate")])
        for each in root.iter("Annotation")
    ]


def test_above_the_threshold_is_medium_and_above_the_middle_to_the_highest_is_high():
    found = heat_regions(ring_of_tiles())
    assert [(each.name, each.region.area, len(each.region.rings)) for each in found] == [
        ("MIL medium", 80_000.0, 2),
        ("MIL high", 10_000.0, 1),
    ]


def test_a_slide_below_its_operating_point_has_no_heat():
    assert heat_regions(replace(ring_of_tiles(), threshold=math.inf)) == []


def test_without_a_threshold_heat_is_where_the_network_looked_most():
    corners = [(x, y) for x in range(0, 1000, 100) for y in range(0, 800, 100)]
    heatmap = assemble(np.arange(80) / 80, corners, FRAME)
    found = heat_regions(heatmap)
    assert sum(each.region.area for each in found if each.name == "MIL medium") == 90_000.0  # 9 of 80: above 90 %
    assert sum(each.region.area for each in found if each.name == "MIL high") == 30_000.0


def test_the_window_clips_and_small_regions_are_left_out():
    found = heat_regions(ring_of_tiles(), window=(0, 0, 150, 250))
    assert {(each.name, each.region.area) for each in found} == {("MIL medium", 2500.0), ("MIL high", 2500.0)}
    assert found[0].region.rings[0].max(axis=0).tolist() == [150, 250]
    assert heat_regions(ring_of_tiles(), window=(0, 0, 150, 250), min_area=2501) == []


def test_asap_has_the_same_area_without_holes_in_the_client_s_frame():
    found = heat_regions(ring_of_tiles(), holes=False)
    drawn = polygons(asap_xml(found, name="n", facts={}, origin=(100, 200)))
    medium = [points for name, _, points in drawn if name == "MIL medium"]
    assert sum(map(area, medium)) == 80_000.0
    assert min(x for points in medium for x, _ in points) == 0
    assert all(len(colour) == 7 and colour[0] == "#" for _, colour, _ in drawn)


def test_names_with_quotes_angle_brackets_and_entities_come_back_as_they_were():
    name = """a "b" <c> & 'd' &amp; \x01"""
    root = ElementTree.fromstring(asap_xml([], name=name, facts={"note": name}, origin=(0, 0)))
    said = root.find("Annotations")
    assert said.get("Name") == name.replace("\x01", "\N{REPLACEMENT CHARACTER}")
    assert json.loads(said.get("Description"))["note"] == name
    assert json.loads(dsa_json([], None, name=name, facts={}))["name"] == name


def test_the_archive_reads_its_description_from_the_last_line_but_one():
    heatmap = ring_of_tiles()
    text = dsa_json(heat_regions(heatmap), heatmap, name="n", facts={"model": "m"})
    reply = json.loads(text)
    assert json.loads(json.loads("{" + text.splitlines()[-2] + "}")["description"])["model"] == "m"
    medium, high, grid = reply["elements"]
    assert (medium["type"], medium["closed"], area(medium["points"])) == ("polyline", True, 90_000.0)
    assert [area(hole) for hole in medium["holes"]] == [10_000.0]
    assert (medium["group"], medium["label"], "holes" in high) == ("MIL medium", {"value": "MIL medium"}, False)
    assert (grid["type"], grid["gridWidth"], grid["origin"], grid["dx"]) == ("griddata", 3, [150.0, 250.0, 0], 100.0)
    assert grid["values"] == [1.0, 0.6, 0.6, 0.6, 0.1, 0.6, 0.6, 0.6, 0.6]
    assert len(grid["rangeValues"]) == len(grid["colorRange"])


def test_geojson_keeps_holes_and_says_its_frame():
    reply = geojson_reply(heat_regions(ring_of_tiles()), facts={"prediction": "tumor"}, origin=(10, 20))
    medium = reply["features"][0]
    assert (reply["type"], reply["frame_origin"], reply["prediction"]) == ("FeatureCollection", [10, 20], "tumor")
    assert [area(ring) for ring in medium["geometry"]["coordinates"]] == [90_000.0, 10_000.0]
    assert np.min(medium["geometry"]["coordinates"][0], axis=0).tolist() == [90, 180]
    assert medium["properties"]["classification"]["name"] == "MIL medium"


def test_a_single_token_that_differs_from_all_around_it_is_not_outlined():
    scores = np.zeros((2, 10, 10))
    scores[0, 3, 3] = scores[1, 2:6, 2:6] = 1
    scores[1, 4, 4] = 0
    heatmap = assemble(scores, [[0, 0], [100, 0]], FRAME, threshold=0.5)
    medium = [each for each in heat_regions(heatmap) if each.name == "MIL medium"]
    assert [(len(each.region.rings), each.region.rings[0].min(axis=0).tolist()) for each in medium] == [(1, [120, 20])]


def test_the_archive_s_heatmap_has_a_value_for_every_token():
    scores = np.arange(200).reshape(2, 10, 10) / 199
    grid = json.loads(dsa_json([], assemble(scores, [[0, 0], [100, 0]], FRAME), name="n", facts={}))["elements"][0]
    assert (grid["gridWidth"], len(grid["values"]), grid["origin"], grid["dx"]) == (20, 200, [5.0, 5.0, 0], 10.0)
    assert grid["values"][-1] == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_pieces_without_holes_cover_what_the_regions_do(seed):
    rng = np.random.default_rng(seed)
    corners = [(x, y) for x in range(0, 1000, 50) for y in range(0, 800, 50)]
    frame = replace(FRAME, tile_size_level0=50.0)
    heatmap = assemble(rng.random(len(corners)), corners, frame, threshold=0.35)
    whole, pieces = heat_regions(heatmap), heat_regions(heatmap, holes=False)
    assert max(len(each.region.rings) for each in whole) > 1
    assert {len(each.region.rings) for each in pieces} == {1}
    for name in ("MIL medium", "MIL high"):
        covered = sum(each.region.area for each in whole if each.name == name)
        assert sum(area(each.region.rings[0]) for each in pieces if each.name == name) == covered

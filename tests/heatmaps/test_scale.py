import json

import numpy as np
import pytest

from monai_mil.heatmaps import assemble, drawing_style, export_geojson, foreground_text, muted_text
from monai_mil.heatmaps.colours import colour_index, colour_table
from monai_mil.heatmaps.decision import mute
from monai_mil.heatmaps.scale import colour_scale
from tests.heatmaps.examples import frame, scan_heatmap

COORDS = [[100 * x, 0] for x in range(8)]


def attention(*peaks, n=8):
    """Weights that are even but for the peaks, in multiples of an even share."""
    rest = (n - sum(peaks)) / (n - len(peaks))
    return np.array([*peaks, *[rest] * (n - len(peaks))], np.float32) / n


def texts(scale, scores):
    return [label.replace("\N{MULTIPLICATION SIGN}", "x") for label, _ in scale.ticks(scores)]


@pytest.mark.parametrize(
    ("peaks", "top", "labels"),
    [
        ((1.02,), 1.25, ["≤ 1x", "1.06x", "1.12x", "1.18x", "1.25x"]),
        ((1.9,), 2, ["≤ 1x", "1.19x", "1.41x", "1.68x", "2x"]),
        ((3.0, 2.0), 4, ["≤ 1x", "2x", "4x"]),
        ((7.9,), 8, ["≤ 1x", "2x", "4x", "8x"]),
    ],
)
def test_attention_is_measured_in_even_shares_on_a_scale_that_ends_in_round_numbers(peaks, top, labels):
    scores = attention(*peaks)
    scale = colour_scale(scores, {})
    assert (scale.measure, scale.ends) == ("attention", (1, pytest.approx(top)))
    assert texts(scale, scores) == labels
    np.testing.assert_allclose(scale.values(scores), np.log2(np.maximum(scores * 8, 1)), atol=1e-6)
    assert colour_index(scale.values(scores), scale.limits)[-1] == 0, "what has less than an even share is darkest"


def test_attention_beyond_the_scale_is_said_and_its_even_share_may_be_given():
    scores = attention(90.0, n=100)
    assert texts(colour_scale(scores, {}), scores)[-1] == "≥ 32x"
    half = colour_scale(scores[:50], {"uniform": 1 / 100})
    assert half.values(scores[:50])[0] == pytest.approx(np.log2(90), abs=1e-5)


@pytest.mark.parametrize(
    ("scores", "attributes", "limits"),
    [
        ([0.003, 0.001], {}, (0, 1)),
        ([0.3, 0.4], {"limits": [0.0, 2.0]}, (0, 2)),
        ([-1.0, 3.0], {}, (-1, 3)),
        ([0.5, 0.5], {"limits": [0.0, 1.0]}, (0, 1)),
    ],
)
def test_scores_with_a_scale_of_their_own_keep_it_on_every_slide(scores, attributes, limits):
    scale = colour_scale(np.array(scores, np.float32), attributes)
    assert (scale.measure, scale.limits) == ("score", limits)


def test_percentiles_and_limits_are_drawn_where_they_are_asked_for():
    scores = attention(4.0)
    assert colour_scale(scores, {}, percentile=True).limits == (0, 100)
    assert colour_scale(scores, {}, limits=(0.0, 0.5)).values(scores) is scores


@pytest.mark.parametrize(
    ("attributes", "threshold", "text"),
    [
        ({}, None, ""),
        ({}, np.inf, "below the operating point: no foreground, drawn muted"),
        ({"called": True, "finding": "tumor", "finding_probability": 0.9}, 0.5, ""),
        (
            {"called": False, "finding": "tumor", "finding_probability": 0.003, "operating_point": 0.525},
            np.inf,
            "below the operating point: no foreground, drawn muted (tumor 0.003, point 0.525)",
        ),
        (
            {"called": False, "finding": "tumor", "finding_probability": 0.0003},
            None,
            "tumor not predicted (< 0.001): drawn muted",
        ),
    ],
)
def test_a_slide_or_scan_below_its_operating_point_is_muted_and_says_so(attributes, threshold, text):
    slide = assemble(attention(4.0), COORDS, frame(), attributes=attributes, threshold=threshold)
    assert muted_text(slide) == muted_text(scan_heatmap(attributes=attributes, threshold=threshold)) == text
    table = colour_table("viridis")
    np.testing.assert_array_equal(drawing_style(slide).table("viridis"), mute(table) if text else table)
    assert foreground_text(slide) == ("outlined above 0.5" if threshold == 0.5 else text)
    assert np.array_equal(drawing_style(slide, muted=False).table("viridis"), table)


def test_a_muted_colour_is_nearly_grey():
    assert np.ptp(mute(colour_table("viridis")).astype(int), axis=1).max() < 60
    assert np.ptp(colour_table("viridis").astype(int), axis=1).max() > 200


@pytest.mark.parametrize("called", [True, False])
def test_qupath_s_tiles_have_the_colours_of_the_figure_and_the_file_says_what_they_mean(tmp_path, called):
    said = {"called": called, "finding": "tumor", "finding_probability": 0.3}
    heatmap = assemble(attention(4.0, 2.0), COORDS, frame(), attributes=said)
    document = json.loads(export_geojson(heatmap, tmp_path / "a.geojson").read_text(encoding="utf-8"))
    table = colour_table("viridis") if called else mute(colour_table("viridis"))
    tiles = [feature["properties"] for feature in document["features"]]
    assert [tile["color"] for tile in tiles] == [table[step].tolist() for step in (255, 128, *[0] * 6)]
    assert [tile["measurements"]["attention x even share"] for tile in tiles[:2]] == [4, 2]
    muted = "" if called else ", tumor not predicted (0.300): drawn muted"
    assert document["colours"] == f"attention, as multiples of an even share{muted}"

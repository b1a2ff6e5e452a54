"""The arithmetic of active learning, with values worked out by hand."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from monai_mil.heatmaps import SlideFrame, assemble
from monai_mil.label import (
    entropy,
    farthest_first,
    heat_entropy,
    mutual_information,
    next_tile,
    rank_product,
    score_image,
)

FRAME = SlideFrame("S-1", None, level0_size=(400, 300), mpp=0.5, tile_size_level0=100.0)
CORNERS = [(x, y) for y in (0, 100, 200) for x in (0, 100, 200, 300)]


def map_of(scores, **attributes):
    return assemble(scores, CORNERS, FRAME, attributes=attributes)


def test_labels_that_do_not_exclude_each_other_have_the_sum_of_their_entropies():
    assert entropy([0.5, 0.5, 0.5]) == pytest.approx(3 * np.log(2))
    assert entropy([0.9, 0.9]) == pytest.approx(2 * entropy([0.9, 0.1]))


def test_a_committee_of_one_mind_has_no_information_however_doubtful():
    assert mutual_information([[0.5, 0.5]] * 3) == pytest.approx(0)
    assert mutual_information([[0.9, 0.1], [0.1, 0.9]]) == pytest.approx(np.log(2) - entropy([0.9, 0.1]))


def test_heat_is_unsure_where_the_highest_tiles_are_or_attention_is_even():
    assert heat_entropy(map_of([0.5] * 12, limits=(0, 1))) == pytest.approx(1)
    assert heat_entropy(map_of([1.0] * 12, limits=(0, 1))) == pytest.approx(0)
    assert heat_entropy(map_of([1 / 12] * 12, uniform=1 / 12)) == pytest.approx(1)
    assert heat_entropy(map_of([1.0] + [0.0] * 11, uniform=1 / 12)) == pytest.approx(0)


def test_the_cold_start_begins_in_the_middle_and_goes_far():
    points = {name: np.array([float(at)]) for name, at in {"a": 0, "b": 5, "c": 11, "d": 4}.items()}
    assert farthest_first(points, count=3) == ["b", "c", "a"]
    assert farthest_first(points, [np.array([0.0]), np.array([11.0])], 9) == ["b", "d", "a", "c"]
    assert farthest_first({}) == []


def test_the_hybrid_needs_both():
    product = rank_product({"a": 0.9, "b": 0.8, "c": 0.1}, {"a": 1, "b": 2, "c": 3})
    assert product == {"a": 3.0, "b": 4.0, "c": 3.0}


def test_the_next_tile_is_the_best_that_nobody_covered_and_within_the_slide():
    heatmap = map_of(np.arange(12) / 11)
    assert next_tile(heatmap, (100, 100)) == (300, 200, 100, 100)
    assert next_tile(heatmap, (150, 150)) == (250, 150, 150, 150)
    assert next_tile(heatmap, (100, 100), [(290, 190, 400, 300)]) == (200, 200, 100, 100)
    assert next_tile(heatmap, (1024, 1024)) == (0, 0, 400, 300)
    assert next_tile(heatmap, (100, 100), [(0, 0, 400, 300)]) is None
    assert all(isinstance(value, int) for value in next_tile(heatmap, (77, 33)))


def test_the_uncertain_tile_is_the_one_closest_to_the_threshold():
    heatmap = replace(map_of(np.arange(12) / 11), threshold=0.19)
    assert next_tile(heatmap, (100, 100), mode="uncertain") == (200, 0, 100, 100)


def test_all_that_is_asked_of_a_scan_is_asked_of_its_series():
    asked = []
    prediction = SimpleNamespace(prob=np.array([0.5, 0.5]))
    facts = {"prediction": "positive", "probabilities": {}}
    answer = SimpleNamespace(prediction=prediction, heatmap=None, facts=facts, fingerprint="f")
    model = SimpleNamespace(
        has_dropout=True,
        has_anchor=True,
        answer=lambda *place: asked.append(place) or answer,
        drawn_probabilities=lambda *place, passes: asked.append(place) or np.full((passes, 2), 0.5),
        anchor_disagreement=lambda *place: asked.append(place) or 0.25,
    )
    scores = score_image(model, "S-1", Path("study"), "1.2.3")
    assert asked == [("S-1", Path("study"), "1.2.3")] * 3
    assert scores.values == {"uncertainty": pytest.approx(np.log(2)), "bald": 0.0, "anchor": 0.25}

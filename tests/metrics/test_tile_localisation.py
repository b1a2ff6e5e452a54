"""Tile-level localisation: by hand, and what its definitions imply."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from monai_mil.metrics import FrocSlide, LocalisedSlide, localisation_report, scaled_to_unit, tile_figures


def test_rescaled_scores_reach_from_0_to_1_and_equal_ones_are_0() -> None:
    assert scaled_to_unit([2, 4, 3]).tolist() == [0, 1, 0.5]
    assert scaled_to_unit([7, 7]).tolist() == [0, 0]
    assert scaled_to_unit([7]).tolist() == [0]


def test_a_normal_slide_of_rescaled_scores_is_never_fully_specific() -> None:
    scores = scaled_to_unit(np.random.default_rng(0).random(100) ** 8)
    specificity = tile_figures(scores, np.zeros(100, bool), [])["specificity"]
    assert specificity == pytest.approx(np.mean(scores <= 0.5))
    assert specificity < 1


def test_a_tumour_slide_by_hand() -> None:
    figures = tile_figures([0.9, 0.6, 0.4, 0.7, 0.1], [True, True, True, False, False], [[0, 1], [2]])
    assert figures["dice"] == pytest.approx(2 * 2 / 6)
    assert not figures["strict"]
    assert not figures["by_lesion"]
    assert tile_figures([0.9, 0.2], [True, True], [[0, 1]])["by_lesion"]
    assert not tile_figures([0.9, 0.2], [True, True], [[0, 1]])["strict"]
    assert tile_figures([0.9, 0.8, 0.2], [True, True, False], [[0, 1]])["strict"]


def test_a_lesion_where_no_tile_is_is_not_found() -> None:
    figures = tile_figures([0.9], [False], [[]])
    assert figures == {"dice": 0.0, "strict": False, "by_lesion": False}


def test_a_small_lesion_is_found_by_a_tile_whose_centre_is_outside_it() -> None:
    assert tile_figures([0.9, 0.1], [False, False], [[0]])["by_lesion"]


def test_tumour_without_a_lesion_and_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="1 tumour tiles without a lesion"):
        tile_figures([0.9], [True], [])
    with pytest.raises(ValueError, match="must both be"):
        tile_figures([0.9], [True, False], [[0]])


def test_the_report_averages_over_slides_and_draws_patients() -> None:
    tumour = [LocalisedSlide(f"t{i}", f"p{i // 2}", dice=i / 10, strict=i > 7, by_lesion=i > 3) for i in range(10)]
    normal = [LocalisedSlide(f"n{i}", f"q{i}", specificity=0.9 + i / 100) for i in range(4)]
    report = json.loads(json.dumps(localisation_report(tumour + normal, n=200)))
    assert (report["tumour_slides"], report["normal_slides"]) == (10, 4)
    assert report["dice"]["value"] == pytest.approx(0.45)
    assert report["dice"]["low"] < 0.45 < report["dice"]["high"]
    assert report["specificity"]["value"] == pytest.approx(0.915)
    assert report["success_strict"]["value"] == pytest.approx(0.2)
    assert report["success_lesion"]["value"] == pytest.approx(0.6)
    assert report["froc"] is None


def test_a_cohort_of_normal_slides_has_a_specificity_only() -> None:
    froc = FrocSlide(np.array([0.9]), np.empty(0), normal=True)
    report = localisation_report([LocalisedSlide("n", "q", specificity=0.9, froc=froc)], n=0)
    assert report["specificity"]["value"] == 0.9
    assert math.isnan(report["dice"]["value"])
    assert report["froc"] is None


def test_the_froc_of_the_report_is_that_of_its_slides() -> None:
    slides = [
        LocalisedSlide("t", "p", dice=1.0, froc=FrocSlide(np.array([0.7]), np.array([0.9, 0.0]), normal=False)),
        LocalisedSlide("n", "q", specificity=0.9, froc=FrocSlide(np.array([0.8, 0.6]), np.empty(0), normal=True)),
    ]
    report = localisation_report(slides, n=0)
    assert report["froc"]["score"] == pytest.approx(0.5)
    assert list(report["froc"]["sensitivities"]) == ["0.25", "0.5", "1", "2", "4", "8"]
    assert localisation_report(slides, "normal", n=0)["froc"]["slides"] == 1

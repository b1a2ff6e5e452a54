"""Dice of counts, by size, and the paired permutation test."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from monai_mil.metrics import DiceCounts, LesionDice, dice_summary, lesion_dice, lesion_size, paired_permutation_test


def lesion(area, counts, patient="p"):
    return LesionDice("slide", patient, 1, area, counts, (0, 0, 1, 1))


def test_counts_give_dice_and_add_up():
    one, two = DiceCounts(3, 4, 8), DiceCounts(0, 5, 1)
    assert one.dice == 0.5
    assert one + two == DiceCounts(3, 9, 9)
    assert math.isnan(DiceCounts(0, 0, 0).dice)


def test_the_summary_tells_the_mean_of_slides_and_the_dice_of_all_pixels():
    counts = [DiceCounts(90, 100, 100), DiceCounts(0, 5, 5), DiceCounts(5, 10, 10), DiceCounts(1, 3, 1)]
    summary = dice_summary(counts, ["a", "a", "b", "c"], n=200)
    single = [0.9, 0.0, 0.5, 0.5]
    assert summary["count"] == 4
    assert summary["mean"]["value"] == pytest.approx(np.mean(single))
    assert summary["std"] == pytest.approx(np.std(single, ddof=1))
    assert summary["pooled"]["value"] == pytest.approx(2 * 96 / 234)
    for name in ("mean", "pooled"):
        assert summary[name]["low"] < summary[name]["value"] < summary[name]["high"]


def test_a_patient_s_slides_are_drawn_together():
    counts = [DiceCounts(1, 1, 1), DiceCounts(0, 1, 1)] * 2
    together = dice_summary(counts, ["a", "a", "b", "b"], n=200)
    assert together["mean"]["low"] == together["mean"]["high"] == 0.5
    assert dice_summary(counts, None, n=200)["mean"]["low"] == 0


def test_lesions_are_summed_up_by_size():
    assert [lesion_size(area) for area in (1, 99_999, 1e5, 1e7, 1e7 + 1)] == [
        "small",
        "small",
        "moderate",
        "moderate",
        "large",
    ]
    lesions = [lesion(50, DiceCounts(1, 1, 1)), lesion(70, DiceCounts(0, 0, 70)), lesion(900, DiceCounts(9, 9, 900))]
    found = lesion_dice(lesions, (100, 500), n=10)
    assert {size: part["count"] for size, part in found.items()} == {"small": 2, "moderate": 0, "large": 1}
    assert found["small"]["mean"]["value"] == 0.5
    assert math.isnan(found["moderate"]["mean"]["value"])


def test_the_test_counts_the_changes_of_sign_that_reach_the_mean():
    difference = np.array([0.3, -0.1, 0.2, 0.25, 0.05, -0.02])
    signs = np.array(list(product([-1, 1], repeat=6)))
    exact = np.mean(signs @ difference >= difference.sum() - 1e-12)
    assert paired_permutation_test(difference, np.zeros(6), 200_000) == pytest.approx(exact, abs=0.005)


def test_p_is_uniform_where_nothing_differs():
    rng = np.random.default_rng(0)
    p = [paired_permutation_test(*rng.random((2, 40)), n=500, seed=seed) for seed in range(400)]
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.03)


def test_p_of_a_shifted_sample_is_the_smallest_there_is():
    first = np.random.default_rng(1).random(60)
    assert paired_permutation_test(first, first - 0.05) == pytest.approx(1e-4, rel=1e-3)
    assert paired_permutation_test(first - 0.05, first) == 1.0
    assert paired_permutation_test(first, first) == 1.0
    assert paired_permutation_test(first, 0.5 * first, seed=3) == paired_permutation_test(first, 0.5 * first, seed=3)


def test_what_is_no_pair_is_refused():
    with pytest.raises(ValueError, match="needs pairs"):
        paired_permutation_test([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="needs pairs"):
        paired_permutation_test([], [])
    with pytest.raises(ValueError, match="pair 1 is not a number"):
        paired_permutation_test([1.0, np.nan], [1.0, 2.0])

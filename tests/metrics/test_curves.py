"""Curves and instance AUROC."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference

from monai_mil.metrics import calibration, instance_auroc, roc_curve


def test_a_roc_curve_equals_scikit_learn_s() -> None:
    score, label = np.random.default_rng(0).random(50).round(1), np.arange(50) % 3 == 0
    curve = roc_curve(score, label)
    expected = reference.roc_curve(label, score, drop_intermediate=False)
    np.testing.assert_allclose((curve.false_positive_rate, curve.true_positive_rate), expected[:2])
    np.testing.assert_allclose(curve.threshold, expected[2])


def test_a_roc_curve_of_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="positive and negative"):
        roc_curve([0.1, 0.2], [1, 1])


def test_calibration_of_hand_made_bins() -> None:
    curve = calibration([0.05, 0.05, 0.95, 0.95], [0, 1, 1, 1])
    np.testing.assert_allclose(curve.confidence, [0.05, 0.95])
    np.testing.assert_allclose(curve.frequency, [0.5, 1.0])
    np.testing.assert_array_equal(curve.count, [2, 2])
    assert curve.expected_error == pytest.approx((0.45 + 0.05) / 2)


def test_probabilities_that_mean_what_they_say_have_a_small_calibration_error() -> None:
    generator = np.random.default_rng(0)
    prob = generator.random(20_000)
    assert calibration(prob, generator.random(20_000) < prob).expected_error < 0.02
    assert calibration(np.ones((4, 3)) / 3, [0, 1, 2, 0]).expected_error == pytest.approx(0.5 - 1 / 3)


def test_certain_predictions_fall_into_the_last_bin() -> None:
    assert calibration([1.0, 0.0], [1, 0]).expected_error == 0


def test_instance_auroc_averages_over_bags_that_hold_both_kinds() -> None:
    scores = [np.array([0.1, 0.9]), np.array([0.9, 0.1]), np.array([0.3, 0.4])]
    labels = [np.array([0, 1]), np.array([0, 1]), np.array([0, 0])]
    assert instance_auroc(scores[:1], labels[:1]) == 1.0
    assert instance_auroc(scores, labels) == 0.5
    assert np.isnan(instance_auroc(scores[2:], labels[2:]))

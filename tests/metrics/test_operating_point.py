"""Operating points, and what a report tells of decisions at them."""

from __future__ import annotations

import numpy as np
import pytest

from monai_mil.metrics import (
    balanced_accuracy,
    classification_report,
    decisions,
    operating_point,
    operating_points,
    read_operating_points,
)


def rates(prob, label, threshold):
    positive = np.asarray(prob) >= threshold
    return positive[np.asarray(label) == 1].mean(), (~positive)[np.asarray(label) == 0].mean()


def scores(seed, count=60):
    rng = np.random.default_rng(seed)
    label = np.arange(count) % 2
    return (0.03 * (rng.normal(size=count) + label)).clip(0, 1).round(3), label


@pytest.mark.parametrize("seed", range(5))
def test_youden_s_point_is_the_best_of_all_thresholds(seed):
    prob, label = scores(seed)
    point = operating_point(prob, label)
    assert (point.sensitivity, point.specificity) == pytest.approx(rates(prob, label, point.threshold))
    best = max(sum(rates(prob, label, threshold)) for threshold in np.unique(prob))
    assert point.sensitivity + point.specificity == pytest.approx(best)


@pytest.mark.parametrize("wanted", [0.5, 0.9, 1.0])
def test_a_wanted_sensitivity_is_reached_with_the_highest_specificity(wanted):
    prob, label = scores(7)
    point = operating_point(prob, label, wanted)
    assert point.sensitivity >= wanted
    reaching = [rates(prob, label, t)[1] for t in np.unique(prob) if rates(prob, label, t)[0] >= wanted]
    assert point.specificity == pytest.approx(max(reaching))


def test_the_threshold_lies_between_the_classes_where_they_are_apart():
    assert operating_point([0.01, 0.02, 0.06, 0.3], [0, 0, 1, 1]).threshold == pytest.approx(0.04)


def test_of_equally_good_points_the_most_sensitive_is_taken():
    point = operating_point([0.1, 0.2, 0.3, 0.4], [0, 1, 0, 1])
    assert (point.sensitivity, point.specificity) == (1.0, 0.5)


def test_unknown_labels_are_left_out():
    known = operating_points([[0.1], [0.4]], [[0], [1]])
    assert operating_points([[0.1], [0.9], [0.4]], [[0], [np.nan], [1]]) == known


def test_of_two_exclusive_classes_the_points_say_the_same():
    prob, label = scores(3)
    first, second = operating_points(np.stack([1 - prob, prob], axis=1), label)
    assert first.threshold == pytest.approx(1 - second.threshold)
    assert second == operating_points(prob[:, None], label)[0]
    assert len(operating_points(np.full((6, 3), 1 / 3), [0, 1, 2, 0, 1, 2])) == 3


@pytest.mark.parametrize(
    ("prob", "label", "rule", "message"),
    [
        ([0.1, 0.2], [1, 1], "youden", "positive and negative cases"),
        ([np.nan, 0.2], [0, 1], "youden", "case 0 is not a number"),
        ([0.1, 0.2], [0, 1], "best", "'youden' or a sensitivity"),
        ([0.1, 0.2], [0, 1], 1.5, "'youden' or a sensitivity"),
    ],
)
def test_what_has_no_operating_point_is_refused(prob, label, rule, message):
    with pytest.raises(ValueError, match=message):
        operating_point(prob, label, rule)


def test_decisions_follow_the_points():
    prob = np.array([[0.9, 0.1], [0.97, 0.03]])
    assert decisions(prob, [0.95, 0.05], exclusive=True).tolist() == [[0, 1], [1, 0]]
    assert decisions(prob, [0.95, 0.05], exclusive=False).tolist() == [[0, 1], [1, 0]]
    assert decisions([[0.5, 0.3, 0.2]], [0.6, 0.1, 0.3], exclusive=True).tolist() == [[0, 1, 0]]
    with pytest.raises(ValueError, match="1 operating points for probabilities"):
        decisions(prob, [0.5], exclusive=True)


def test_a_report_judges_decisions_at_the_points_and_ranks_as_before():
    prob, label = scores(1)
    both = np.stack([1 - prob, prob], axis=1)
    point = operating_point(prob, label)
    limits = [1 - point.threshold, point.threshold]
    report = classification_report(both, label, ["normal", "tumor"], n=50, operating_points=limits)
    plain = classification_report(both, label, ["normal", "tumor"], n=50)
    assert report["balanced_accuracy"]["value"] == pytest.approx((point.sensitivity + point.specificity) / 2)
    assert plain["balanced_accuracy"]["value"] == pytest.approx(balanced_accuracy(both, label)) == 0.5
    assert report["auroc"] == plain["auroc"]
    tumor = report["classes"]["tumor"]
    assert tumor["operating_point"] == point.threshold
    assert tumor["sensitivity"]["value"] == pytest.approx(point.sensitivity)
    assert tumor["specificity"]["low"] < point.specificity < tumor["specificity"]["high"]


def test_every_label_of_a_multi_label_report_has_its_own_figures():
    rng = np.random.default_rng(0)
    label = (rng.random((80, 2)) > 0.5).astype(float)
    prob = (0.3 * label + 0.7 * rng.random((80, 2))) * [1.0, 0.05]
    label[:20, 1] = np.nan
    report = classification_report(prob, label, ["a", "b"], n=20, operating_points=[0.5, 0.025])
    sensitivity, specificity = rates(prob[20:, 1], label[20:, 1], 0.025)
    assert report["classes"]["b"]["sensitivity"]["value"] == pytest.approx(sensitivity)
    assert report["classes"]["b"]["specificity"]["value"] == pytest.approx(specificity)
    assert report["classes"]["a"]["auroc"]["low"] <= report["classes"]["a"]["auroc"]["value"]


@pytest.mark.parametrize(("metadata", "found"), [({"operating_points": [0.4]}, [0.4]), ({}, None)])
def test_operating_points_are_read_from_a_bundle_s_metadata(metadata, found):
    assert read_operating_points(metadata, outputs=1) == found
    assert read_operating_points(metadata, outputs=2) is None, "those of a network with fewer outputs"

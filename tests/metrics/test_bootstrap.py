"""Intervals are reproducible, cover what they should and keep patients and classes whole."""

from __future__ import annotations

import numpy as np
import pytest

from monai_mil.metrics import auroc, bootstrap_ci, classification_report
from monai_mil.metrics.bootstrap import resamples


def draws(*arguments) -> np.ndarray:
    return np.concatenate(list(resamples(*arguments)))


def test_the_same_seed_gives_the_same_interval() -> None:
    prob, label = np.random.default_rng(0).random(40), np.arange(40) % 2
    assert bootstrap_ci(auroc, prob, label, seed=1) == bootstrap_ci(auroc, prob, label, seed=1)
    assert bootstrap_ci(auroc, prob, label, seed=1) != bootstrap_ci(auroc, prob, label, seed=2)


def test_an_interval_equals_a_plain_loop_over_the_same_resamples() -> None:
    prob, label = np.random.default_rng(0).random(30), np.arange(30) % 3 == 0
    interval = bootstrap_ci(auroc, prob, label, n=50, seed=4)
    values = []
    for draw in draws(label, 50, 4, None).astype(int):
        cases = np.repeat(np.arange(30), draw)
        values.append(auroc(prob[cases], label[cases]))
    assert [interval.low, interval.high] == pytest.approx(np.quantile(values, [0.025, 0.975]))


def test_95_percent_intervals_cover_the_truth_about_95_times_in_100() -> None:
    generator = np.random.default_rng(5)
    label = np.arange(120) % 2
    covered = 0
    for seed in range(100):
        interval = bootstrap_ci(auroc, label + 1.2 * generator.standard_normal(120), label, n=200, seed=seed)
        covered += interval.low <= 0.7222 <= interval.high
    assert 88 <= covered <= 99


def test_all_cases_of_a_patient_are_drawn_together() -> None:
    patients = np.repeat(np.arange(10), 3)
    for draw in draws(patients % 2, 20, 0, patients.tolist()):
        assert (draw.reshape(10, 3) == draw.reshape(10, 3)[:, :1]).all()


def test_no_resample_loses_a_class() -> None:
    label = np.array([0] * 50 + [1, 2, 2])
    for draw in draws(label, 200, 0, None):
        assert set(np.unique(label[draw > 0])) == {0, 1, 2}
    assert not np.isnan(bootstrap_ci(auroc, np.eye(3)[label], label).low)


def test_cases_of_one_patient_widen_the_interval() -> None:
    generator = np.random.default_rng(3)
    patients = np.repeat(np.arange(20), 20)
    prob = np.repeat(generator.random(20), 20) + np.repeat(np.arange(20) % 2, 20)
    alone = bootstrap_ci(auroc, prob, patients % 2)
    grouped = bootstrap_ci(auroc, prob, patients % 2, groups=patients.tolist())
    assert grouped.value == alone.value
    prob = np.repeat(generator.random(20) + 0.3 * (np.arange(20) % 2), 20)
    alone = bootstrap_ci(auroc, prob, patients % 2)
    grouped = bootstrap_ci(auroc, prob, patients % 2, groups=patients.tolist())
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)


def test_a_report_holds_plain_numbers_for_the_cohort_and_every_class() -> None:
    generator = np.random.default_rng(0)
    prob, label = generator.dirichlet([1, 1, 1], 60), np.arange(60) % 3
    report = classification_report(prob, label, ("a", "b", "c"), n=50)
    assert report["cases"] == 60
    assert report["auroc"]["low"] <= report["auroc"]["value"] <= report["auroc"]["high"]
    assert list(report["classes"]) == ["a", "b", "c"]
    assert report["classes"]["b"]["cases"] == 20
    assert type(report["classes"]["b"]["auroc"]["value"]) is float
    mean = np.mean([report["classes"][name]["auroc"]["value"] for name in "abc"])
    assert report["auroc"]["value"] == pytest.approx(mean)


def test_a_report_of_a_multi_label_cohort_skips_what_is_unknown() -> None:
    generator = np.random.default_rng(0)
    label = generator.integers(0, 2, (40, 2)).astype(float)
    label[:10, 1] = np.nan
    report = classification_report(generator.random((40, 2)), label, ("x", "y"), n=50)
    assert report["classes"]["y"]["cases"] == int((label[10:, 1] == 1).sum())
    assert np.isfinite(report["macro_f1"]["value"])


def test_a_report_refuses_names_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="2 class names"):
        classification_report(np.zeros((4, 3)), [0, 1, 2, 0], ("a", "b"))

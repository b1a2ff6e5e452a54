"""Slice metrics against scikit-learn and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from monai_mil.metrics import centre_scores, slice_metrics


def draw(scans: int, seed: int = 0, levels: int | None = None) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Scores (of a few levels, if ties are wanted) and labels with one lesion of slices a scan."""
    generator = np.random.default_rng(seed)
    scores, labels = [], []
    for _ in range(scans):
        n = int(generator.integers(5, 40))
        start = int(generator.integers(0, n - 3))
        label = np.zeros(n, dtype=int)
        label[start : start + 3] = 1
        score = generator.random(n) + 0.3 * label
        scores.append(score if levels is None else np.round(score * levels) / levels)
        labels.append(label)
    return scores, labels


@pytest.mark.parametrize("levels", [None, 4])
def test_the_figures_are_those_of_every_scan_averaged(levels: int | None) -> None:
    scores, labels = draw(30, levels=levels)
    report = slice_metrics(scores, labels, [str(i) for i in range(30)], n=200)
    aurocs = [roc_auc_score(label, score) for score, label in zip(scores, labels, strict=True)]
    auprcs = [average_precision_score(label, score) for score, label in zip(scores, labels, strict=True)]
    assert report.scans == 30
    for figure, values in ((report.auroc, aurocs), (report.auprc, auprcs)):
        assert figure.value == pytest.approx(np.mean(values))
        assert figure.std == pytest.approx(np.std(values, ddof=1))
        assert figure.low < figure.value < figure.high
    assert math.isnan(report.attention_mass.value), "random scores are no distribution"


def test_attention_is_weighed_in_the_lesion() -> None:
    attention = [np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.5, 0.5])]
    labels = [np.array([0, 1, 1, 0]), np.array([0, 1])]
    assert slice_metrics(attention, labels, ["a", "b"], n=10).attention_mass.value == pytest.approx(0.5)
    logits = [np.log(share) for share in attention]
    report = slice_metrics(logits, labels, ["a", "b"], n=10, attention=[attention[0], None])
    assert report.attention_mass.value == pytest.approx(0.5)
    assert report.auroc.value == pytest.approx(0.5)


def test_scans_without_figures_are_counted_and_named() -> None:
    scores = [np.array([0.1, 0.9, 0.3])] * 5
    labels = [np.array(label) for label in ([0, 1, 0], [0, 0, 0], [1, 1, 1], [-1, -1, -1], [-1, 1, 0])]
    report = slice_metrics(scores, labels, ["good", "healthy", "full", "blank", "part"], n=10)
    assert report.scans == 2
    assert report.negative == 1
    assert report.all_positive == ("full",)
    assert report.unlabelled == ("blank",)
    assert report.partly_labelled == ("part",)
    assert report.auroc.value == 1


def test_unknown_slices_are_left_out() -> None:
    scores = [np.array([0.2, 0.5, 0.2, 0.1])]
    report = slice_metrics(scores, [np.array([0, -1, 1, 0])], ["a"], n=10)
    assert report.auroc.value == pytest.approx(0.75)
    assert report.attention_mass.value == pytest.approx(0.2 / 0.5)


def test_a_cohort_without_positive_scans_has_no_figures() -> None:
    for labels in ([np.zeros(4)], [np.full(4, -1)], []):
        report = slice_metrics([np.random.rand(4)] * len(labels), labels, ["a"] * len(labels))  # noqa: NPY002
        assert report.scans == 0
        assert math.isnan(report.auroc.value)
        assert math.isnan(report.centre_rank["auroc"])


def test_patients_are_resampled_with_all_their_scans() -> None:
    scores, labels = draw(40, seed=1)
    names = [str(i) for i in range(40)]
    alone = slice_metrics(scores * 5, labels * 5, [f"{i}-{name}" for i in range(5) for name in names], n=400).auroc
    together = slice_metrics(scores * 5, labels * 5, names * 5, groups=names * 5, n=400).auroc
    once = slice_metrics(scores, labels, names, n=400).auroc
    assert together.high - together.low == pytest.approx(once.high - once.low, rel=0.15)
    assert alone.high - alone.low < 0.6 * (together.high - together.low)


def test_without_resamples_there_is_no_interval() -> None:
    scores, labels = draw(5)
    figure = slice_metrics(scores, labels, list("abcde"), n=0).auroc
    assert not math.isnan(figure.value)
    assert math.isnan(figure.low)


def test_the_centre_baselines() -> None:
    np.testing.assert_array_equal(centre_scores(5), [-2, -1, 0, -1, -2])
    np.testing.assert_array_equal(centre_scores(4), [-1.5, -0.5, -0.5, -1.5])
    gaussian = centre_scores(6, "gaussian")
    assert gaussian.dtype == np.float64
    assert gaussian.sum() == pytest.approx(1)
    assert gaussian.argmax() == 2
    assert gaussian[3] / gaussian[2] == pytest.approx(math.exp(-0.5))
    np.testing.assert_array_equal(centre_scores(1), [0])
    with pytest.raises(ValueError, match="unknown rule 'middle'; choose from rank, gaussian"):
        centre_scores(4, "middle")


def test_long_scans_end_in_ties_for_the_one_slice_gaussian_but_not_for_ranks() -> None:
    n = 300
    gaussian = centre_scores(n, "gaussian")
    assert (gaussian[:100] == 0).all()
    assert len(np.unique(centre_scores(n))) == n // 2
    label = np.zeros(n, dtype=int)
    label[90:100] = 1
    report = slice_metrics([np.arange(n)], [label], ["a"], n=10)
    assert report.centre_rank["auroc"] == pytest.approx(roc_auc_score(label, centre_scores(n)))
    assert report.centre_gaussian["auroc"] == pytest.approx(roc_auc_score(label, gaussian))
    assert report.centre_rank["auroc"] > report.centre_gaussian["auroc"] + 0.1
    assert report.centre_rank["auprc"] == pytest.approx(average_precision_score(label, centre_scores(n)))
    assert report.centre_gaussian["attention_mass"] == pytest.approx(0, abs=1e-9)
    assert math.isnan(report.centre_rank["attention_mass"])


def test_a_scan_that_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="scan 'b': scores"):
        slice_metrics([np.ones(2), np.ones(3)], [np.array([0, 1]), np.array([0, 1])], ["a", "b"])
    with pytest.raises(ValueError, match="scan 'a': the score of slice 1 is not a number"):
        slice_metrics([np.array([1, math.nan])], [np.array([0, 1])], ["a"])
    with pytest.raises(ValueError, match="scan 'a': the attention of slice 1 is not a number"):
        slice_metrics([np.ones(2)], [np.array([0, 1])], ["a"], attention=[np.array([1, math.nan])])
    with pytest.raises(ValueError, match="differ in length"):
        slice_metrics([np.ones(2)], [np.array([0, 1])], ["a", "b"])

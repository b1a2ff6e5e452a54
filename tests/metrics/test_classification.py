"""The metrics agree with scikit-learn where it has them, weighted as well as not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from monai_mil.metrics import accuracy, auprc, auroc, balanced_accuracy, calibration, macro_f1, missing_from_mean


def cases(seed: int, count: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities rounded so that ties occur, and labels in which every class occurs."""
    generator = np.random.default_rng(seed)
    prob = generator.dirichlet(np.ones(classes), count).round(1)
    label = np.concatenate([np.arange(classes), generator.integers(classes, size=count - classes)])
    return prob, label


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 40), st.integers(2, 4), st.booleans())
def test_every_metric_equals_scikit_learn(seed: int, count: int, classes: int, weighted: bool) -> None:
    prob, label = cases(seed, count, classes)
    weight = np.random.default_rng(seed).integers(1, 4, count).astype(float) if weighted else None
    predicted = prob.argmax(axis=1)
    arguments = {"sample_weight": weight}
    expected = np.mean(
        [
            reference.roc_auc_score(label == c, prob[:, c], **arguments)
            for c in ([1] if classes == 2 else range(classes))
        ]
    )
    assert auroc(prob, label, weight) == pytest.approx(expected)
    expected = np.mean(
        [
            reference.average_precision_score(label == c, prob[:, c], **arguments)
            for c in ([1] if classes == 2 else range(classes))
        ]
    )
    assert auprc(prob, label, weight) == pytest.approx(expected)
    assert accuracy(prob, label, weight) == pytest.approx(reference.accuracy_score(label, predicted, **arguments))
    expected = reference.balanced_accuracy_score(label, predicted, **arguments)
    assert balanced_accuracy(prob, label, weight) == pytest.approx(expected)
    expected = reference.f1_score(label, predicted, average="macro", **arguments)
    assert macro_f1(prob, label, weight) == pytest.approx(expected)


@pytest.mark.parametrize("metric", [auroc, auprc, accuracy, balanced_accuracy, macro_f1])
def test_many_weightings_at_once_equal_one_after_the_other(metric) -> None:
    prob, label = cases(3, 30, 3)
    weights = np.random.default_rng(0).integers(0, 3, (5, 30)).astype(float)
    together = metric(prob, label, weights)
    assert together.shape == (5,)
    np.testing.assert_allclose(together, [metric(prob, label, weight) for weight in weights])


@pytest.mark.parametrize("metric", [auroc, auprc, accuracy, balanced_accuracy, macro_f1])
def test_one_column_and_two_columns_of_a_binary_task_agree(metric) -> None:
    positive, label = np.random.default_rng(1).random(50), np.arange(50) % 2
    two = np.stack([1 - positive, positive], axis=1)
    assert metric(positive, label) == pytest.approx(metric(two, label))
    assert metric(positive[:, None], label) == pytest.approx(metric(two, label))


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_the_mean_precision_at_the_positives_ties_taken_together(seed: int) -> None:
    generator = np.random.default_rng(seed)
    score, label = generator.integers(0, 6, 40), generator.integers(0, 2, 40)
    precisions = [label[score >= threshold].mean() for threshold in score[label == 1]]
    assert auprc(score, label) == pytest.approx(np.mean(precisions))


def test_average_precision_of_one_class_is_not_defined() -> None:
    assert np.isnan(auprc([0.1, 0.9], [1, 1]))
    assert np.isnan(auprc([0.1, 0.9], [0, 0]))


def test_an_unknown_label_counts_nowhere() -> None:
    prob = np.random.default_rng(2).random((20, 2))
    label = np.random.default_rng(3).integers(0, 2, (20, 2)).astype(float)
    label[:5, 1] = np.nan
    for metric in (auroc, balanced_accuracy, macro_f1):
        parts = [metric(prob[:, [0]], label[:, [0]]), metric(prob[5:, [1]], label[5:, [1]])]
        assert metric(prob, label) == pytest.approx(np.mean(parts))
    hits = np.concatenate([(prob[:, 0] >= 0.5) == label[:, 0], (prob[5:, 1] >= 0.5) == label[5:, 1]])
    assert accuracy(prob, label) == pytest.approx(hits.mean())


def test_an_auroc_of_one_class_is_not_a_number() -> None:
    assert np.isnan(auroc([0.1, 0.9], [1, 1]))
    assert np.isnan(auroc(np.full((2, 3), 1 / 3), [1, 1]))


def test_a_class_that_does_not_occur_is_left_out_of_the_mean() -> None:
    prob = np.array([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])
    assert auroc(prob, [0, 1, 0]) == 1.0


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="3 predictions for 2 labels"):
        auroc([0.1, 0.2, 0.3], [0, 1])
    with pytest.raises(ValueError, match="differ in shape"):
        auroc(np.zeros((2, 3)), np.zeros((2, 2)))


@pytest.mark.parametrize("metric", [auroc, accuracy, balanced_accuracy, macro_f1, calibration])
def test_what_is_not_a_number_has_no_metric(metric) -> None:
    diverged = np.full((4, 2), np.nan)
    with pytest.raises(ValueError, match="prediction of case 0 is not a number"):
        metric(diverged, [0, 0, 1, 1])
    for unknown in (np.nan, -1, 2):
        with pytest.raises(ValueError, match="of case 1 is no class from 0 to 1"):
            metric([0.2, 0.4, 0.6], [0, unknown, 1])


NAN = float("nan")
LABELS = np.array([[0, 1, 0, NAN, 0], [1, 1, 0, NAN, 1], [1, 1, 0, NAN, NAN], [0, 1, 0, NAN, 1]])
PROB = np.array(
    [[0.1, 0.9, 0.2, 0.3, 0.4], [0.8, 0.9, 0.7, 0.3, 0.4], [0.9, 0.2, 0.1, 0.3, 0.6], [0.2, 0.9, 0.3, 0.3, 0.6]]
)


@pytest.mark.parametrize(
    ("metric", "missing"),
    [
        (auroc, {1: "always 1", 2: "always 0", 3: "unknown"}),
        (auprc, {1: "always 1", 2: "always 0", 3: "unknown"}),
        (balanced_accuracy, {1: "always 1", 2: "always 0", 3: "unknown"}),
        (macro_f1, {3: "unknown"}),
        (accuracy, {}),
    ],
)
def test_labels_that_a_mean_is_made_without_are_told(metric, missing) -> None:
    assert missing_from_mean(metric, PROB, LABELS) == missing
    if metric in (auroc, auprc):
        assert metric(PROB, LABELS) == metric(PROB[:, [0, 4]], LABELS[:, [0, 4]])


def test_a_label_that_never_occurs_has_an_f1_once_it_is_predicted() -> None:
    label = np.array([[0.0, 1.0], [0.0, 0.0]])
    assert missing_from_mean(macro_f1, [[0.1, 0.9], [0.2, 0.8]], label) == {0: "always 0"}
    assert missing_from_mean(macro_f1, [[0.6, 0.9], [0.2, 0.8]], label) == {}


def test_classes_without_a_case_are_told() -> None:
    prob = np.full((4, 3), 1 / 3)
    assert missing_from_mean(auroc, prob, [0, 1, 0, 1]) == {2: "always 0"}
    assert missing_from_mean(balanced_accuracy, prob, [0, 1, 0, 1]) == {2: "always 0"}
    assert missing_from_mean(auroc, prob, [1, 1, 1, 1]) == {0: "always 0", 1: "always 1", 2: "always 0"}
    assert missing_from_mean(auroc, prob[:, :2], [1, 1, 1, 1]) == {1: "always 1"}
    assert missing_from_mean(auroc, prob[:, :2], [0, 1, 1, 1]) == {}

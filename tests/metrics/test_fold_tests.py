"""Tests of methods on folds: against plain loops, and calibrated on a hundred simulated comparisons."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import norm

from monai_mil.metrics import (
    FoldAnswers,
    auroc,
    auroc_covariance,
    delong_test,
    fold_difference,
    fold_figure,
    holm,
    macro_f1,
    pooled,
    swap_test,
)

PATIENTS = 90
FEATURES = 6
FOLDS = 5


def simulated(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, labels and patients of a cohort: one to three slides a patient, who bring something of their own."""
    patients = np.repeat(np.arange(PATIENTS), generator.integers(1, 4, PATIENTS))
    label = (np.arange(PATIENTS) % 2)[patients]
    own = generator.normal(size=(PATIENTS, FEATURES))[patients]
    noise = generator.normal(size=(len(patients), FEATURES))
    return 0.8 * label[:, None] + 0.7 * own + noise, label, patients


def cross_validated(
    cohort: tuple[np.ndarray, np.ndarray, np.ndarray], used: int, generator: np.random.Generator, seeds: int = 2
) -> list[FoldAnswers]:
    """A method that is trained: ridge regression on patients drawn anew for every seed, of the first features."""
    features, label, patients = cohort
    answers = []
    for fold in range(FOLDS):
        test = patients // 2 % FOLDS == fold
        training = np.flatnonzero(~test)
        prob = []
        for _ in range(seeds):
            rows = generator.choice(training, len(training))
            x, y = features[rows, :used], 2.0 * label[rows] - 1
            weights = np.linalg.solve(x.T @ x + 5 * np.eye(used), x.T @ (y - y.mean()))
            prob.append(1 / (1 + np.exp(-(features[test, :used] - x.mean(axis=0)) @ weights)))
        answers.append(FoldAnswers(np.array(prob), label[test], patients[test].tolist()))
    return answers


@pytest.fixture(scope="module")
def comparisons() -> np.ndarray:
    """P-values of 100 comparisons ``[100, 4]``: the same method twice, then a better one, by DeLong and by swapping."""
    found = []
    for number in range(100):
        generator = np.random.default_rng([1, number])
        cohort = simulated(generator)
        same, again, worse = (cross_validated(cohort, used, generator) for used in (FEATURES, FEATURES, 1))
        found.append(
            [
                delong_test(same, again),
                swap_test(macro_f1, same, again, n=199),
                delong_test(same, worse),
                swap_test(macro_f1, same, worse, n=199),
            ]
        )
    return np.array(found)


def test_the_same_method_twice_is_called_different_at_most_8_times_in_100(comparisons: np.ndarray) -> None:
    false = (comparisons[:, :2] < 0.05).sum(axis=0)
    assert false.max() <= 8, false
    assert false.max() >= 1, "tests that never err are of no use"


def test_a_planted_difference_is_found(comparisons: np.ndarray) -> None:
    assert ((comparisons[:, 2:] < 0.05).sum(axis=0) >= [70, 50]).all()


@pytest.fixture
def folds() -> tuple[list[FoldAnswers], list[FoldAnswers]]:
    generator = np.random.default_rng(1)
    cohort = simulated(generator)
    return cross_validated(cohort, 4, generator), cross_validated(cohort, 1, generator)


def test_delong_of_folds_takes_the_larger_of_both_variances(
    folds: tuple[list[FoldAnswers], list[FoldAnswers]],
) -> None:
    differences, variances = [], []
    for one, other in zip(*folds, strict=True):
        found = auroc_covariance(np.concatenate([one.prob, other.prob]), one.label, one.patients)
        covariance = found.covariance
        differences.append(found.auroc[:2].mean() - found.auroc[2:].mean())
        variances.append((covariance[:2, :2].sum() + covariance[2:, 2:].sum() - 2 * covariance[:2, 2:].sum()) / 4)
    z = np.mean(differences) / np.sqrt(max(np.mean(variances), np.var(differences, ddof=1)) / FOLDS)
    assert delong_test(*folds) == pytest.approx(2 * norm.sf(abs(z)))
    assert delong_test(folds[1], folds[0]) == pytest.approx(delong_test(*folds))
    alone = delong_test(folds[0][:1], folds[1][:1])
    assert alone == pytest.approx(2 * norm.sf(abs(differences[0]) / np.sqrt(variances[0])))


def test_swapping_meets_every_permutation_of_few_patients() -> None:
    generator = np.random.default_rng(5)
    label, patients = np.array([0, 0, 1, 1, 0, 1, 1]), ["A", "A", "B", "C", "C", "D", "E"]
    one, other = (FoldAnswers(generator.random((2, 7)), label, patients) for _ in range(2))

    def difference(swapped: set[str]) -> float:
        mine = np.array([patient in swapped for patient in patients])
        pairs = zip(one.prob, other.prob, strict=True)
        values = [macro_f1(np.where(mine, b, a), label) - macro_f1(np.where(mine, a, b), label) for a, b in pairs]
        return float(np.mean(values))

    subsets = itertools.chain.from_iterable(itertools.combinations("ABCDE", size) for size in range(6))
    every = [abs(difference(set(subset))) >= abs(difference(set())) - 1e-12 for subset in subsets]
    assert swap_test(macro_f1, [one], [other], n=4000) == pytest.approx(np.mean(every), abs=0.03)


def test_what_is_equal_is_not_different(folds: tuple[list[FoldAnswers], list[FoldAnswers]]) -> None:
    first, _ = folds
    assert delong_test(first, first) == 1.0
    assert swap_test(macro_f1, first, first, n=99) == 1.0
    interval = fold_difference(auroc, first, first, n=50)
    assert (interval.value, interval.low, interval.high) == (0.0, 0.0, 0.0)


def test_folds_without_both_classes_say_nothing() -> None:
    nothing = FoldAnswers(np.array([[0.2, 0.4]]), np.array([1, 1]), ["A", "B"])
    assert np.isnan(delong_test([nothing], [nothing]))
    assert np.isnan(fold_figure(auroc, [nothing], n=10).value)


def test_a_figure_is_the_mean_over_seeds_then_over_folds(
    folds: tuple[list[FoldAnswers], list[FoldAnswers]],
) -> None:
    first, _ = folds
    by_hand = np.mean([np.mean([auroc(prob, fold.label) for prob in fold.prob]) for fold in first])
    interval = fold_figure(auroc, first, n=200)
    assert interval.value == pytest.approx(by_hand)
    assert interval.low < by_hand < interval.high
    whole = np.concatenate([fold.prob[1] for fold in first])
    label = np.concatenate([fold.label for fold in first])
    assert auroc(pooled(first)[0].prob[1], pooled(first)[0].label) == auroc(whole, label)


def test_holm_corrects_in_order_and_leaves_out_what_is_no_test() -> None:
    assert holm([0.01, np.nan, 0.04, 0.03])[[0, 2, 3]] == pytest.approx([0.03, 0.06, 0.06])
    assert np.isnan(holm([0.01, np.nan])[1])
    assert holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])

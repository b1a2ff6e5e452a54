"""The covariance of AUROCs against loops over pairs of cases, as Obuchowski's paper writes them."""

from __future__ import annotations

import numpy as np
import pytest

from monai_mil.metrics import auroc, auroc_covariance


def better(x: float, y: float) -> float:
    return 1.0 if x > y else 0.5 if x == y else 0.0


def by_the_paper(readers: np.ndarray, label: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Obuchowski 1997, Eqs. 2 to 6, with its own names."""
    names = sorted(set(patients.tolist()))
    big_m, big_n = (label == 1).sum(), (label == 0).sum()
    theta = np.array(
        [np.mean([better(x, y) for x in reader[label == 1] for y in reader[label == 0]]) for reader in readers]
    )
    v10 = np.array([[np.mean([better(x, y) for y in reader[label == 0]]) for x in reader] for reader in readers])
    v01 = np.array([[np.mean([better(x, y) for x in reader[label == 1]]) for y in reader] for reader in readers])
    inside = {i: (patients == i) & (label == 1) for i in names}, {i: (patients == i) & (label == 0) for i in names}
    parts = ((v10, inside[0]), (v01, inside[1]))
    x_sum, y_sum = (np.array([[np.sum(v[rows[i]]) for i in names] for v in part]) for part, rows in parts)
    x_sum -= theta[:, None] * [inside[0][i].sum() for i in names]
    y_sum -= theta[:, None] * [inside[1][i].sum() for i in names]
    i10, i01 = (sum(rows[i].any() for i in names) for rows in inside)
    every = len(names)
    s10 = i10 / ((i10 - 1) * big_m) * x_sum @ x_sum.T
    s01 = i01 / ((i01 - 1) * big_n) * y_sum @ y_sum.T
    s11 = every / (every - 1) * x_sum @ y_sum.T
    return s10 / big_m + s01 / big_n + (s11 + s11.T) / (big_m * big_n)


@pytest.fixture(scope="module")
def readers() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three readers of 40 cases of 17 patients, some of them with cases of both classes, and ties."""
    generator = np.random.default_rng(2)
    patients = generator.integers(0, 17, 40)
    label = generator.integers(0, 2, 40)
    scores = generator.normal(size=(3, 40)) + generator.normal(size=17)[patients] + [[0.5], [1.0], [2.0]] * label
    return scores.round(1), label, patients


def test_it_is_what_the_paper_says(readers: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    scores, label, patients = readers
    found = auroc_covariance(scores, label, patients.tolist())
    assert found.auroc == pytest.approx([auroc(reader, label) for reader in scores])
    assert found.covariance == pytest.approx(by_the_paper(scores, label, patients))


def test_one_case_a_patient_is_delongs(readers: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    scores, label, _ = readers
    positive, negative = scores[:, label == 1], scores[:, label == 0]
    wins = (positive[:, :, None] > negative[:, None]) + 0.5 * (positive[:, :, None] == negative[:, None])
    of_positive, of_negative = np.cov(wins.mean(axis=2)), np.cov(wins.mean(axis=1))
    expected = of_positive / positive.shape[1] + of_negative / negative.shape[1]
    assert auroc_covariance(scores, label).covariance == pytest.approx(expected)


def test_slides_of_one_patient_tell_less(readers: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    scores, label, _ = readers
    three_times = np.repeat(scores, 3, axis=1)
    found = auroc_covariance(three_times, np.repeat(label, 3), np.repeat(np.arange(40), 3).tolist())
    assert found.covariance == pytest.approx(auroc_covariance(scores, label).covariance)


def test_a_macro_mean_over_labels_varies_with_all_of_them() -> None:
    generator = np.random.default_rng(4)
    label = generator.integers(0, 2, (60, 2)).astype(float)
    label[:5, 1] = np.nan
    scores = generator.normal(size=(2, 60, 2)) + label
    scores[:, :5, 1] = 0.0
    patients = np.repeat(np.arange(30), 2)
    found = auroc_covariance(scores, label, patients.tolist())
    assert found.auroc == pytest.approx([auroc(reader, label) for reader in scores])
    alone = [auroc_covariance(scores[:, :, [c]], label[:, [c]], patients.tolist()).covariance for c in (0, 1)]
    one, other = np.diagonal(alone[0]), np.diagonal(alone[1])
    spread = np.sqrt(np.diagonal(found.covariance))
    assert (spread <= (np.sqrt(one) + np.sqrt(other)) / 2 + 1e-3).all()
    assert (spread >= np.abs(np.sqrt(one) - np.sqrt(other)) / 2 - 1e-3).all()


def test_three_classes_vary_as_resampled_patients_say() -> None:
    generator = np.random.default_rng(0)
    label = np.arange(90) % 3
    scores = generator.normal(size=(90, 3)) + 1.2 * np.eye(3)[label]
    found = auroc_covariance(scores[None], label)
    drawn = [generator.integers(0, 90, 90) for _ in range(600)]
    assert np.sqrt(found.covariance[0, 0]) == pytest.approx(
        np.std([auroc(scores[cases], label[cases]) for cases in drawn]), rel=0.15
    )


def test_what_cannot_be_known_is_nan() -> None:
    one_class = auroc_covariance([[0.1, 0.2]], [1, 1])
    assert np.isnan(one_class.auroc).all()
    assert np.isnan(one_class.covariance).all()
    one_patient = auroc_covariance([[0.1, 0.2, 0.3]], [0, 1, 1], ["P1", "P2", "P2"])
    assert one_patient.auroc == 1.0
    assert np.isnan(one_patient.covariance).all()

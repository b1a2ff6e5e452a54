"""ROC and calibration curves: the points a report draws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from monai_mil.metrics.classification import Array, read_cases


@dataclass(frozen=True)
class RocCurve:
    """Points of a ROC curve from (0, 0) to (1, 1); ``threshold[i]`` is the lowest score that counts as positive."""

    false_positive_rate: Array
    true_positive_rate: Array
    threshold: Array


@dataclass(frozen=True)
class Calibration:
    """Reliability of probabilities in equal bins of [0, 1]; empty bins are left out.

    ``confidence``, ``frequency`` and ``count`` are ``[bins]``: mean probability, share of true cases, cases.
    ``expected_error`` is the expected calibration error, the count-weighted mean of ``|confidence - frequency|``.
    """

    confidence: Array
    frequency: Array
    count: Array
    expected_error: float


def roc_curve(score: ArrayLike, label: ArrayLike) -> RocCurve:
    """ROC curve of scores ``[n]`` for labels 0 and 1 ``[n]``.

    Raises:
        ValueError: there is no positive or no negative case.

    Examples:
        >>> from monai_mil.metrics import roc_curve
        >>> curve = roc_curve([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
        >>> curve.false_positive_rate, curve.true_positive_rate
        (array([0. , 0. , 0.5, 0.5, 1. ]), array([0. , 0.5, 0.5, 1. , 1. ]))
    """
    scores, truth = np.asarray(score, dtype=float), np.asarray(label) == 1
    if truth.all() or not truth.any():
        raise ValueError("a ROC curve needs positive and negative cases")
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(truth[order])[ends]
    alarms = ends + 1 - hits
    return RocCurve(
        false_positive_rate=np.append(0, alarms / (~truth).sum()),
        true_positive_rate=np.append(0, hits / truth.sum()),
        threshold=np.append(np.inf, scores[order][ends]),
    )


def calibration(prob: ArrayLike, label: ArrayLike, bins: int = 10) -> Calibration:
    """Calibration of probabilities.

    Args:
        prob: of the positive class ``[n]``, or of every class or label ``[n, c]``. Two classes are judged by the
            second one's probability, more by that of the predicted class, labels each on its own.
        label: class indices ``[n]``, or 0, 1 or NaN (unknown) ``[n, c]``.
        bins: number of equal bins.

    Raises:
        ValueError: as the metrics of :mod:`monai_mil.metrics.classification`.

    Examples:
        >>> from monai_mil.metrics import calibration
        >>> result = calibration([0.1, 0.1, 0.9, 0.9], [0, 0, 1, 0], bins=2)
        >>> result.frequency, round(result.expected_error, 4)
        (array([0. , 0.5]), 0.25)
    """
    confidence, truth = _claims(*read_cases(prob, label))
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    count = np.bincount(place, minlength=bins)
    used = count > 0
    mean = np.bincount(place, confidence, bins)[used] / count[used]
    frequency = np.bincount(place, truth, bins)[used] / count[used]
    error = float(np.average(np.abs(mean - frequency), weights=count[used])) if used.any() else float("nan")
    return Calibration(mean, frequency, count[used], error)


def _claims(prob: Array, truth: Array) -> tuple[Array, Array]:
    """Stated probabilities and whether each came true, both ``[m]``, of ``prob`` ``[n, c]``."""
    if truth.ndim == 2:
        known = ~np.isnan(truth)
        return prob[known], truth[known] == 1
    if prob.shape[1] <= 2:
        return prob[:, -1], truth == 1
    return prob.max(axis=1), prob.argmax(axis=1) == truth

"""Bag-level classification metrics, each for many weightings of the cases at once (what a bootstrap needs).

All of them take the same arguments:

* ``prob``: probability of the positive class ``[n]`` or ``[n, 1]``, or of every class or label ``[n, c]``;
* ``label``: class indices ``[n]``, or for multi-label tasks 0, 1 or NaN (unknown) ``[n, c]``;
* ``weight``: ``[n]``, or ``[k, n]`` for ``k`` results in one go; None counts every case once.

They return a float, or ``[k]`` float64, and NaN where a metric is not defined (an AUROC of one class). They raise a
``ValueError`` for predictions that are not numbers, for shapes that differ and for labels that are no class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]


class Metric(Protocol):
    """The signature shared by this module's metrics and taken by :func:`monai_mil.metrics.bootstrap_ci`."""

    def __call__(self, prob: ArrayLike, label: ArrayLike, weight: Array | None = None) -> Any:
        """The metric's value, or one for each weighting."""
        ...


def auroc(prob: ArrayLike, label: ArrayLike, weight: Array | None = None) -> Any:
    """Area under the ROC curve; macro mean over one-versus-rest for more classes and over labels.

    Classes or labels without a positive or without a negative case are left out of the mean.

    Examples:
        >>> from monai_mil.metrics import auroc
        >>> auroc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
        0.75
        >>> auroc([[0.9, 0.1], [0.6, 0.4], [0.65, 0.35], [0.2, 0.8]], [0, 0, 1, 1])  # the same, a column a class
        0.75
    """
    return _result(_mean(_aurocs(prob, label, weight)), weight)


def auprc(prob: ArrayLike, label: ArrayLike, weight: Array | None = None) -> Any:
    """Average precision, ``sum_k (R_k - R_{k-1}) P_k`` over the distinct scores; macro mean as :func:`auroc`'s.

    Classes or labels without a positive or without a negative case are left out of the mean.

    Examples:
        >>> from monai_mil.metrics import auprc
        >>> round(auprc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]), 4)
        0.8333
    """
    return _result(_mean(_auprcs(prob, label, weight)), weight)


def accuracy(prob: ArrayLike, label: ArrayLike, weight: Array | None = None) -> Any:
    """Share of correct predictions (highest probability; multi-label: each label at 0.5).

    Examples:
        >>> from monai_mil.metrics import accuracy
        >>> round(accuracy([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]], [0, 1, 1]), 4)
        0.6667
    """
    cells = _confusions(prob, label, weight)
    hits, known = np.sum([cell[0] for cell in cells], axis=0), np.sum([cell[4] for cell in cells], axis=0)
    if _excludes(prob, label):
        known = known / len(cells)
    else:
        hits = hits + np.sum([cell[3] for cell in cells], axis=0)
    return _result(_ratio(hits, known), weight)


def balanced_accuracy(prob: ArrayLike, label: ArrayLike, weight: Array | None = None) -> Any:
    """Mean recall of the classes; multi-label: mean over labels of (sensitivity + specificity) / 2 at 0.5.

    Examples:
        >>> from monai_mil.metrics import balanced_accuracy
        >>> balanced_accuracy([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6]], [0, 0, 1, 1])
        0.75
    """
    return _result(_mean(_recalls(prob, label, weight)), weight)


def macro_f1(prob: ArrayLike, label: ArrayLike, weight: Array | None = None) -> Any:
    """Mean F1 of the classes that occur or are predicted; multi-label: of the labels, at 0.5.

    One column of probabilities counts as the two classes it separates.

    Examples:
        >>> from monai_mil.metrics import macro_f1
        >>> round(macro_f1([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6]], [0, 0, 1, 1]), 4)
        0.7333
    """
    return _result(_mean(_f1s(prob, label, weight)), weight)


def missing_from_mean(metric: Metric, prob: ArrayLike, label: ArrayLike) -> dict[int, str]:
    """Which classes or labels a macro mean of these cases is made without, and why.

    Args:
        metric: one of this module's; :func:`accuracy`, no mean of classes, is without none.
        prob: see there.
        label: see there.

    Returns:
        The reason by the column of ``prob``: ``"unknown"``, ``"always 0"`` or ``"always 1"``.

    Examples:
        >>> from monai_mil.metrics import auroc, missing_from_mean
        >>> prob = [[0.9, 0.1], [0.4, 0.6], [0.3, 0.7]]
        >>> missing_from_mean(auroc, prob, [[1, 1], [0, 1], [0, 1]])
        {1: 'always 1'}
    """
    parts = _PARTS[metric](prob, label, None) if metric in _PARTS else []
    questions = one_versus_rest(prob, label, None)
    first = _as_columns(prob).shape[1] - len(questions)  # of two classes the second one's question is asked
    undefined = {index * len(questions) // len(parts) for index, part in enumerate(parts) if np.isnan(part[0])}
    return {first + index: _why(questions[index][1]) for index in sorted(undefined)}


def _why(truth: Array) -> str:
    if len(truth) == 0:
        return "unknown"
    return "always 1" if truth.all() else "always 0"


def _aurocs(prob: ArrayLike, label: ArrayLike, weight: Array | None) -> list[Array]:
    return [_binary_auroc(*column) for column in one_versus_rest(prob, label, weight)]


def _auprcs(prob: ArrayLike, label: ArrayLike, weight: Array | None) -> list[Array]:
    return [_binary_auprc(*column) for column in one_versus_rest(prob, label, weight)]


def _recalls(prob: ArrayLike, label: ArrayLike, weight: Array | None) -> list[Array]:
    recalls = []
    for true_positive, false_positive, false_negative, true_negative, _ in _confusions(prob, label, weight):
        recalls.append(_ratio(true_positive, true_positive + false_negative))
        if not _excludes(prob, label):
            recalls.append(_ratio(true_negative, true_negative + false_positive))
    return recalls


def _f1s(prob: ArrayLike, label: ArrayLike, weight: Array | None) -> list[Array]:
    scores = []
    for true_positive, false_positive, false_negative, true_negative, _ in _confusions(prob, label, weight):
        errors = false_positive + false_negative
        scores.append(_ratio(2 * true_positive, 2 * true_positive + errors))
        if np.ndim(label) == 1 and _as_columns(prob).shape[1] == 1:
            scores.append(_ratio(2 * true_negative, 2 * true_negative + errors))
    return scores


def one_versus_rest(prob: ArrayLike, label: ArrayLike, weight: Array | None) -> list[tuple[Array, Array, Array]]:
    """Score, truth and weights ``[k, m]`` of the known cases, one triple for each column that asks a question."""
    scores, truth = read_cases(prob, label)
    weights = _weights(weight, len(scores))
    if truth.ndim == 1:
        if scores.shape[1] == 2:
            return [(scores[:, 1], truth == 1, weights)]
        if scores.shape[1] == 1:
            return [(scores[:, 0], truth == 1, weights)]
        return [(column, truth == index, weights) for index, column in enumerate(scores.T)]
    known = ~np.isnan(truth)
    return [(scores[rows, index], truth[rows, index] == 1, weights[:, rows]) for index, rows in enumerate(known.T)]


def _binary_auroc(score: Array, truth: Array, weights: Array) -> Array:
    """Probability that a positive scores higher than a negative, ties counted half, for each row of ``weights``."""
    if len(score) == 0:
        return np.full(len(weights), np.nan)
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=np.nan) != 0)
    ordered = weights[:, order]
    positive = np.add.reduceat(ordered * truth[order], starts, axis=1)
    negative = np.add.reduceat(ordered * ~truth[order], starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative / 2
    return _ratio((positive * below).sum(axis=1), positive.sum(axis=1) * negative.sum(axis=1))


def _binary_auprc(score: Array, truth: Array, weights: Array) -> Array:
    """Mean over the positives of the precision at their score, for each row of ``weights``."""
    if len(score) == 0:
        return np.full(len(weights), np.nan)
    order = np.argsort(-score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=np.nan) != 0)
    ordered = weights[:, order]
    positive = np.add.reduceat(ordered * truth[order], starts, axis=1)
    chosen = np.cumsum(np.add.reduceat(ordered, starts, axis=1), axis=1)
    precision = np.cumsum(positive, axis=1) / np.where(chosen > 0, chosen, 1)
    positives = positive.sum(axis=1)
    return _ratio((positive * precision).sum(axis=1), np.where(positives < chosen[:, -1], positives, 0))


def _confusions(prob: ArrayLike, label: ArrayLike, weight: Array | None) -> list[tuple[Array, ...]]:
    """True positives, false positives, false negatives, true negatives and their sum of every class or label."""
    scores, truth = read_cases(prob, label)
    weights = _weights(weight, len(scores))
    if _excludes(prob, label):
        classes = np.arange(scores.shape[1])
        chosen, truth = scores.argmax(axis=1)[:, None] == classes, truth[:, None] == classes
        known = np.ones_like(chosen)
    else:
        truth = truth.reshape(scores.shape)
        chosen, known, truth = scores >= 0.5, ~np.isnan(truth), truth == 1
    cells = (chosen & truth, chosen & ~truth & known, ~chosen & truth, ~chosen & ~truth & known, known)
    sums = [weights @ cell for cell in cells]
    return [tuple(cell[:, index] for cell in sums) for index in range(scores.shape[1])]


def read_cases(prob: ArrayLike, label: ArrayLike) -> tuple[Array, Array]:
    """Probabilities ``[n, c]`` and labels ``[n]`` or ``[n, c]`` as float64.

    Raises:
        ValueError: a prediction is not a number, the shapes differ, or a label ``[n]`` is no class index.
    """
    scores, truth = _as_columns(prob), np.asarray(label, dtype=float)
    if len(truth) != len(scores):
        raise ValueError(f"{len(scores)} predictions for {len(truth)} labels")
    if truth.ndim == 2 and truth.shape != scores.shape:
        raise ValueError(f"multi-label predictions {scores.shape} and labels {truth.shape} differ in shape")
    if np.isnan(scores).any():
        raise ValueError(f"the prediction of case {np.argwhere(np.isnan(scores))[0, 0]} is not a number")
    classes = max(scores.shape[1], 2)
    if truth.ndim == 1 and not (known := np.isin(truth, np.arange(classes))).all():
        case = int(known.argmin())
        raise ValueError(
            f"label {truth[case]:g} of case {case} is no class from 0 to {classes - 1}; leave out unknown ones"
        )
    return scores, truth


def _excludes(prob: ArrayLike, label: ArrayLike) -> bool:
    """Whether the columns of ``prob`` are classes that exclude each other."""
    return np.ndim(label) == 1 and _as_columns(prob).shape[1] > 1


def _as_columns(prob: ArrayLike) -> Array:
    scores = np.asarray(prob, dtype=float)
    return scores[:, None] if scores.ndim == 1 else scores


def _weights(weight: Array | None, count: int) -> Array:
    return np.ones((1, count)) if weight is None else np.atleast_2d(np.asarray(weight, dtype=float))


def _ratio(part: Any, whole: Any) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.asarray(whole) > 0, np.asarray(part) / np.asarray(whole), np.nan)


def _mean(columns: list[Array]) -> Array:
    """Mean over columns that are defined, NaN where none is."""
    table = np.stack(columns)
    defined = ~np.isnan(table)
    return _ratio(np.where(defined, table, 0).sum(axis=0), defined.sum(axis=0))


def _result(values: Array, weight: Array | None) -> Any:
    return values if weight is not None and np.ndim(weight) == 2 else float(values[0])


_PARTS: dict[Metric, Callable[[ArrayLike, ArrayLike, Array | None], list[Array]]] = {
    auroc: _aurocs,
    auprc: _auprcs,
    balanced_accuracy: _recalls,
    macro_f1: _f1s,
}
"""What each macro mean is the mean of: one number a class or label, of :func:`balanced_accuracy` one or two."""

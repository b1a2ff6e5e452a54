"""What the networks of a cross-validation answer, and any metric of it: mean over seeds first, then over folds."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from monai_mil.metrics.bootstrap import Interval, resamples
from monai_mil.metrics.classification import Array, Metric


@dataclass(frozen=True, eq=False)
class FoldAnswers:
    """The answers of the networks of one fold, one a seed, for the cases that the fold tests on.

    Attributes:
        prob: ``[seeds, n]`` or ``[seeds, n, c]``, what the metrics take.
        label: ``[n]`` or ``[n, c]``, likewise.
        patients: whose each case is, ``n``; a patient's cases stay together in every resample and test.
    """

    prob: Array
    label: Array
    patients: Sequence[Hashable]


def fold_figure(
    metric: Metric, folds: Sequence[FoldAnswers], n: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """A metric of a cross-validation and its percentile interval from patients drawn again within their folds.

    Args:
        metric: as of :func:`monai_mil.metrics.bootstrap_ci`.
        folds: the answers; folds in which the metric is not defined are left out.
        n: number of resamples.
        seed: of them.
        level: coverage.

    Examples:
        >>> import numpy as np
        >>> from monai_mil.metrics import FoldAnswers, auroc, fold_figure
        >>> prob = np.array([[0.1, 0.4, 0.35, 0.8], [0.1, 0.2, 0.3, 0.8]])  # two seeds
        >>> fold = FoldAnswers(prob, np.array([0, 0, 1, 1]), ["P1", "P2", "P3", "P4"])
        >>> fold_figure(auroc, [fold, fold], n=100).value
        0.875
    """
    value = _mean([_over_seeds(metric, fold, None) for fold in folds])
    drawn = fold_resamples(metric, folds, n, seed)
    return _interval(float(value), drawn, level)


def fold_difference(
    metric: Metric,
    first: Sequence[FoldAnswers],
    second: Sequence[FoldAnswers],
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """How much more one method reaches than another on the same folds, with the same patients drawn again for both.

    See :func:`fold_figure` for the arguments.

    Examples:
        >>> import numpy as np
        >>> from monai_mil.metrics import FoldAnswers, auroc, fold_difference
        >>> label, patients = np.array([0, 0, 1, 1]), ["P1", "P2", "P3", "P4"]
        >>> first = FoldAnswers(np.array([[0.1, 0.2, 0.3, 0.8]]), label, patients)
        >>> second = FoldAnswers(np.array([[0.1, 0.4, 0.35, 0.8]]), label, patients)
        >>> fold_difference(auroc, [first], [second], n=100).value
        0.25
    """
    values = [_mean([_over_seeds(metric, fold, None) for fold in folds]) for folds in (first, second)]
    drawn = [fold_resamples(metric, folds, n, seed) for folds in (first, second)]
    return _interval(float(values[0] - values[1]), drawn[0] - drawn[1], level)


def fold_resamples(metric: Metric, folds: Sequence[FoldAnswers], n: int, seed: int) -> Array:
    """The metric of ``n`` resamples of patients, float64 ``[n]``; the same patients for every method."""
    values = []
    for number, fold in enumerate(folds):
        blocks = [
            _over_seeds(metric, fold, weight) for weight in resamples(fold.label, n, seed + number, fold.patients)
        ]
        values.append(np.concatenate([np.empty(0), *blocks]))
    return _mean(values)


def pooled(folds: Sequence[FoldAnswers]) -> list[FoldAnswers]:
    """All folds as one, of which a metric compares cases that different networks answered for.

    Examples:
        >>> import numpy as np
        >>> from monai_mil.metrics import FoldAnswers, pooled
        >>> fold = FoldAnswers(np.zeros((2, 3)), np.array([0, 1, 1]), ["P1", "P2", "P3"])
        >>> [whole.prob.shape for whole in pooled([fold, fold])]
        [(2, 6)]
    """
    prob = np.concatenate([fold.prob for fold in folds], axis=1)
    label = np.concatenate([fold.label for fold in folds])
    return [FoldAnswers(prob, label, list(chain.from_iterable(fold.patients for fold in folds)))]


def _over_seeds(metric: Metric, fold: FoldAnswers, weight: Array | None) -> Array:
    return _mean([np.asarray(metric(prob, fold.label, weight)) for prob in fold.prob])


def _mean(values: Sequence[Array]) -> Array:
    """Mean of those that are defined, NaN where none is."""
    table = np.stack(values)
    known = ~np.isnan(table)
    count = known.sum(axis=0)
    total = np.where(known, table, 0).sum(axis=0)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _interval(value: float, drawn: Array, level: float) -> Interval:
    defined = drawn[~np.isnan(drawn)]
    if len(defined) == 0:
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))

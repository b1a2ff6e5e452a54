"""Confidence intervals by resampling patients."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from monai_mil.metrics.classification import Array, Metric

_BLOCK = 128


@dataclass(frozen=True)
class Interval:
    """A metric's value and its confidence interval."""

    value: float
    low: float
    high: float


def bootstrap_ci(
    metric: Metric,
    prob: ArrayLike,
    label: ArrayLike,
    n: int = 1000,
    seed: int = 0,
    groups: Sequence[Hashable] | None = None,
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap of a metric.

    Whole groups are drawn with replacement, within strata: a group belongs to the stratum of the rarest class it
    contains, so that a resample keeps its classes.

    Args:
        metric: one of :mod:`monai_mil.metrics.classification`, or any function with their signature.
        prob: see there.
        label: see there.
        n: number of resamples; 0 leaves the interval undefined.
        seed: the same seed gives the same interval.
        groups: patient of every case, ``[cases]``; None lets every case be its own.
        level: coverage.

    Returns:
        The metric of the data and the interval; NaN where the metric is not defined.

    Examples:
        >>> from monai_mil.metrics import auroc, bootstrap_ci
        >>> prob = [0.1, 0.4, 0.35, 0.8, 0.3, 0.9]
        >>> interval = bootstrap_ci(auroc, prob, [0, 0, 1, 1, 0, 1], groups=["P1", "P1", "P2", "P3", "P4", "P5"])
        >>> round(interval.value, 4), interval.low <= interval.value <= interval.high
        (0.8889, True)
    """
    blocks = [metric(prob, label, weight) for weight in resamples(label, n, seed, groups)]
    values = np.concatenate([np.empty(0), *blocks])
    defined = values[~np.isnan(values)]
    value = float(metric(prob, label))
    if len(defined) == 0:
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def resamples(label: ArrayLike, n: int, seed: int, groups: Sequence[Hashable] | None) -> Iterator[Array]:
    """How often each case is drawn: blocks ``[k, cases]`` that add up to ``n`` resamples."""
    truth = np.asarray(label, dtype=float)
    group_of_case = np.arange(len(truth)) if groups is None else group_numbers(groups)
    if len(group_of_case) != len(truth):
        raise ValueError(f"{len(group_of_case)} groups for {len(truth)} cases")
    stratum = _strata(truth, group_of_case)
    generator = np.random.default_rng(seed)
    for start in range(0, n, _BLOCK):
        drawn = np.zeros((min(_BLOCK, n - start), len(stratum)))
        for members in (np.flatnonzero(stratum == name) for name in np.unique(stratum)):
            picks = generator.integers(len(members), size=(len(drawn), len(members)))
            row = len(members) * np.arange(len(drawn))[:, None]
            drawn[:, members] = np.bincount((picks + row).ravel(), minlength=picks.size).reshape(picks.shape)
        yield drawn[:, group_of_case]


def group_numbers(groups: Sequence[Hashable]) -> np.ndarray:
    """The number of every case's group, from 0 up in the order of their first cases, int64 ``[n]``."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups])


def _strata(truth: Array, group_of_case: np.ndarray) -> np.ndarray:
    """The rarest class each group contains, counted in groups; groups without any share a stratum of their own."""
    present = truth[:, None] == np.unique(truth) if truth.ndim == 1 else truth == 1
    contains = np.zeros((group_of_case.max() + 1, present.shape[1]), dtype=bool)
    np.logical_or.at(contains, group_of_case, present)
    rarity = np.where(contains, contains.sum(axis=0), np.inf)
    return np.where(contains.any(axis=1), rarity.argmin(axis=1), -1)

"""Groups of risk and how they survive: Kaplan-Meier curves, the log-rank test, and the report of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from monai_mil.metrics.bootstrap import bootstrap_ci
from monai_mil.metrics.classification import Array
from monai_mil.metrics.concordance import concordance_index, read_follow_up

_NAMES = {1: ("all",), 2: ("low", "high"), 3: ("low", "intermediate", "high")}


@dataclass(frozen=True, eq=False)
class KaplanMeier:
    """A survival curve: a step down at each of the distinct times, ``[m]`` each, the first of them 0.

    Attributes:
        time: times of events and censoring, rising.
        survival: share that survives beyond the time.
        low: lower end of its 95 % interval (Greenwood's variance of ``log(-log S)``).
        high: upper end.
        at_risk: patients under observation until just before the time.
        censored: patients whose follow-up ends at it without an event.
    """

    time: Array
    survival: Array
    low: Array
    high: Array
    at_risk: Array
    censored: Array

    @property
    def median(self) -> float:
        """The first time by which half have had the event; NaN where that is not reached."""
        below = self.survival <= 0.5
        return float(self.time[below.argmax()]) if below.any() else float("nan")


@dataclass(frozen=True)
class LogRank:
    """Whether groups survive alike: the statistic is chi-square distributed with ``degrees`` if they do."""

    statistic: float
    degrees: int
    p_value: float


def kaplan_meier(time: ArrayLike, event: ArrayLike) -> KaplanMeier:
    """Estimate a survival curve.

    Args:
        time: until the event or the end of follow-up, ``[n]``.
        event: 1 where it happened, 0 where censored, ``[n]``.

    Examples:
        >>> from monai_mil.metrics import kaplan_meier
        >>> curve = kaplan_meier([5, 8, 8, 12], [1, 1, 0, 1])
        >>> curve.time, curve.survival
        (array([ 0.,  5.,  8., 12.]), array([1.  , 0.75, 0.5 , 0.  ]))
    """
    _, times, events = read_follow_up(np.zeros(np.shape(time)), time, event)
    distinct, place = np.unique(np.append(0.0, times), return_inverse=True)
    died = np.bincount(place[1:], events, minlength=len(distinct))
    left = np.bincount(place[1:], minlength=len(distinct))
    at_risk = left[::-1].cumsum()[::-1]
    survival = np.cumprod(1 - died / np.maximum(at_risk, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = np.cumsum(died / (at_risk * (at_risk - died)))
        spread = 1.959963984540054 * np.sqrt(variance) / np.log(survival)
        low, high = survival ** np.exp(-spread), survival ** np.exp(spread)
    inner = (survival > 0) & (survival < 1)
    low, high = np.where(inner, low, survival), np.where(inner, high, survival)
    if survival[-1] == 0:  # where the interval is not defined: its upper end stays what it was
        end = int(survival.argmin())
        high[end:] = high[end - 1] if end else 1.0
    return KaplanMeier(distinct, survival, low, high, at_risk, (left - died).astype(int))


def log_rank(time: ArrayLike, event: ArrayLike, group: ArrayLike) -> LogRank:
    """Log-rank test of two or more groups.

    Args:
        time: until the event or the end of follow-up, ``[n]``.
        event: 1 where it happened, 0 where censored, ``[n]``.
        group: of every patient, any values, ``[n]``.

    Returns:
        The test; NaN where there is one group only or nothing ever happened while two were observed.

    Examples:
        >>> from monai_mil.metrics import log_rank
        >>> test = log_rank([2, 3, 4, 20, 21, 22], [1, 1, 1, 1, 1, 0], ["high", "high", "high", "low", "low", "low"])
        >>> test.degrees, test.p_value < 0.05
        (1, True)
    """
    from scipy.stats import chi2

    _, times, events = read_follow_up(np.zeros(np.shape(time)), time, event)
    names, member = np.unique(np.asarray(group), return_inverse=True)
    surplus, covariance = np.zeros(len(names)), np.zeros((len(names), len(names)))
    for moment in np.unique(times[events]):
        at_risk = np.bincount(member[times >= moment], minlength=len(names))
        died = np.bincount(member[(times == moment) & events], minlength=len(names))
        total, deaths = at_risk.sum(), died.sum()
        share = at_risk / total
        surplus += died - deaths * share
        factor = deaths * (total - deaths) / max(total - 1, 1)
        covariance += factor * (np.diag(share) - np.outer(share, share))
    degrees = len(names) - 1
    if degrees == 0 or not covariance.any():
        return LogRank(float("nan"), degrees, float("nan"))
    statistic = float(surplus[:-1] @ np.linalg.pinv(covariance[:-1, :-1]) @ surplus[:-1])
    return LogRank(statistic, degrees, float(chi2.sf(statistic, degrees)))


def risk_groups(risk: ArrayLike, cutoffs: Sequence[float]) -> Array:
    """Group of every patient, 0 for the lowest risk: how many cut-offs the (finite) risk is above, int64 ``[n]``.

    Examples:
        >>> from monai_mil.metrics import risk_groups
        >>> risk_groups([0.1, 0.5, 0.9], cutoffs=[0.4])
        array([0, 1, 1])
    """
    return np.searchsorted(np.sort(np.asarray(cutoffs, dtype=float)), np.asarray(risk, dtype=float), side="left")


def survival_report(
    risk: ArrayLike,
    time: ArrayLike,
    event: ArrayLike,
    cutoffs: Sequence[float] | None = None,
    n: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Concordance, risk groups and their survival.

    Args:
        risk: of every patient, higher for an earlier event, ``[n]``.
        time: until the event or the end of follow-up, ``[n]``.
        event: 1 where it happened, 0 where censored, ``[n]``.
        cutoffs: risks between the groups, chosen on other patients; None takes the median of these.
        n: bootstrap resamples of patients.
        seed: of the resampling.

    Returns:
        ``{"patients", "events", "concordance": {"value", "low", "high"}, "cutoffs", "cutoffs_from": "given" or "median
        of these patients", "log_rank": {"statistic", "degrees", "p_value"}, "groups": [{"name", "patients", "events",
        "median", "curve": {"time", "survival", "low", "high", "at_risk", "censored"}}]}`` with groups of rising risk.

    Raises:
        ValueError: as :func:`concordance_index`.

    Examples:
        >>> from monai_mil.metrics import survival_report
        >>> report = survival_report([0.9, 0.8, 0.2, 0.1], [3, 5, 20, 30], [1, 1, 1, 0], n=10)
        >>> report["concordance"]["value"], [group["patients"] for group in report["groups"]]
        (1.0, [2, 2])
    """
    risks, times, events = read_follow_up(risk, time, event)
    concordance_index(risks, times, events)
    chosen = [float(np.median(risks))] if cutoffs is None else [float(value) for value in cutoffs]
    member = risk_groups(risks, chosen)

    def metric(prob: ArrayLike, label: ArrayLike, weight: Array | None = None) -> Any:
        return concordance_index(prob, times, label, weight)

    return {
        "patients": len(risks),
        "events": int(events.sum()),
        "concordance": asdict(bootstrap_ci(metric, risks, events.astype(int), n, seed)),
        "cutoffs": chosen,
        "cutoffs_from": "median of these patients" if cutoffs is None else "given",
        "log_rank": asdict(log_rank(times, events, member)),
        "groups": [
            _group(name, times[member == index], events[member == index])
            for index, name in enumerate(group_names(len(chosen) + 1))
        ],
    }


def group_names(count: int) -> tuple[str, ...]:
    """What ``count`` groups of rising risk are called.

    Examples:
        >>> from monai_mil.metrics import group_names
        >>> group_names(2)
        ('low', 'high')
    """
    return _NAMES.get(count) or tuple(f"{index} of {count}" for index in range(1, count + 1))


def _group(name: str, time: Array, event: Array) -> dict[str, Any]:
    curve = kaplan_meier(time, event)
    return {
        "name": name,
        "patients": len(time),
        "events": int(event.sum()),
        "median": curve.median,
        "curve": {key: values.tolist() for key, values in vars(curve).items()},
    }

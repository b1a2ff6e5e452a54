"""How well risks order patients by when their event came."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from monai_mil.metrics.classification import Array

_TIE = 1e-8
_BLOCK = 1024


def concordance_index(
    risk: ArrayLike, time: ArrayLike, event: ArrayLike, weight: Array | None = None, tied: float = 0.5
) -> Any:
    """Harrell's C: the share of comparable pairs of patients in which the one with the earlier event has more risk.

    A patient with an event is comparable with all who were followed longer, and with those censored at the same time.

    Args:
        risk: higher for an earlier event, ``[n]``.
        time: until the event or the end of follow-up, ``[n]``.
        event: 1 where it happened, 0 where censored, ``[n]``.
        weight: of the patients, ``[n]``, or ``[k, n]`` for ``k`` results in one go; None counts each once.
        tied: what a pair of equal risks (within 1e-8) counts; the formula in the ASMIL paper (Eq. 37) says 0.

    Returns:
        A float, or ``[k]`` float64, NaN where a weighting leaves no comparable pair.

    Raises:
        ValueError: shapes differ, a number is none, or without weights there is no comparable pair.

    Examples:
        >>> from monai_mil.metrics import concordance_index
        >>> risk, time, event = [0.9, 0.5, 0.1], [12.0, 30.0, 24.0], [1, 0, 1]
        >>> round(concordance_index(risk, time, event), 4)  # of three comparable pairs the third is in the wrong order
        0.6667
    """
    risks, times, events = read_follow_up(risk, time, event)
    weights = np.ones((1, len(risks))) if weight is None else np.atleast_2d(np.asarray(weight, dtype=float))
    concordant, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    happened = np.flatnonzero(events)
    for start in range(0, len(happened), _BLOCK):
        rows = happened[start : start + _BLOCK]
        comparable = (times[rows, None] < times) | ((times[rows, None] == times) & ~events)
        difference = risks[rows, None] - risks
        agreement = np.where(np.abs(difference) <= _TIE, tied, difference > 0) * comparable
        concordant += ((weights[:, rows] @ agreement) * weights).sum(axis=1)
        pairs += ((weights[:, rows] @ comparable) * weights).sum(axis=1)
    values = np.divide(concordant, pairs, out=np.full_like(pairs, np.nan), where=pairs > 0)
    if weight is not None and np.ndim(weight) == 2:
        return values
    if weight is None and not pairs[0]:
        raise ValueError(
            f"no comparable pair among {len(risks)} patients with {int(events.sum())} events: a concordance index "
            "needs an event before the end of another patient's follow-up"
        )
    return float(values[0])


def read_follow_up(risk: ArrayLike, time: ArrayLike, event: ArrayLike) -> tuple[Array, Array, Array]:
    """Risks and times as float64 ``[n]`` and whether the event happened, bool ``[n]``.

    Raises:
        ValueError: shapes differ, a risk or time is no finite number, a time is negative or an event not 0 or 1.
    """
    risks, times, events = (np.asarray(values, dtype=float) for values in (risk, time, event))
    if risks.ndim != 1 or risks.shape != times.shape or risks.shape != events.shape:
        raise ValueError(f"risk {risks.shape}, time {times.shape} and event {events.shape} must all be [patients]")
    for name, wrong in (
        ("risk", ~np.isfinite(risks)),
        ("time", ~(np.isfinite(times) & (times >= 0))),
        ("event", ~np.isin(events, (0, 1))),
    ):
        if wrong.any():
            values = {"risk": risks, "time": times, "event": events}[name]
            place = int(wrong.argmax())
            raise ValueError(f"the {name} of patient {place} is {values[place]:g}; leave out patients without one")
    return risks, times, events == 1

"""Cohorts whose label is how long a patient was followed and how that ended."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from monai_mil.cohorts.cohort import Cohort
from monai_mil.cohorts.reader import Table, read_cohort, read_table, with_fold, without
from monai_mil.cohorts.splits import split_cohort
from monai_mil.model_card import ModelCard

_EVENTS = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0}


def read_survival_cohort(
    path: str | os.PathLike[str],
    *,
    time: str = "time",
    event: str = "event",
    unlabelled: bool = False,
    fold: int | None = None,
    trained: ModelCard | None = None,
    bag_of: str = "slide",
    leave_out: Callable[[Cohort], Collection[str]] | None = None,
) -> Cohort:
    """Read and check a cohort with follow-up; all else is as in :func:`read_cohort`.

    The label of a slide is (time, event): how long its patient was followed, in any unit, and 1 if the event happened
    then or 0 if the patient was censored; in a data list it is the ``label`` ``[2]`` that ``DiscreteSurvival`` takes.

    Args:
        path: the table or data list.
        time: column of the times.
        event: column of the events.
        unlabelled: accept slides without follow-up (an empty cell, or pandas' ``nan``), as inference does; they have
            that of another slide of their patient, or (NaN, NaN).
        fold: as of :func:`read_cohort`.
        trained: likewise.
        bag_of: likewise.
        leave_out: gives the names of the cases to leave out; see :func:`read_cohort`.

    Raises:
        CohortError: as :func:`read_cohort`; a time is no positive number, an event not 0 or 1, or two slides of a
            patient tell different follow-ups. Names file, row and column.

    Examples:
        >>> from monai_mil.cohorts import follow_up, read_survival_cohort
        >>> _ = (folder / "cohort.csv").write_text('''slide_id,patient_id,time,event
        ... S-1,P-1,12.5,1
        ... S-2,P-2,30,0''')
        >>> follow_up(read_survival_cohort(folder / "cohort.csv"))
        array([[12.5,  1. ],
               [30. ,  0. ]])
    """
    cohort = read_cohort(path, labels=(), bag_of=bag_of)
    table = read_table(cohort.source)
    missing = [] if unlabelled else [name for name in (time, event) if name not in table.columns]
    for name in missing:
        table.problem("row 1", name, f"no such column; the table has {', '.join(table.columns)}")
    table.raise_problems()
    labels = [_follow_up(table, row, cells, time, event, unlabelled) for row, cells in table.rows]
    known: dict[str, tuple[float, float]] = {}
    for slide, label in zip(cohort.slides, labels, strict=True):
        if not np.isnan(label).any() and known.setdefault(slide.patient_id, label) != label:
            table.problem(slide.row, time, f"patient '{slide.patient_id}' has another follow-up in an earlier row")
    table.raise_problems()
    unknown = (math.nan, math.nan)
    slides = tuple(replace(slide, label=known.get(slide.patient_id, unknown)) for slide in cohort.slides)
    followed = replace(cohort, slides=slides, labels=(time, event), classes=(time, event))
    return without(with_fold(followed, fold, trained), leave_out)


def follow_up(cohort: Cohort, split: str | None = None) -> np.ndarray:
    """Time and event of every patient of a split whose follow-up is known, float64 ``[patients, 2]``."""
    chosen = [slide for slide in cohort.slides if split is None or slide.split == split]
    rows: dict[str, Any] = {slide.patient_id: slide.label for slide in chosen}
    known = [label for label in rows.values() if not np.isnan(label).any()]
    return np.array(known, dtype=float).reshape(-1, 2)


def split_survival_cohort(
    cohort: Cohort, fractions: Sequence[float] = (0.6, 0.2, 0.2), seed: int = 0, *, folds: int | None = None
) -> Cohort:
    """:func:`split_cohort`, into folds too, that keeps the share of events alike.

    Raises:
        CohortError: too few patients for the fractions or the folds.
    """
    events = [int(np.nan_to_num(np.asarray(slide.label, dtype=float)[1], nan=-1)) for slide in cohort.slides]
    strata = tuple(replace(slide, label=event) for slide, event in zip(cohort.slides, events, strict=True))
    divided = split_cohort(replace(cohort, slides=strata), fractions, seed, folds=folds).slides
    slides = zip(cohort.slides, divided, strict=True)
    return replace(cohort, slides=tuple(replace(slide, split=other.split, fold=other.fold) for slide, other in slides))


def _follow_up(
    table: Table, row: str, cells: dict[str, Any], time: str, event: str, unlabelled: bool
) -> tuple[float, float]:
    duration, outcome = (str(cells.get(name, "")).strip() for name in (time, event))
    if unlabelled and not {duration.lower(), outcome.lower()}.isdisjoint({"", "nan"}):
        return (math.nan, math.nan)
    try:
        length = float(duration)
    except ValueError:
        length = math.nan
    if not (math.isfinite(length) and length > 0):
        table.problem(row, time, f"'{duration}' is no positive number" if duration else "no time")
    if outcome not in _EVENTS:
        table.problem(row, event, f"'{outcome}' is neither 1 (happened) nor 0 (censored)" if outcome else "no event")
    return (length, _EVENTS.get(outcome, math.nan))

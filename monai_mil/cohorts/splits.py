"""Cases into train, val and test, or into the folds of a cross-validation: patients whole, classes in proportion."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from monai_mil.cohorts.cohort import Cohort, CohortSlide
from monai_mil.errors import CohortError

logger = logging.getLogger(__name__)

_FEWEST_FOLDS = 3
_MOST_FOLDS = 10
_NEAR = 0.04
"""How far the shares of a split may lie from those asked for before it is made of more folds."""


def split_cohort(
    cohort: Cohort, fractions: Sequence[float] = (0.6, 0.2, 0.2), seed: int = 0, *, folds: int | None = None
) -> Cohort:
    """Assign slides to train, val and test, or to folds: patients are never divided, classes are kept in proportion.

    Args:
        cohort: any; splits, or folds, it already has are replaced.
        fractions: of train, val and test; must sum to 1. A patient-grouped split meets them approximately.
        seed: of the shuffle.
        folds: how many folds of a cross-validation to make in place of splits, at least 3: ``--fold k`` of a bundle
            tests on fold ``k``, validates on the next one and trains on the others. Splits stay as they are.

    Returns:
        The same cohort with ``split``, or ``fold`` from 0 up, set.

    Raises:
        CohortError: too few patients for the fractions or the folds.

    Examples:
        >>> from monai_mil.cohorts import Cohort, CohortSlide, split_cohort
        >>> slides = tuple(CohortSlide(f"S-{i}", f"P-{i // 2}", label=i // 2 % 2) for i in range(40))  # two a patient
        >>> cohort = Cohort("cohort.csv", slides, labels=("label",), classes=("normal", "tumor"))
        >>> cohort = split_cohort(cohort, fractions=(0.5, 0.25, 0.25))
        >>> splits = [slide.split for slide in cohort.slides]
        >>> {split: splits.count(split) for split in ("train", "val", "test")}
        {'train': 20, 'val': 10, 'test': 10}
        >>> folds = [slide.fold for slide in split_cohort(cohort, folds=5).slides]
        >>> [folds.count(fold) for fold in range(5)]
        [8, 8, 8, 8, 8]
    """
    strata = np.array([str(slide.label) for slide in cohort.slides])
    patients = np.array([slide.patient_id for slide in cohort.slides])
    if folds is not None:
        numbers = _folds(cohort, strata, patients, folds, seed)
        return _with(cohort, "fold", numbers.tolist())
    if len(fractions) != 3 or min(fractions) < 0 or not math.isclose(sum(fractions), 1.0, abs_tol=1e-6):
        raise CohortError(f"cohort '{cohort.source}': fractions {tuple(fractions)} are not three shares that sum to 1")
    rest = np.arange(len(cohort))
    split = np.full(len(cohort), "train", dtype="<U5")
    try:
        for name, share in (("test", fractions[2]), ("val", fractions[1] / max(1 - fractions[2], 1e-9))):
            taken = _draw(strata[rest], patients[rest], share, seed)
            split[rest[taken]] = name
            rest = rest[~taken]
    except ValueError as error:
        raise CohortError(
            f"cohort '{cohort.source}': {len(set(patients))} patients cannot be split {tuple(fractions)} ({error})"
        ) from error
    return _with(cohort, "split", split.tolist())


def choose_fold(cohort: Cohort, fold: int) -> Cohort:
    """The cohort with splits made of its folds: ``fold`` tests, the next one (after the last the first) validates.

    All others train.

    Raises:
        CohortError: there is no such fold, there are fewer than three, a slide has none, or those of a patient lie in
            several.

    Examples:
        >>> from monai_mil.cohorts import Cohort, CohortSlide, choose_fold
        >>> cohort = Cohort("cohort.csv", tuple(CohortSlide(f"S-{i}", f"P-{i}", fold=i) for i in range(4)))
        >>> [slide.split for slide in choose_fold(cohort, 3).slides]
        ['val', 'train', 'train', 'test']
    """
    folds = cohort.folds
    if not folds:
        raise CohortError(
            f"cohort '{cohort.source}': no column 'fold', of which fold {fold} is to be taken; make one with "
            "split_cohort(read_cohort(TABLE), folds=5).write(TABLE) of monai_mil.cohorts, or leave --fold out"
        )
    if fold not in folds:
        raise CohortError(f"cohort '{cohort.source}', column 'fold': no fold {fold}; there are {_listed(folds)}")
    if len(folds) < _FEWEST_FOLDS:
        raise CohortError(
            f"cohort '{cohort.source}', column 'fold': only {_listed(folds)}; one fold tests, the next one validates, "
            "and at least one more has to train"
        )
    _check_whole(cohort)
    if any(slide.split for slide in cohort.slides):
        logger.warning("cohort '%s': fold %d is taken, its column 'split' does not count", cohort.source, fold)
    following = folds[(folds.index(fold) + 1) % len(folds)]
    names: dict[int | None, str] = {fold: "test", following: "val"}
    return _with(cohort, "split", [names.get(slide.fold, "train") for slide in cohort.slides])


def _check_whole(cohort: Cohort) -> None:
    """Raise a CohortError if a slide has no fold, or those of one patient lie in several."""
    home: dict[str, CohortSlide] = {}
    for slide in cohort.slides:
        if slide.fold is None:
            raise CohortError(f"cohort '{cohort.source}', column 'fold': {cohort.case} '{slide.slide_id}' has none")
        other = home.setdefault(slide.patient_id, slide)
        if other.fold != slide.fold:
            raise CohortError(
                f"cohort '{cohort.source}', {slide.row}, column 'fold': patient '{slide.patient_id}' is in fold "
                f"{slide.fold} but in {other.fold} in {other.row}; give all of a patient one fold"
            )


def _listed(folds: Sequence[int]) -> str:
    return f"folds {', '.join(map(str, folds))}" if len(folds) > 1 else f"fold {folds[0]}"


def _with(cohort: Cohort, field: str, values: Sequence[Any]) -> Cohort:
    """The cohort with one field of its slides set."""
    slides = zip(cohort.slides, values, strict=True)
    return dataclasses.replace(
        cohort, slides=tuple(dataclasses.replace(slide, **{field: value}) for slide, value in slides)
    )


def _folds(cohort: Cohort, strata: np.ndarray, patients: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Fold of every row, int ``[n]``."""
    from sklearn.model_selection import StratifiedGroupKFold

    found = len(set(patients.tolist()))
    if not _FEWEST_FOLDS <= count <= found:
        raise CohortError(
            f"cohort '{cohort.source}': {found} patients cannot be divided into {count} folds; make at least "
            f"{_FEWEST_FOLDS} (test, validation, training) and at most one a patient"
        )
    numbers = np.zeros(len(strata), int)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of rare classes, which are told below
            drawn = list(StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(strata, strata, patients))
    except ValueError as error:
        raise CohortError(
            f"cohort '{cohort.source}': cannot be divided into {count} folds ({error}); make fewer"
        ) from error
    for number, (_, rows) in enumerate(drawn):
        numbers[rows] = number
    if len(set(numbers.tolist())) < count:
        raise CohortError(f"cohort '{cohort.source}': its patients do not fill {count} folds; make fewer")
    for stratum in dict.fromkeys(strata.tolist()):
        holding = len(set(numbers[strata == stratum].tolist()))
        if holding < count:
            name = _label_name(cohort, int(np.argmax(strata == stratum)))
            logger.warning("cohort '%s': only %d of %d folds hold the label %s", cohort.source, holding, count, name)
    return numbers


def _label_name(cohort: Cohort, row: int) -> str:
    label = cohort.slides[row].label
    exclusive = isinstance(label, int) and label >= 0 and len(cohort.labels) == 1
    return cohort.classes[label] if exclusive else str(label)  # type: ignore[index]


def _draw(strata: np.ndarray, patients: np.ndarray, share: float, seed: int) -> np.ndarray:
    """True for about ``share`` of the rows: as many whole folds as come near it."""
    from sklearn.model_selection import StratifiedGroupKFold

    if share in (0, 1) or not len(strata):
        return np.full(len(strata), bool(share))
    smaller = min(share, 1 - share)
    count = _fold_count(strata, patients, smaller)
    if count < 2:
        raise ValueError("too few of them in every class")
    folds = StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(strata, strata, patients)
    drawn = np.zeros(len(strata), bool)
    for _, fold in itertools.islice(folds, max(round(smaller * count), 1)):
        drawn[fold] = True
    return drawn if share <= 0.5 else ~drawn


def _fold_count(strata: np.ndarray, patients: np.ndarray, share: float) -> int:
    """How many folds to make: one is the share, unless several of more and smaller ones come nearer to it.

    A small cohort gets fewer, larger folds, so that each can hold every class.
    """
    largest_class = max(Counter(strata.tolist()).values())
    whole = min(round(1 / share), largest_class, len(set(patients.tolist())))
    rarest = min(len(set(patients[strata == name].tolist())) for name in set(strata.tolist()))
    near = (count for count in range(whole, min(rarest, _MOST_FOLDS) + 1) if _miss(share, count) < _NEAR)
    return next(near, whole)


def _miss(share: float, count: int) -> float:
    return abs(round(share * count) / count - share)

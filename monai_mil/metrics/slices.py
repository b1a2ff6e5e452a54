"""How well scores find the slices of a scan that matter, beside what the middle of the scan would find."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from monai_mil.metrics.bootstrap import bootstrap_ci
from monai_mil.metrics.classification import Array, auprc, auroc

CentreRule = Literal["rank", "gaussian"]

_FIGURES = ("auroc", "auprc", "attention_mass")


@dataclass(frozen=True)
class SliceFigure:
    """Mean over scans, sample standard deviation (``n - 1``) over scans, and confidence interval of the mean."""

    value: float
    std: float
    low: float
    high: float


@dataclass(frozen=True)
class SliceReport:
    """Localisation in a cohort's positive scans; NaN where not defined.

    ``auroc`` and ``auprc`` (average precision) of each scan's slices, averaged; ``attention_mass`` is the share of the
    attention that lies on positive slices. ``centre_rank`` and ``centre_gaussian`` are what :func:`centre_scores` reach
    on the same scans, by the same names; ranks have no mass.

    ``scans`` is how many the figures are of: those with positive and negative slices. The others are counted or named:
    ``negative`` scans have no positive slice, ``all_positive`` no negative one, ``unlabelled`` no known label;
    ``partly_labelled`` scans count with the slices that are known.
    """

    scans: int
    auroc: SliceFigure
    auprc: SliceFigure
    attention_mass: SliceFigure
    centre_rank: dict[str, float]
    centre_gaussian: dict[str, float]
    negative: int
    all_positive: tuple[str, ...]
    unlabelled: tuple[str, ...]
    partly_labelled: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, with NaN where not defined."""
        return asdict(self)


def slice_metrics(
    scores: Sequence[ArrayLike],
    labels: Sequence[ArrayLike],
    case_ids: Sequence[str],
    groups: Sequence[Hashable] | None = None,
    n: int = 1000,
    seed: int = 0,
    attention: Sequence[ArrayLike | None] | None = None,
) -> SliceReport:
    """AUROC, average precision and attention mass of every positive scan, averaged.

    Args:
        scores: of the slices of each scan, ``[s]``, higher is more suspicious.
        labels: of the same slices: 1, 0, or below 0 where unknown.
        case_ids: names of the scans.
        groups: patient of every scan; resampling keeps a patient's scans together. None lets each be its own.
        n: bootstrap resamples.
        seed: of the resampling.
        attention: distributions over the slices of each scan, ``[s]``, that the mass is measured on, None where a scan
            has none; by default the scores, where they are one.

    Raises:
        ValueError: the numbers of scans or of slices differ, or a score is not a number; names the scan.

    Examples:
        >>> from monai_mil.metrics import slice_metrics
        >>> report = slice_metrics([[0.1, 0.6, 0.2, 0.1], [0.4, 0.6]], [[0, 1, 0, 0], [0, 0]], ["S-1", "S-2"], n=10)
        >>> report.scans, report.negative, report.auroc.value, round(report.attention_mass.value, 4)
        (1, 1, 1.0, 0.6)
    """
    given = scores if attention is None else attention
    lengths = {len(scores), len(labels), len(case_ids), len(given), len(case_ids if groups is None else groups)}
    if len(lengths) > 1:
        raise ValueError(f"scores, labels, case_ids, groups and attention differ in length: {sorted(lengths)}")
    rows: dict[str, list[tuple[float, ...]]] = {"scores": [], "rank": [], "gaussian": []}
    named: dict[str, list[str]] = {"negative": [], "all_positive": [], "unlabelled": [], "partly_labelled": []}
    patients: list[Hashable] = []
    for index, name in enumerate(case_ids):
        score, label, share = _read_scan(name, scores[index], labels[index], given[index])
        known, truth = label >= 0, label[label >= 0] == 1
        state = _state(truth)
        if 0 < known.sum() < len(known):
            named["partly_labelled"].append(name)
        if state is not None:
            named[state].append(name)
            continue
        patients.append(name if groups is None else groups[index])
        gaussian = centre_scores(len(label), "gaussian")[known]
        rows["scores"].append(_scan_figures(score[known], truth, None if share is None else share[known]))
        rows["rank"].append(_scan_figures(centre_scores(len(label))[known], truth, None))
        rows["gaussian"].append(_scan_figures(gaussian, truth, gaussian))
    tables = {kind: np.reshape(figures, (-1, len(_FIGURES))).T for kind, figures in rows.items()}
    averages = [_average(column, patients, n, seed) for column in tables["scores"]]
    return SliceReport(
        scans=len(patients),
        auroc=averages[0],
        auprc=averages[1],
        attention_mass=averages[2],
        centre_rank=dict(zip(_FIGURES, map(_mean_defined, tables["rank"]), strict=True)),
        centre_gaussian=dict(zip(_FIGURES, map(_mean_defined, tables["gaussian"]), strict=True)),
        negative=len(named["negative"]),
        all_positive=tuple(named["all_positive"]),
        unlabelled=tuple(named["unlabelled"]),
        partly_labelled=tuple(named["partly_labelled"]),
    )


def centre_scores(n: int, rule: CentreRule = "rank") -> Array:
    """Scores of the slices of a scan that know nothing but where its middle is, ``[n]`` float64.

    Args:
        n: slices.
        rule: ``"rank"`` is ``-|j - (n + 1) / 2|`` for slices j from 1 to n. ``"gaussian"`` is the baseline of the
            Normal Guidance paper, a normal distribution at ``n / 2`` with a standard deviation of one slice: 38 slices
            from there it is 0, so that long scans end in ties, which understates what the middle finds.

    Examples:
        >>> from monai_mil.metrics import centre_scores
        >>> centre_scores(4)
        array([-1.5, -0.5, -0.5, -1.5])
    """
    if rule not in get_args(CentreRule):
        raise ValueError(f"unknown rule '{rule}'; choose from {', '.join(get_args(CentreRule))}")
    place = np.arange(1, n + 1, dtype=float)
    if rule == "rank":
        return -np.abs(place - (n + 1) / 2)
    density = np.exp(-((place - n / 2) ** 2) / 2)
    return density / density.sum()


def _read_scan(name: str, score: ArrayLike, label: ArrayLike, share: ArrayLike | None) -> tuple[Array, Array, Any]:
    scores, labels = np.asarray(score, dtype=float), np.asarray(label)
    attention = None if share is None else np.asarray(share, dtype=float)
    if scores.ndim != 1 or scores.shape != labels.shape or (attention is not None and attention.shape != scores.shape):
        raise ValueError(f"scan '{name}': scores {scores.shape} and labels {labels.shape} must both be [slices]")
    for what, values in (("score", scores), ("attention", attention)):
        if values is not None and np.isnan(values).any():
            raise ValueError(f"scan '{name}': the {what} of slice {np.isnan(values).argmax()} is not a number")
    if attention is not None and ((attention < 0).any() or abs(attention.sum() - 1) > 1e-3):
        attention = None
    return scores, labels, attention


def _state(truth: Array) -> str | None:
    """Why a scan with these known labels has no figures, or None."""
    if len(truth) == 0:
        return "unlabelled"
    if not truth.any():
        return "negative"
    return "all_positive" if truth.all() else None


def _scan_figures(score: Array, truth: Array, share: Array | None) -> tuple[float, float, float]:
    mass = np.nan if share is None or share.sum() == 0 else float(share[truth].sum() / share.sum())
    return auroc(score, truth), auprc(score, truth), mass


def _average(column: Array, patients: Sequence[Hashable], n: int, seed: int) -> SliceFigure:
    """A figure of every scan ``[scans]``, averaged where it is defined."""
    defined = np.flatnonzero(~np.isnan(column)).tolist()
    if len(defined) == 0:
        return SliceFigure(np.nan, np.nan, np.nan, np.nan)
    values, of_patients = column[defined], [patients[scan] for scan in defined]
    interval = bootstrap_ci(_mean_value, values, np.ones(len(values)), n, seed, of_patients)
    std = float(values.std(ddof=1)) if len(values) > 1 else np.nan
    return SliceFigure(interval.value, std, interval.low, interval.high)


def _mean_defined(column: Array) -> float:
    return np.nan if np.isnan(column).all() else float(np.nanmean(column))


def _mean_value(prob: ArrayLike, label: ArrayLike, weight: Array | None = None) -> Any:
    """The weighted mean as a metric of :mod:`monai_mil.metrics.classification`."""
    values = np.asarray(prob, dtype=float)
    return float(values.mean()) if weight is None else weight @ values / weight.sum(axis=-1)

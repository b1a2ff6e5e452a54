"""Overlap of a map and the ground truth, from counts of pixels: per slide, pooled, by size of the lesion."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from monai_mil.metrics.bootstrap import bootstrap_ci
from monai_mil.metrics.classification import Array

SIZES = ("small", "moderate", "large")
SIZE_BOUNDS = (1e5, 1e7)
"""INSIGHT's, in pixels of 0.5 micrometres: areas below the first are small, above the second large."""
_BLOCK = 1000


@dataclass(frozen=True)
class DiceCounts:
    """Pixels of a prediction ``P`` and a truth ``G``; those of several parts add up.

    Attributes:
        intersection: ``|P and G|``.
        predicted: ``|P|``.
        truth: ``|G|``.

    Examples:
        >>> from monai_mil.metrics import DiceCounts
        >>> DiceCounts(intersection=5, predicted=10, truth=10).dice
        0.5
    """

    intersection: int
    predicted: int
    truth: int

    def __add__(self, other: DiceCounts) -> DiceCounts:
        return DiceCounts(
            self.intersection + other.intersection, self.predicted + other.predicted, self.truth + other.truth
        )

    @property
    def dice(self) -> float:
        """``2 |P and G| / (|P| + |G|)``, NaN where both are empty."""
        total = self.predicted + self.truth
        return 2 * self.intersection / total if total else math.nan


@dataclass(frozen=True)
class LesionDice:
    """One lesion of a slide and how it was found.

    Attributes:
        slide_id: the slide.
        patient_id: whose it is.
        lesion: its number in the slide.
        area: its pixels.
        counts: inside its crop, other lesions left out.
        box: x0, y0, x1, y1 around it in level-0 pixels.
    """

    slide_id: str
    patient_id: str
    lesion: int
    area: int
    counts: DiceCounts
    box: tuple[float, float, float, float]


def dice_summary(
    counts: Sequence[DiceCounts], groups: Sequence[Hashable] | None = None, n: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Dice of several slides or lesions.

    Args:
        counts: of each.
        groups: patient of each; resampling keeps a patient's together.
        n: bootstrap resamples.
        seed: of the resampling.

    Returns:
        ``{"count", "mean": {"value", "low", "high"}, "std", "pooled": {"value", "low", "high"}}``: mean over the slides
        and their standard deviation (divisor ``count - 1``), and the Dice of all their pixels together; NaN where
        there is none.

    Examples:
        >>> from monai_mil.metrics import DiceCounts, dice_summary
        >>> summary = dice_summary([DiceCounts(5, 10, 10), DiceCounts(10, 10, 10)], n=10)
        >>> summary["count"], summary["mean"]["value"], summary["pooled"]["value"]
        (2, 0.75, 0.75)
    """
    if not counts:
        nothing = {"value": math.nan, "low": math.nan, "high": math.nan}
        return {"count": 0, "mean": nothing, "std": math.nan, "pooled": nothing}
    table = np.array([[each.intersection, each.predicted, each.truth] for each in counts], float)
    single = np.array([each.dice for each in counts])
    stratum = np.zeros(len(counts))
    return {
        "count": len(counts),
        "mean": asdict(bootstrap_ci(_mean, single, stratum, n, seed, groups)),
        "std": float(single.std(ddof=1)) if len(single) > 1 else math.nan,
        "pooled": asdict(bootstrap_ci(_pooled, table, stratum, n, seed, groups)),
    }


def lesion_size(area: float, bounds: Sequence[float] = SIZE_BOUNDS) -> str:
    """``small``, ``moderate`` or ``large`` by ``bounds``, the second's least and the last's excluded least area.

    Examples:
        >>> from monai_mil.metrics import lesion_size
        >>> [lesion_size(area, bounds=(1000, 5000)) for area in (10, 1000, 6000)]
        ['small', 'moderate', 'large']
    """
    return SIZES[0] if area < bounds[0] else SIZES[1] if area <= bounds[1] else SIZES[2]


def lesion_dice(
    lesions: Sequence[LesionDice], bounds: Sequence[float] = SIZE_BOUNDS, n: int = 1000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """:func:`dice_summary` of the lesions of every size; see :func:`lesion_size`.

    Examples:
        >>> from monai_mil.metrics import DiceCounts, LesionDice, lesion_dice
        >>> lesion = LesionDice("S-1", "P-1", 1, area=10, counts=DiceCounts(5, 10, 10), box=(0.0, 0.0, 4.0, 4.0))
        >>> report = lesion_dice([lesion], n=10)
        >>> {size: summary["count"] for size, summary in report.items()}
        {'small': 1, 'moderate': 0, 'large': 0}
    """
    summaries = {}
    for size in SIZES:
        chosen = [each for each in lesions if lesion_size(each.area, bounds) == size]
        patients = [each.patient_id for each in chosen]
        summaries[size] = dice_summary([each.counts for each in chosen], patients, n, seed)
    return summaries


def paired_permutation_test(first: ArrayLike, second: ArrayLike, n: int = 10_000, seed: int = 0) -> float:
    """One-tailed p-value of ``first`` being better than ``second`` on the same lesions or slides.

    ``d_i = first_i - second_i`` keep or change their signs at random ``n`` times:
    ``p = (1 + #{mean of the changed d >= mean d}) / (n + 1)``.

    Args:
        first: values ``[m]``, pairwise with ``second``.
        second: see there.
        n: random changes of sign.
        seed: of them.

    Raises:
        ValueError: the lengths differ, there is no pair, or a value is not a number.

    Examples:
        >>> from monai_mil.metrics import paired_permutation_test
        >>> paired_permutation_test([0.8, 0.7, 0.9, 0.8], [0.6, 0.5, 0.7, 0.7], n=999) < 0.1
        True
    """
    one, other = np.asarray(first, float), np.asarray(second, float)
    if one.shape != other.shape or one.ndim != 1 or one.size == 0:
        raise ValueError(f"a paired test needs pairs, got {list(one.shape)} and {list(other.shape)} values")
    difference = one - other
    if not np.isfinite(difference).all():
        raise ValueError(f"the pair {int(np.argmin(np.isfinite(difference)))} is not a number")
    # The same sum in another order of signs must count as equal.
    observed = difference.sum() - 1e-12 * np.abs(difference).sum()
    generator, reached = np.random.default_rng(seed), 0
    for start in range(0, n, _BLOCK):
        signs = generator.integers(0, 2, (min(_BLOCK, n - start), len(difference)), dtype=np.int8)
        reached += int(np.count_nonzero((2.0 * signs - 1) @ difference >= observed))
    return (1 + reached) / (n + 1)


def _mean(prob: ArrayLike, label: ArrayLike, weight: Array | None = None) -> Any:
    values = np.asarray(prob, float)
    return values.mean() if weight is None else weight @ values / weight.sum(axis=1)


def _pooled(prob: ArrayLike, label: ArrayLike, weight: Array | None = None) -> Any:
    """Dice of all pixels of ``prob`` ``[m, 3]``: intersection, predicted, truth."""
    table = np.asarray(prob, float)
    sums = (np.ones((1, len(table))) if weight is None else weight) @ table
    dice = 2 * sums[:, 0] / (sums[:, 1] + sums[:, 2])
    return dice[0] if weight is None else dice

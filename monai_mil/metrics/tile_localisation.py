"""How well tile scores find the tumour of slides: Dice, specificity and success at one threshold for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from monai_mil.metrics.bootstrap import bootstrap_ci
from monai_mil.metrics.classification import Array
from monai_mil.metrics.lesion_froc import FrocSlide, froc


@dataclass(frozen=True, eq=False)
class LocalisedSlide:
    """One slide's figures; None where it has not what they are of.

    Attributes:
        slide_id: the slide.
        patient_id: whose it is.
        dice: of a tumour slide's tiles, ``2 |P and G| / (|P| + |G|)``.
        specificity: share of a normal slide's tiles that are not above the threshold.
        strict: every tumour tile is above the threshold.
        by_lesion: every lesion has a tile above the threshold.
        froc: what detections hit, where they were asked for.
    """

    slide_id: str
    patient_id: str
    dice: float | None = None
    specificity: float | None = None
    strict: bool | None = None
    by_lesion: bool | None = None
    froc: FrocSlide | None = None


def scaled_to_unit(scores: ArrayLike) -> Array:
    """Scores of a slide from 0 (lowest) to 1 (highest), float64; all 0 where they are equal.

    So every slide has a tile at 1, a normal one too: its specificity is below 1 by construction.

    Examples:
        >>> from monai_mil.metrics import scaled_to_unit
        >>> scaled_to_unit([2.0, 3.0, 6.0])
        array([0.  , 0.25, 1.  ])
    """
    values = np.asarray(scores, dtype=float)
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def tile_figures(
    scores: ArrayLike, tumour: ArrayLike, lesions: Sequence[ArrayLike], threshold: float = 0.5
) -> dict[str, Any]:
    """Figures of one slide, as keywords of :class:`LocalisedSlide`.

    Args:
        scores: of the tiles, ``[n]``.
        tumour: which tiles are tumour, bool ``[n]``.
        lesions: indices of the tiles that each lesion touches; empty for a normal slide. A lesion without any lies
            where no tile is, and is not found.
        threshold: tiles above are predicted.

    Raises:
        ValueError: the shapes differ, or there are tumour tiles without a lesion.

    Examples:
        >>> from monai_mil.metrics import tile_figures
        >>> tile_figures([0.9, 0.8, 0.1, 0.2], [True, True, True, False], lesions=[[0, 1], [2]])
        {'dice': 0.8, 'strict': False, 'by_lesion': False}
    """
    predicted, truth = np.asarray(scores, dtype=float) > threshold, np.asarray(tumour, dtype=bool)
    if predicted.ndim != 1 or predicted.shape != truth.shape:
        raise ValueError(f"scores {predicted.shape} and truth {truth.shape} must both be [tiles]")
    if not lesions:
        if truth.any():
            raise ValueError(f"{truth.sum()} tumour tiles without a lesion")
        return {"specificity": float(1 - predicted.mean())}
    total = int(predicted.sum() + truth.sum())
    return {
        "dice": 2 * int((predicted & truth).sum()) / total if total else 0.0,
        "strict": bool(predicted[truth].all() and truth.any()),
        "by_lesion": all(predicted[np.asarray(tiles, dtype=np.int64)].any() for tiles in lesions),
    }


def localisation_report(
    slides: Sequence[LocalisedSlide],
    fp_denominator: Literal["all", "normal"] = "all",
    interpolation: Literal["linear", "step"] = "linear",
    n: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Means over slides with bootstrap intervals over patients.

    Args:
        slides: of the cohort.
        fp_denominator: see :func:`froc`.
        interpolation: see :func:`froc`.
        n: bootstrap resamples.
        seed: of the resampling.

    Returns:
        ``{"tumour_slides", "normal_slides", "dice", "specificity", "success_strict", "success_lesion"}``, each figure
        ``{"value", "low", "high"}``, NaN where there is no such slide, and ``"froc"``: ``{"score", "lesions",
        "slides", "sensitivities", "false_positives", "sensitivity"}``, or None without lesions and detections.

    Examples:
        >>> from monai_mil.metrics import LocalisedSlide, localisation_report
        >>> tumour = LocalisedSlide("S-1", "P-1", dice=0.8, strict=False, by_lesion=True)
        >>> normal = LocalisedSlide("S-2", "P-2", specificity=0.9)
        >>> report = localisation_report([tumour, normal], n=10)
        >>> report["dice"]["value"], report["specificity"]["value"], report["froc"]
        (0.8, 0.9, None)
    """
    report: dict[str, Any] = {
        "tumour_slides": sum(slide.dice is not None for slide in slides),
        "normal_slides": sum(slide.specificity is not None for slide in slides),
    }
    named = {"dice": "dice", "specificity": "specificity", "success_strict": "strict", "success_lesion": "by_lesion"}
    for name, attribute in named.items():
        having = [slide for slide in slides if getattr(slide, attribute) is not None]
        values = np.array([getattr(slide, attribute) for slide in having], dtype=float)
        patients = [slide.patient_id for slide in having]
        interval = bootstrap_ci(_mean, values, np.zeros(len(values)), n, seed, patients) if having else None
        report[name] = asdict(interval) if interval else dict.fromkeys(("value", "low", "high"), float("nan"))
    detected = [slide.froc for slide in slides if slide.froc is not None]
    report["froc"] = _froc(detected, fp_denominator, interpolation)
    return report


def _froc(
    slides: Sequence[FrocSlide], fp_denominator: Literal["all", "normal"], interpolation: Literal["linear", "step"]
) -> dict[str, Any] | None:
    counted = [slide for slide in slides if fp_denominator == "all" or slide.normal]
    if not counted or not any(len(slide.lesions) for slide in slides):
        return None
    curve = froc(slides, fp_denominator=fp_denominator, interpolation=interpolation)
    return {
        "score": curve.score,
        "lesions": curve.lesions,
        "slides": curve.slides,
        "sensitivities": {f"{rate:g}": value for rate, value in curve.sensitivities.items()},
        "false_positives": curve.false_positives.tolist(),
        "sensitivity": curve.sensitivity.tolist(),
    }


def _mean(prob: ArrayLike, label: ArrayLike, weight: Array | None = None) -> Any:
    """The weighted mean as a metric of :mod:`monai_mil.metrics.classification`."""
    values = np.asarray(prob, dtype=float)
    return float(values.mean()) if weight is None else weight @ values / weight.sum(axis=-1)

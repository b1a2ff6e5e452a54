"""FROC of lesion detection as CAMELYON16 defines it, on MONAI's implementation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from monai_mil.metrics.classification import Array

RATES = (0.25, 0.5, 1, 2, 4, 8)
"""False positives a slide at which CAMELYON16 reads the sensitivity."""


@dataclass(frozen=True, eq=False)
class FrocSlide:
    """What the detections of one slide hit; made by :func:`froc_slide`.

    Attributes:
        false: scores of the detections outside all lesions, ``[f]``.
        lesions: the highest score inside each lesion that counts, 0 where it has none, ``[m]``.
        normal: the slide has no lesion at all, not even one too small to count.
    """

    false: Array
    lesions: Array
    normal: bool


@dataclass(frozen=True, eq=False)
class Froc:
    """Free-response operating characteristic of a cohort.

    Attributes:
        score: mean sensitivity at the asked rates.
        sensitivities: by rate of false positives.
        false_positives: a slide, at every threshold from the lowest to above the highest score, ``[t]``, falling.
        sensitivity: share of the lesions found there, ``[t]``, falling.
        lesions: how many count.
        slides: over how many false positives are averaged.
    """

    score: float
    sensitivities: Mapping[float, float]
    false_positives: Array
    sensitivity: Array
    lesions: int
    slides: int


def non_maximum_suppression(score_map: ArrayLike, threshold: float = 0.5, box: int = 1) -> tuple[Array, Array]:
    """Detections in a map by non-maximum suppression (MONAI's ``ProbNMS``).

    Args:
        score_map: ``[rows, columns]``, not negative, NaN where nothing was looked at.
        threshold: only scores above are detections.
        box: side in pixels of what is taken away around each; 1 lets every pixel speak for itself.

    Returns:
        Scores ``[k]``, highest first, and their rows and columns, int64 ``[k, 2]``.

    Examples:
        >>> from monai_mil.metrics import non_maximum_suppression
        >>> scores, places = non_maximum_suppression([[0.1, 0.9, 0.8], [0.0, 0.1, 0.7]], threshold=0.5, box=3)
        >>> scores, places
        (array([0.9]), array([[0, 1]]))
    """
    from monai.transforms import ProbNMS

    found = ProbNMS(prob_threshold=threshold, box_size=box)(np.nan_to_num(np.array(score_map, dtype=float), nan=0.0))
    scores = np.array([each[0] for each in found], dtype=float)
    return scores, np.array([each[1:] for each in found], dtype=np.int64).reshape(-1, 2)


def froc_slide(
    scores: ArrayLike, places: ArrayLike, truth: ArrayLike, spacing: float, grow: float = 75.0, smallest: float = 200.0
) -> FrocSlide:
    """Sort the detections of a slide by the lesions they hit.

    As in CAMELYON16's program, the truth grows by half of ``grow`` (the paper says all of it), holes are filled, and
    what then touches is one lesion; one whose longest axis is below ``smallest + grow`` consists of isolated tumour
    cells and counts neither when it is hit nor when it is not.

    Args:
        scores: of the detections, ``[k]``.
        places: row and column of each in pixels of the truth, ``[k, 2]``; those beside it are moved to its border.
        truth: bool ``[rows, columns]``.
        spacing: side of its pixels in micrometres; CAMELYON16 takes 7.776.
        grow: in micrometres.
        smallest: in micrometres.

    Examples:
        >>> import numpy as np
        >>> from monai_mil.metrics import froc_slide
        >>> truth = np.zeros((100, 100), dtype=bool)
        >>> truth[20:60, 20:60] = True  # 400 micrometres
        >>> froc_slide([0.75, 0.5], [[40, 40], [90, 90]], truth, spacing=10.0)
        FrocSlide(false=array([0.5]), lesions=array([0.75]), normal=False)
    """
    from monai.apps.pathology.utils import compute_isolated_tumor_cells, compute_multi_instance_mask
    from monai.metrics import compute_fp_tp_probs_nd

    prob, mask = np.asarray(scores, dtype=float), np.asarray(truth, dtype=bool)
    if not mask.any():
        return FrocSlide(prob, np.empty(0), normal=True)
    labels = compute_multi_instance_mask(mask, grow / (2 * spacing))
    isolated = compute_isolated_tumor_cells(labels, (smallest + grow) / spacing)
    points = np.clip(np.asarray(places, dtype=np.int64).reshape(-1, 2), 0, np.array(mask.shape) - 1)
    false, best, _ = compute_fp_tp_probs_nd(prob, points, labels, isolated)
    counted = np.setdiff1d(np.arange(1, labels.max() + 1), isolated) - 1
    return FrocSlide(np.asarray(false, dtype=float), np.asarray(best, dtype=float)[counted], normal=False)


def froc(
    slides: Sequence[FrocSlide],
    rates: Sequence[float] = RATES,
    fp_denominator: Literal["all", "normal"] = "all",
    interpolation: Literal["linear", "step"] = "linear",
) -> Froc:
    """FROC of a cohort.

    Args:
        slides: with and without lesions.
        rates: false positives a slide at which the sensitivity is read.
        fp_denominator: ``"all"`` averages the false positives of all slides, as the challenge does; ``"normal"`` those
            of the slides without lesions alone, as the ASMIL paper says.
        interpolation: ``"linear"`` between points of the curve, as MONAI; ``"step"`` takes the best point of at most
            the rate, as the CC0 program of CAMELYON16.

    Raises:
        ValueError: there is no lesion, no slide to count false positives on, or an unknown option.

    Examples:
        >>> import numpy as np
        >>> from monai_mil.metrics import FrocSlide, froc
        >>> tumour = FrocSlide(false=np.array([0.6]), lesions=np.array([0.9, 0.0]), normal=False)
        >>> normal = FrocSlide(false=np.array([]), lesions=np.array([]), normal=True)
        >>> froc([tumour, normal]).score  # one of two lesions is found, before anything false
        0.5
    """
    from monai.metrics import compute_froc_curve_data, compute_froc_score

    if fp_denominator not in ("all", "normal") or interpolation not in ("linear", "step"):
        raise ValueError(f"unknown fp_denominator '{fp_denominator}' or interpolation '{interpolation}'")
    counted = [slide for slide in slides if fp_denominator == "all" or slide.normal]
    false = np.concatenate([np.empty(0), *(slide.false for slide in counted)])
    # MONAI leaves out the lowest score, which is 0 wherever a lesion was missed.
    found = np.concatenate([np.zeros(1), *(slide.lesions for slide in slides)])
    lesions = len(found) - 1
    if lesions == 0 or not counted:
        raise ValueError(f"FROC of {lesions} lesions and false positives of {len(counted)} slides: it needs both")
    per_slide, sensitivity = compute_froc_curve_data(false, found, lesions, len(counted))
    if interpolation == "linear":
        at = {rate: float(compute_froc_score(per_slide, sensitivity, (rate,))) for rate in rates}
    else:
        at = {rate: float(sensitivity[per_slide <= rate].max()) for rate in rates}
    return Froc(float(np.mean(list(at.values()))), at, per_slide, sensitivity, lesions, len(counted))

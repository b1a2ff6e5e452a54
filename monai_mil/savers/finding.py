"""Whether the class that a map is drawn of is called, and what scale its scores have: what a heatmap keeps of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from monai_mil.metrics import decisions
from monai_mil.savers.case import Case
from monai_mil.savers.prediction import fitting_points
from monai_mil.savers.scores import drawn_class


def is_called(case: Case, class_index: int | None, multi_label: bool, operating_points: Sequence[float] | None) -> bool:
    """Whether the class drawn is called: from its operating point on, without any the most probable one, or from 0.5.

    Raises:
        CohortError: there is no answer, it is no probability, or the operating points are of another network.
    """
    prob = case.probabilities(multi_label)
    points = fitting_points(case, operating_points or (0.5,) * len(prob), len(prob), multi_label)
    called = decisions(prob[None], points, exclusive=not multi_label)[0]
    return bool(called[_output(case, class_index, multi_label)])


def finding_attributes(
    case: Case,
    class_index: int | None,
    classes: Sequence[str] | None,
    multi_label: bool,
    operating_points: Sequence[float] | None,
) -> dict[str, Any]:
    """What a heatmap says of the class it is drawn of: ``called``, ``finding``, its probability and operating point.

    Empty where nothing is called: of a survival network, and where neither classes nor operating points are given.

    Raises:
        CohortError: as :func:`is_called`.
    """
    if case.risk is not None or (classes is None and operating_points is None):
        return {}
    drawn = _output(case, class_index, multi_label)
    prob = case.probabilities(multi_label)
    second = len(prob) == 1 and classes is not None and len(classes) == 2
    name = str(drawn) if classes is None else classes[1 if second else drawn]
    said = {
        "called": is_called(case, class_index, multi_label, operating_points),
        "finding": name,
        "finding_probability": round(float(prob[drawn]), 6),
    }
    if operating_points is None:
        return said
    return {**said, "operating_point": fitting_points(case, operating_points, len(prob), multi_label)[drawn]}


def scale_attributes(case: Case, key: str, scores: np.ndarray) -> dict[str, Any]:
    """What the colours of scores are measured against: of attention, ``uniform``, the even share of an instance.

    Args:
        case: the case.
        key: the tensor that is drawn.
        scores: those of the map, ``[n]`` or ``[n, h, w]``.
    """
    attention = case.values("attention")
    if scores.ndim != 1:
        return {}
    if "attention" in key or (attention is not None and _is_among(scores, np.atleast_2d(attention))):
        return {"uniform": 1 / case.bag_size}
    return {"limits": (0.0, 1.0)} if key == "instance_scores" and case.values("instance_logits") is not None else {}


def _output(case: Case, class_index: int | None, multi_label: bool) -> int:
    """Which of the network's outputs is that of the class drawn."""
    return 0 if case.output_count == 1 else drawn_class(case, class_index, multi_label)


def _is_among(scores: np.ndarray, rows: np.ndarray) -> bool:
    """Whether scores ``[n]`` are one of the rows ``[h, n]``, or their mean."""
    if rows.shape[1] != len(scores):
        return False
    return bool(np.isclose([*rows, rows.mean(axis=0)], scores, rtol=1e-4, atol=1e-9).all(axis=1).any())

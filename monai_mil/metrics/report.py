"""All metrics of a cohort with their intervals, as plain numbers."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from monai_mil.metrics.bootstrap import bootstrap_ci
from monai_mil.metrics.classification import accuracy, auprc, auroc, balanced_accuracy, macro_f1, missing_from_mean
from monai_mil.metrics.curves import calibration
from monai_mil.metrics.thresholds import decisions, rates_at

_METRICS = {
    "auroc": auroc,
    "auprc": auprc,
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
    "accuracy": accuracy,
}
_OF_DECISIONS = ("balanced_accuracy", "macro_f1", "accuracy")


def classification_report(
    prob: ArrayLike,
    label: ArrayLike,
    classes: Sequence[str],
    groups: Sequence[Hashable] | None = None,
    n: int = 1000,
    seed: int = 0,
    operating_points: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Metrics of all classes together and of each one against the rest.

    Args:
        prob: probabilities ``[cases, c]``.
        label: class indices ``[cases]``, or 0, 1 or NaN (unknown) ``[cases, c]`` for multi-label tasks.
        classes: their names, ``c`` of them.
        groups: patient of every case; resampling keeps a patient's cases together.
        n: bootstrap resamples.
        seed: of the resampling.
        operating_points: from which probability on each class is chosen; None takes the most probable class, and a
            label at 0.5.

    Returns:
        ``{"cases", "expected_calibration_error", <metric>: {"value", "low", "high"}, "classes": {<class>:
        {"cases", "auroc": {"value", "low", "high"}}}}`` with the metrics ``auroc``, ``auprc``, ``balanced_accuracy``,
        ``macro_f1`` and ``accuracy``; numbers are Python's, NaN where not defined. Beside a mean that is made without
        some classes or labels stands ``"missing": {<class>: "always 0", "always 1" or "unknown"}``. With operating
        points every class also has ``operating_point`` and, at it, ``sensitivity`` and ``specificity`` against the
        rest.

    Raises:
        ValueError: the number of names, or of operating points, and of columns differ.

    Examples:
        >>> from monai_mil.metrics import classification_report
        >>> prob = [[0.9, 0.1], [0.6, 0.4], [0.65, 0.35], [0.2, 0.8]]
        >>> report = classification_report(prob, [0, 0, 1, 1], ["normal", "tumor"], n=100)
        >>> report["cases"], report["auroc"]["value"], report["accuracy"]["value"]
        (4, 0.75, 0.75)
    """
    scores, truth = np.asarray(prob, dtype=float), np.asarray(label, dtype=float)
    if scores.ndim != 2 or scores.shape[1] != len(classes):
        raise ValueError(f"{len(classes)} class names for probabilities of shape {scores.shape}")
    decided = scores if operating_points is None else decisions(scores, operating_points, truth.ndim == 1)
    report: dict[str, Any] = {"cases": len(scores)}
    for name, metric in _METRICS.items():
        given = decided if name in _OF_DECISIONS else scores
        report[name] = asdict(bootstrap_ci(metric, given, truth, n, seed, groups))
        missing = missing_from_mean(metric, given, truth)
        if missing:
            report[name]["missing"] = {classes[index]: why for index, why in missing.items()}
    report["expected_calibration_error"] = calibration(scores, truth).expected_error
    report["classes"] = {}
    for index, name in enumerate(classes):
        column = (truth == index).astype(float) if truth.ndim == 1 else truth[:, index]
        interval = bootstrap_ci(auroc, scores[:, [index]], column[:, None], n, seed, groups)
        report["classes"][name] = {"cases": int((column == 1).sum()), "auroc": asdict(interval)}
        if operating_points is not None:
            point = float(operating_points[index])
            rates = rates_at(scores[:, [index]], column[:, None], point, groups, n, seed)
            named = zip(("sensitivity", "specificity"), map(asdict, rates), strict=True)
            report["classes"][name] |= {"operating_point": point, **dict(named)}
    return report

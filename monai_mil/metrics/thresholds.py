"""From which probability on a case counts as positive, chosen on validation data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike

from monai_mil.metrics.bootstrap import Interval, bootstrap_ci
from monai_mil.metrics.classification import Array, read_cases
from monai_mil.metrics.curves import roc_curve

Rule = Literal["youden"] | float


@dataclass(frozen=True)
class OperatingPoint:
    """A case is positive where its probability is at least ``threshold``; what that gives on the data it came from."""

    threshold: float
    sensitivity: float
    specificity: float


def operating_point(prob: ArrayLike, label: ArrayLike, rule: Rule = "youden") -> OperatingPoint:
    """Choose the operating point of one class.

    Args:
        prob: of the class, ``[n]``.
        label: 0 or 1, ``[n]``; NaN (unknown) is left out.
        rule: ``"youden"`` for the largest sensitivity + specificity - 1, or a number in (0, 1]: the highest threshold
            of at least this sensitivity. Of equally good points the most sensitive one is taken.

    Returns:
        The point, its threshold halfway between the lowest probability that counts and the next one below it.

    Raises:
        ValueError: there is no positive or no negative case, a probability is not a number, or the rule is none.

    Examples:
        >>> from monai_mil.metrics import operating_point
        >>> point = operating_point([0.1, 0.2, 0.3, 0.6], [0, 0, 1, 1])
        >>> point.threshold, point.sensitivity, point.specificity
        (0.25, 1.0, 1.0)
    """
    if rule != "youden" and not (isinstance(rule, int | float) and 0 < rule <= 1):
        raise ValueError(f"the rule of an operating point is 'youden' or a sensitivity in (0, 1], got {rule!r}")
    scores, truth = np.ravel(np.asarray(prob, dtype=float)), np.ravel(np.asarray(label, dtype=float))
    known = ~np.isnan(truth)
    read_cases(scores[known], truth[known])
    curve = roc_curve(scores[known], truth[known])
    if rule == "youden":
        gain = curve.true_positive_rate - curve.false_positive_rate
        # Equal sums of rates differ in their last digits.
        chosen = int(np.flatnonzero(gain >= gain.max() - 1e-12)[-1])
    else:
        chosen = int(np.argmax(curve.true_positive_rate >= float(rule) - 1e-12))
    threshold = curve.threshold[chosen : chosen + 2].mean()
    return OperatingPoint(
        float(threshold), float(curve.true_positive_rate[chosen]), float(1 - curve.false_positive_rate[chosen])
    )


def operating_points(prob: ArrayLike, label: ArrayLike, rule: Rule = "youden") -> list[OperatingPoint]:
    """One point for every column of probabilities ``[n, c]``.

    Args:
        prob: see above; of two classes that exclude each other the first's threshold is 1 minus the second's.
        label: class indices ``[n]``, or 0, 1 or NaN (unknown) ``[n, c]``.
        rule: see :func:`operating_point`.

    Raises:
        ValueError: see :func:`operating_point`.

    Examples:
        >>> from monai_mil.metrics import operating_points
        >>> points = operating_points([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6]], [0, 0, 1, 1])
        >>> [round(point.threshold, 4) for point in points]
        [0.75, 0.25]
    """
    scores, truth = read_cases(prob, label)
    if truth.ndim == 2:
        return [_of_column(scores, truth[:, index], index, rule) for index in range(scores.shape[1])]
    if scores.shape[1] > 2:
        return [_of_column(scores, truth == index, index, rule) for index in range(scores.shape[1])]
    second = operating_point(scores[:, -1], truth, rule)
    first = OperatingPoint(1 - second.threshold, second.specificity, second.sensitivity)
    return [first, second][-scores.shape[1] :]


def _of_column(scores: Array, truth: Array, index: int, rule: Rule) -> OperatingPoint:
    try:
        return operating_point(scores[:, index], truth, rule)
    except ValueError as error:
        raise ValueError(f"output {index + 1} of {scores.shape[1]}: {error}") from None


class Calibrated(Protocol):
    """What tells the operating points of a model, as ``model_card.ModelCard`` does."""

    @property
    def weights(self) -> str | None:
        """Digest of the model's weights."""
        ...

    @property
    def operating_points(self) -> Sequence[float] | None:
        """Those chosen for it."""
        ...


def read_operating_points(
    metadata: Mapping[str, Any], outputs: int, model: Calibrated | None = None
) -> list[float] | None:
    """The thresholds that ``savers.OperatingPointSaver`` wrote for a model, into its card or into a bundle's metadata.

    Args:
        metadata: the content of ``metadata.json``, in a config ``@_meta_``. Points that it says to be of other weights
            than the model's do not count.
        outputs: number of the network's outputs.
        model: the card of the weights.

    Returns:
        A threshold for every output; None where there are none, or those of a network with more or fewer outputs.

    Examples:
        >>> from monai_mil.metrics import read_operating_points
        >>> metadata = {"operating_points": [0.6, 0.4]}
        >>> read_operating_points(metadata, outputs=2), read_operating_points(metadata, outputs=3)
        ([0.6, 0.4], None)
    """
    points: Sequence[float] = metadata.get("operating_points", [])
    if model is not None and metadata.get("operating_points_model") != model.weights:
        points = model.operating_points or []
    return list(points) if len(points) == outputs else None


def decisions(prob: ArrayLike, points: Sequence[float], exclusive: bool) -> Array:
    """Probabilities as decisions: 1 where a class is chosen, else 0, ``[n, c]`` float64.

    Args:
        prob: ``[n, c]``.
        points: a threshold for every column.
        exclusive: the columns are classes that exclude each other. Of two the second is chosen where its probability is
            at least its threshold; of more the one whose probability is the largest multiple of its threshold.

    Raises:
        ValueError: the numbers of thresholds and columns differ.

    Examples:
        >>> from monai_mil.metrics import decisions
        >>> decisions([[0.7, 0.3], [0.4, 0.6]], points=[0.75, 0.25], exclusive=True)
        array([[0., 1.],
               [0., 1.]])
    """
    scores, limits = np.asarray(prob, dtype=float), np.asarray(points, dtype=float)
    if scores.ndim != 2 or limits.shape != scores.shape[1:]:
        raise ValueError(f"{limits.size} operating points for probabilities of shape {scores.shape}")
    if not exclusive or len(limits) == 1:
        return (scores >= limits).astype(float)
    if len(limits) == 2:
        chosen = (scores[:, 1] >= limits[1]).astype(int)
    else:
        chosen = (scores / np.maximum(limits, np.finfo(float).tiny)).argmax(axis=1)
    return np.eye(len(limits))[chosen]


def rates_at(
    prob: ArrayLike,
    label: ArrayLike,
    threshold: float,
    groups: Sequence[object] | None = None,
    n: int = 1000,
    seed: int = 0,
) -> tuple[Interval, Interval]:
    """Sensitivity and specificity of one class ``[n]`` at a threshold, with their intervals; see ``bootstrap_ci``."""
    sensitivity, specificity = (
        bootstrap_ci(partial(_rate, threshold=threshold, of=of), prob, label, n, seed, groups) for of in (1, 0)
    )
    return sensitivity, specificity


def _rate(prob: ArrayLike, label: ArrayLike, weight: Array | None = None, *, threshold: float, of: int) -> Array:
    """Share of the cases of label ``of`` that are decided rightly, for each weighting."""
    scores, truth = np.ravel(np.asarray(prob, dtype=float)), np.ravel(np.asarray(label, dtype=float))
    cases = truth == of
    weights = np.ones((1, len(truth))) if weight is None else np.atleast_2d(weight)
    total, right = weights @ cases, weights @ (cases & ((scores >= threshold) == of))
    rate = np.where(total > 0, right / np.where(total > 0, total, 1), np.nan)
    return rate if weight is not None else rate[0]

"""How well instance scores find the instances that matter."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike

from monai_mil.metrics.classification import auroc


def instance_auroc(scores: Iterable[ArrayLike], labels: Iterable[ArrayLike]) -> float:
    """AUROC of the instance scores of each bag, mean over the bags that hold positive and negative instances.

    Args:
        scores: of every bag, ``[n]``, such as its attention over tiles.
        labels: of the same bags, 0 or 1, ``[n]``.

    Returns:
        The mean, NaN if no bag holds both.

    Examples:
        >>> from monai_mil.metrics import instance_auroc
        >>> instance_auroc([[0.1, 0.9], [0.2, 0.4]], [[0, 1], [0, 0]])  # the second bag has no positive instance
        1.0
    """
    values = [auroc(score, label) for score, label in zip(scores, labels, strict=True)]
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")

"""How much a network's attention moves from epoch to epoch, and on how few tiles it lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from monai_mil.metrics.classification import Array


@dataclass(frozen=True)
class EpochStability:
    """Means over the cases of one epoch; NaN where there is nothing to compare with.

    Attributes:
        epoch: which.
        jsd: Jensen-Shannon divergence from the epoch evaluated before, in nats.
        effective_tiles: see :func:`effective_tiles`.
        effective_share: the same over the number of tiles.
        cases: how many there were.
    """

    epoch: int
    jsd: float
    effective_tiles: float
    effective_share: float
    cases: int


def jensen_shannon(before: ArrayLike, after: ArrayLike) -> float:
    """``KL(P | M) / 2 + KL(Q | M) / 2``, ``M = (P + Q) / 2``, in nats: 0 of equal distributions, at most ``log 2``.

    Args:
        before: weights ``[n]``, not negative; they are divided by their sum.
        after: the same.

    Raises:
        ValueError: the lengths differ, or the weights are no distribution.

    Examples:
        >>> from monai_mil.metrics import jensen_shannon
        >>> jensen_shannon([0.5, 0.5], [0.5, 0.5]), round(jensen_shannon([1, 0], [0, 1]), 4)
        (0.0, 0.6931)
    """
    first, second = _distribution(before), _distribution(after)
    if first.shape != second.shape:
        raise ValueError(f"distributions over {len(first)} and {len(second)} instances cannot be compared")
    middle = (first + second) / 2
    return max(0.0, float((_divergence(first, middle) + _divergence(second, middle)) / 2))


def effective_tiles(attention: ArrayLike) -> float:
    """On how many instances attention lies: ``exp`` of its entropy, from 1 (a single one) to ``n`` (uniform).

    Args:
        attention: weights ``[n]``, not negative; they are divided by their sum.

    Raises:
        ValueError: the weights are no distribution.

    Examples:
        >>> from monai_mil.metrics import effective_tiles
        >>> round(effective_tiles([0.25, 0.25, 0.25, 0.25]), 4), round(effective_tiles([1, 0, 0, 0]), 4)
        (4.0, 1.0)
    """
    share = _distribution(attention)
    used = share[share > 0]
    return float(np.exp(-(used * np.log(used)).sum()))


def pack_attention(attention: ArrayLike) -> Array:
    """A distribution as float16 ``[n]``, the roots of its weights over the largest: small weights stay exact to 0.1 %.

    As they are, the weights of a slide with 100,000 tiles would be below float16's normal numbers.

    Examples:
        >>> from monai_mil.metrics import pack_attention
        >>> pack_attention([0.64, 0.36])
        array([1.  , 0.75], dtype=float16)
    """
    share = _distribution(attention)
    return np.sqrt(share / share.max()).astype(np.float16)


def unpack_attention(stored: Any) -> Array:
    """The distribution :func:`pack_attention` was given, float64 ``[n]``.

    Examples:
        >>> from monai_mil.metrics import pack_attention, unpack_attention
        >>> unpack_attention(pack_attention([0.64, 0.36])).round(3)
        array([0.64, 0.36])
    """
    weights = np.square(np.asarray(stored, dtype=float))
    return weights / weights.sum()


def _distribution(weights: ArrayLike) -> Array:
    values = np.asarray(weights, dtype=float)
    if values.ndim != 1 or not (np.isfinite(values).all() and (values >= 0).all() and values.sum() > 0):
        raise ValueError("attention must be weights [n] that are finite, not negative and not all 0")
    return values / values.sum()


def _divergence(share: Array, middle: Array) -> float:
    used = share > 0
    return float((share[used] * np.log(share[used] / middle[used])).sum())

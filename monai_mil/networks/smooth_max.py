"""SmoothMax: the mean of a map, weighted by the exponential of itself."""

from __future__ import annotations

import torch
from torch import Tensor


def smooth_max(values: Tensor, alpha: float, counted: Tensor | None = None) -> Tensor:
    """INSIGHT Eq. 3: ``p = sum_i v_i exp(alpha v_i) / sum_i exp(alpha v_i)``.

    ``alpha`` 0 gives the mean, a large one the maximum. The largest value is subtracted before the exponential, so
    that any ``alpha`` is finite; sums are added up in float64, because a slide has millions of tokens.

    Args:
        values: rows ``[..., m]`` of finite values.
        alpha: sharpness.
        counted: True where a value takes part, broadcastable to ``values``, at least once a row; None if all do.

    Returns:
        ``[...]``, of the type of ``values``.
    """
    if counted is not None:
        values = values.masked_fill(~counted, 0.0)
    largest = values.detach().amax(dim=-1, keepdim=True)
    weights = torch.exp(alpha * (values - largest))
    if counted is not None:
        weights = weights.masked_fill(~counted, 0.0)
    total = weights.sum(dim=-1, dtype=torch.float64)
    return ((weights * values).sum(dim=-1, dtype=torch.float64) / total).to(values.dtype)

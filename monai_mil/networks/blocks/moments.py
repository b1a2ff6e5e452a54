"""Mean position of attention along a scan, and its standard deviation."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_mil.networks.contract import exact_dtype


def attention_moments(
    attention: Tensor, positions: Tensor | None = None, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``mean = sum_j a_j p_j / sum_j a_j`` and ``std = sqrt(sum_j a_j (p_j - mean)^2 / sum_j a_j)``.

    The variance is centred: the one-pass form loses a narrow peak far from the origin in float32. Positions are
    shifted to begin near 0 first, so that millimetres far from a scanner's origin cost no digits either.

    Args:
        attention: weights of any scale, not all 0, ``[b, h, n]``.
        positions: of the slices, ``[n]`` or ``[b, n]``, in any unit and order; None for 1 to ``n``.
        mask: True where a slice is real, ``[b, n]``; None if all are. What lies under False never matters.

    Returns:
        Mean and standard deviation, ``[b, h]`` each, in the positions' unit, float32 or better.
    """
    dtype = exact_dtype(attention.dtype)
    if positions is None:
        positions = torch.arange(1, attention.shape[2] + 1, device=attention.device)
    exact_positions = torch.promote_types(positions.dtype, dtype)
    place = positions.to(attention.device, exact_positions).expand(attention.shape[0], -1)[:, None]
    with torch.autocast(attention.device.type, enabled=False):
        weights = attention.to(dtype)
        if mask is not None:
            weights = weights.masked_fill(~mask[:, None], 0.0)
            place = place.masked_fill(~mask[:, None], 0.0)
        weights = weights / weights.sum(dim=2, keepdim=True)
        origin = place[:, :, :1]
        offset = (place - origin).to(dtype)
        if mask is not None:
            offset = offset.masked_fill(~mask[:, None], 0.0)
        mean = (weights * offset).sum(dim=2, keepdim=True)
        variance = (weights * (offset - mean).square()).sum(dim=2)
        return (mean + origin.to(dtype)).squeeze(2), variance.sqrt()

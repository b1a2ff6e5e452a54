"""Survival from the logits of any network: one logit a time bin, softmax of them is when the event happens."""

from __future__ import annotations

import torch
from torch import Tensor


def survival_curve(logits: Tensor) -> Tensor:
    """``S_k = sum_{j > k} p_j``, ``p = softmax(logits)``: probability that the event comes after bin ``k``.

    Args:
        logits: one for each of ``K`` time bins, ``[..., K]``.

    Returns:
        Of the same shape, falling from left to right; 0 behind the last bin.
    """
    incidence = torch.softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)
    # Summed from behind, so that small probabilities are not the difference of large ones.
    after = incidence.flip(-1).cumsum(-1).flip(-1)
    return torch.cat([after[..., 1:], torch.zeros_like(after[..., :1])], dim=-1)


def survival_risk(logits: Tensor) -> Tensor:
    """``R = -sum_k S_k``, minus the mean number of bins survived: higher is an earlier event, ``[...]``.

    Args:
        logits: one for each of ``K`` time bins, ``[..., K]``.
    """
    return -survival_curve(logits).sum(dim=-1)

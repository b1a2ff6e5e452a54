"""Otsu's threshold of a map, without waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_mil.networks.graph import is_recorded


def otsu_threshold(values: Tensor, real: Tensor | None = None, bins: int = 256) -> Tensor:
    """The value that splits a histogram of equal bins with the largest variance between both sides.

    The same as scikit-image's ``threshold_otsu``: bins between the smallest and the largest value; the centre ``k`` of
    the first maximum of ``w1 w2 (m1 - m2)^2``, where ``w`` and ``m`` are count and mean of the bins up to ``k`` and
    behind it. What is strictly greater is foreground. Where all values are equal the threshold is that value.

    Class means are taken over bin numbers, in whole numbers as far as possible: every split of an empty stretch is
    then exactly as good, on every device, and the first one wins. Of a float32 map that spans little of its size
    scikit-image's own rounding may choose another split.

    Args:
        values: any number of rows of finite values, ``[..., m]``.
        real: True where a value counts, broadcastable to ``values``; None if all do.
        bins: of the histogram.

    Returns:
        Thresholds ``[...]`` of the type of ``values``, without gradient.
    """
    values = values.detach()
    if real is None:
        low, high = values.amin(dim=-1, keepdim=True), values.amax(dim=-1, keepdim=True)
    else:
        low = values.masked_fill(~real, float("inf")).amin(dim=-1, keepdim=True)
        high = values.masked_fill(~real, -float("inf")).amax(dim=-1, keepdim=True)
    steps = torch.arange(bins, dtype=values.dtype, device=values.device)
    edges = torch.cat([steps * ((high - low) / bins) + low, high], dim=-1)
    split = _best_split(_histogram(values, real, edges))
    centre = (edges.gather(-1, split) + edges.gather(-1, split + 1)) / 2
    return torch.where(high > low, centre, low).squeeze(-1)


def _histogram(values: Tensor, real: Tensor | None, edges: Tensor) -> Tensor:
    """Counts ``[..., bins]``; block by block, because the bin numbers take more memory than the values."""
    counts = torch.zeros_like(edges[..., 1:], dtype=torch.int64)
    size = 65536
    # A comparison that always holds: ONNX freezes the shape of a tensor of ones.
    counted = values >= edges[..., :1] if real is None else real.expand_as(values)
    if is_recorded():
        return counts.scatter_add(-1, _bin(values, edges), counted.to(torch.int64))
    for start in range(0, values.shape[-1], size):
        block = values.narrow(-1, start, min(size, values.shape[-1] - start))
        ones = counted.narrow(-1, start, block.shape[-1]).to(torch.int64)
        counts.scatter_add_(-1, _bin(block, edges), ones)
    return counts


def _bin(values: Tensor, edges: Tensor) -> Tensor:
    """Number of the bin ``[edge, next edge)`` of every value, as NumPy decides it: by arithmetic, then by the edges."""
    bins = edges.shape[-1] - 1
    low, high = edges[..., :1], edges[..., -1:]
    width = torch.where(high > low, high - low, 1.0)
    index = ((values - low) / width * bins).to(torch.int64).clamp(0, bins - 1)
    index = (index - (values < edges.gather(-1, index)).to(torch.int64)).clamp(min=0)
    above = values >= edges.gather(-1, index + 1)
    return (index + above.to(torch.int64)).clamp(max=bins - 1)


def _best_split(counts: Tensor) -> Tensor:
    """Number ``[..., 1]`` of the last bin of the left side."""
    weighted = counts * torch.arange(counts.shape[-1], device=counts.device)
    left, left_sum = counts.cumsum(-1)[..., :-1], weighted.cumsum(-1)[..., :-1]
    right, right_sum = counts.sum(-1, keepdim=True) - left, weighted.sum(-1, keepdim=True) - left_sum
    distance = left_sum.double() / left - right_sum.double() / right
    return (left.double() * right * distance.square()).argmax(dim=-1, keepdim=True)

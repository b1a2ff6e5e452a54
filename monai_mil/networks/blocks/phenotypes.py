"""The instances of a bag in groups that look alike: k-means with nothing drawn at random."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_mil.networks.contract import exact_dtype, exact_matmul
from monai_mil.networks.graph import is_recorded

PART_ROWS = 4096
"""Rows of any floating type that are widened at once."""

WIDENED_ROWS = 50_000
"""Bags of more rows are never wide as a whole: each pass widens them anew, part by part."""


def phenotypes(rows: Tensor, mask: Tensor | None, count: int, iterations: int) -> Tensor:
    """Which group each instance is in.

    The first centre is the instance farthest from the mean of the bag, each next one that farthest from all centres so
    far; then the centres become the means of what is nearest to them, ``iterations`` times. So the groups do not
    depend on the order of the instances, but for exact ties. No gradient passes.

    Args:
        rows: features, ``[b, n, d]``.
        mask: True where an instance is real, ``[b, n]``, or None.
        count: ``k``.
        iterations: of Lloyd's algorithm.

    Returns:
        1 where an instance is in a group, else 0, ``[b, k, n]``, float32 or better. Groups may be empty; padding is in
        none.
    """
    rows, dtype = _widened(rows.detach()), exact_dtype(rows.dtype)
    real = torch.ones_like(rows[:, :, 0], dtype=dtype) if mask is None else mask.to(dtype)
    mean = _sums(real[:, None], rows) / real.sum(dim=1)[:, None, None]
    far = _away(rows, mean, real)
    centres = _farthest(rows, far)
    far = _away(rows, centres, real)
    for _ in range(count - 1):
        centre = _farthest(rows, far)
        centres = torch.cat([centres, centre], dim=1)
        far = torch.minimum(far, _away(rows, centre, real))
    members = _members(rows, centres, real)
    for _ in range(iterations):
        size = members.sum(dim=2, keepdim=True)
        centres = torch.where(size > 0, _sums(members, rows) / size.clamp(min=1), centres)
        members = _members(rows, centres, real)
    return members


def _widened(rows: Tensor) -> Tensor:
    """Rows of float32 or better, unless they are many."""
    if torch.jit.is_scripting() or is_recorded():
        return rows.to(exact_dtype(rows.dtype))
    return rows if rows.shape[1] > WIDENED_ROWS else rows.to(exact_dtype(rows.dtype))


def row_parts(rows: Tensor) -> list[Tensor]:
    """Rows ``[b, n, d]`` in parts ``[b, m, d]`` that are widened one at a time; all at once where a graph is made."""
    if torch.jit.is_scripting() or is_recorded():
        return [rows]
    return list(rows.split(PART_ROWS, dim=1))


def _sums(weights: Tensor, rows: Tensor) -> Tensor:
    """``weights @ rows``, ``[b, k, d]``."""
    total = torch.zeros_like(weights[:, :, :1])
    start = 0
    for part in row_parts(rows):
        total = total + exact_matmul(weights.narrow(2, start, part.shape[1]), part)
        start += part.shape[1]
    return total


def _away(rows: Tensor, centre: Tensor, real: Tensor) -> Tensor:
    """Squared distances to one centre ``[b, 1, d]``, ``[b, n]``; below all others on padding."""
    away = [(part.to(centre.dtype) - centre).square().sum(dim=2) for part in row_parts(rows)]
    return torch.cat(away, dim=1).masked_fill(real == 0, -1.0)


def _farthest(rows: Tensor, far: Tensor) -> Tensor:
    """The instance of the largest distance, ``[b, 1, d]``."""
    place = far.argmax(dim=1)[:, None, None]
    return rows.gather(1, place.expand(-1, -1, rows.shape[2])).to(far.dtype)


def _members(rows: Tensor, centres: Tensor, real: Tensor) -> Tensor:
    """1 for the instances nearest to each centre, ``[b, k, n]``."""
    length = centres.square().sum(dim=2)[:, :, None]
    nearest = [
        (length - 2 * exact_matmul(centres, part.transpose(1, 2))).argmin(dim=1, keepdim=True)
        for part in row_parts(rows)
    ]
    group = torch.arange(centres.shape[1], device=rows.device)[None, :, None]
    return (torch.cat(nearest, dim=2) == group).to(real.dtype) * real[:, None]

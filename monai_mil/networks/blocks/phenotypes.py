"""The instances of a bag in groups that look alike: k-means with nothing drawn at random."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_mil.networks.contract import exact_dtype, exact_matmul


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
    rows = rows.detach().to(exact_dtype(rows.dtype))
    real = torch.ones_like(rows[:, :, 0]) if mask is None else mask.to(rows.dtype)
    rows = rows * real[:, :, None]
    mean = rows.sum(dim=1, keepdim=True) / real.sum(dim=1)[:, None, None]
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
        means = exact_matmul(members, rows) / size.clamp(min=1)
        centres = torch.where(size > 0, means, centres)
        members = _members(rows, centres, real)
    return members


def _away(rows: Tensor, centre: Tensor, real: Tensor) -> Tensor:
    """Squared distances to one centre ``[b, 1, d]``, ``[b, n]``; below all others on padding."""
    return (rows - centre).square().sum(dim=2).masked_fill(real == 0, -1.0)


def _farthest(rows: Tensor, far: Tensor) -> Tensor:
    """The instance of the largest distance, ``[b, 1, d]``."""
    place = far.argmax(dim=1)[:, None, None]
    return rows.gather(1, place.expand(-1, -1, rows.shape[2]))


def _members(rows: Tensor, centres: Tensor, real: Tensor) -> Tensor:
    """1 for the instances nearest to each centre, ``[b, k, n]``."""
    away = centres.square().sum(dim=2)[:, :, None] - 2 * exact_matmul(centres, rows.transpose(1, 2))
    nearest = away.argmin(dim=1, keepdim=True)
    group = torch.arange(centres.shape[1], device=rows.device)[None, :, None]
    return (nearest == group).to(rows.dtype) * real[:, None]

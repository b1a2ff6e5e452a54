"""Small image filters the weightless encoders are made of, written for speed on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pool_cells(field: Tensor, grid: int) -> Tensor:
    """Mean over the cells of a ``grid`` x ``grid`` lattice; rows first, because they are contiguous."""
    b, c, h, w = field.shape
    rows = field.view(b, c, grid, h // grid, w).mean(3)
    return rows.view(b, c, grid, grid, w // grid).mean(4)


def smooth(field: Tensor) -> Tensor:
    """Binomial filter [1 2 1] / 4 along both axes, borders repeated."""
    padded = F.pad(field, (1, 1, 1, 1), mode="replicate")
    rows = torch.add(padded[:, :, :-2] + padded[:, :, 2:], padded[:, :, 1:-1], alpha=2)
    return torch.add(rows[..., :-2] + rows[..., 2:], rows[..., 1:-1], alpha=2).mul_(1 / 16)


def halve(field: Tensor) -> Tensor:
    """Mean of every block of 2 x 2."""
    rows = field[:, :, 0::2] + field[:, :, 1::2]
    return (rows[..., 0::2] + rows[..., 1::2]).mul_(0.25)

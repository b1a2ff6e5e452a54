"""The nearest instances of each instance, by where they lie."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_mil.networks.graph import is_recorded

_CANDIDATES = 17
"""How many more a tree is asked for than are wanted: on a grid at most eleven are as far as the last one."""

_PART = 32768
"""Instances that are looked up at once."""


def nearest_instances(positions: Tensor, mask: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
    """Which instances lie nearest to each, itself left out.

    Args:
        positions: columns and rows in the grid of tiles, ``[b, n, 2]``, float32 or better.
        mask: True where an instance is real, ``[b, n]``, or None.
        count: ``k``, how many.

    Returns:
        Their indices ``[b, n, k]``, nearest first, and True where there is one, likewise: a bag of ``m`` instances has
        ``m - 1`` at most. Padding has none.
    """
    if torch.jit.is_scripting() or is_recorded():
        return _of_all_pairs(positions, mask, count)
    return _by_tree(positions.detach(), mask, count)


def _of_all_pairs(positions: Tensor, mask: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
    """In plain operations; ``n^2`` distances at once."""
    far = _distances(positions[:, :, None], positions[:, None])
    own = torch.ones_like(positions[0, :, 0], dtype=torch.long).cumsum(0)
    unfit = (own[:, None] == own)[None]
    if mask is not None:
        unfit = unfit | ~mask[:, None] | ~mask[:, :, None]
    far = far.masked_fill(unfit, float("inf"))
    beyond = torch.full_like(far[:, :, :1], float("inf")).expand(-1, -1, count)
    found, index = torch.cat([far, beyond], dim=2).topk(count, dim=2, largest=False)
    there = torch.isfinite(found)
    return torch.where(there, index, 0), there


@torch.jit.unused
def _by_tree(positions: Tensor, mask: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
    """The same bag by bag, from a tree."""
    from scipy.spatial import KDTree

    shape = (*positions.shape[:2], count)
    index = torch.zeros(shape, dtype=torch.long, device=positions.device)
    there = torch.zeros(shape, dtype=torch.bool, device=positions.device)
    for bag, places in enumerate(positions):
        real = torch.arange(len(places), device=places.device) if mask is None else mask[bag].nonzero()[:, 0]
        near = places[real]
        asked = min(len(near), count + 1 + _CANDIDATES)
        points = near.double().cpu().numpy()
        tree = KDTree(points)
        for own in torch.arange(len(near), device=places.device).split(_PART):
            asking = points[int(own[0]) : int(own[-1]) + 1]
            found = torch.from_numpy(tree.query(asking, asked)[1].reshape(-1, asked)).to(places.device)
            far = _distances(near[own, None], near[found]).masked_fill(found == own[:, None], torch.inf)
            chosen = far.argsort(dim=1, stable=True)[:, : min(count, asked - 1)]
            index[bag, real[own], : chosen.shape[1]] = real[found.gather(1, chosen)]
            there[bag, real[own], : chosen.shape[1]] = True
    return index, there


def _distances(here: Tensor, there: Tensor) -> Tensor:
    """Squared distances; of the same ones on a grid those farther left, then up are a little less."""
    step = there - here
    return step.square().sum(dim=-1) + 1e-3 * step[..., 0] + 3.7e-4 * step[..., 1]


def touching_instances(places: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Which instances lie within one step of each in the grid, itself left out.

    They are looked up in the nine cells around, so that time is linear in them. Not for what is recorded.

    Args:
        places: whole columns and rows from -1e6 to 1e6, ``[n, 2]``.
        count: ``k``, the most to take, at most 8: those in the same cell first, earlier ones before later ones.

    Returns:
        Their indices ``[n, k]``, 0 where there is none, and True where there is one, likewise.
    """
    columns, rows = (places - places.amin(dim=0) + 1).long().unbind(dim=1)
    cell = columns * (1 << 22) + rows
    ordered, order = cell.sort(stable=True)
    parts = [_in_cells_around(part, ordered, order, start, count) for start, part in _with_starts(cell)]
    index, there = (torch.cat(each) for each in zip(*parts, strict=True))
    return index, there


def _with_starts(cell: Tensor) -> list[tuple[int, Tensor]]:
    return [(index * _PART, part) for index, part in enumerate(cell.split(_PART))]


def _in_cells_around(some: Tensor, ordered: Tensor, order: Tensor, start: int, count: int) -> tuple[Tensor, Tensor]:
    """:func:`touching_instances` of those of the cells ``some`` ``[m]``, the first of which is number ``start``."""
    steps = torch.tensor([-1, 0, 1], device=some.device)
    around = (steps[:, None] * (1 << 22) + steps).flatten()
    far = (steps[:, None].abs() + steps.abs()).clamp(max=1).flatten()
    wanted = some[:, None] + around
    first, last = torch.searchsorted(ordered, wanted), torch.searchsorted(ordered, wanted, right=True)
    turn = first[:, :, None] + torch.arange(count + 1, device=some.device)  # one of them may be itself
    found = order[turn.clamp(max=len(order) - 1)]
    own = torch.arange(start, start + len(some), device=some.device)[:, None, None]
    key = found + far[:, None] * len(order)
    key = key.masked_fill((turn >= last[:, :, None]) | (found == own), 2 * len(order)).flatten(1)
    best = key.topk(count, dim=1, largest=False).values
    there = best < 2 * len(order)
    return torch.where(there, best % len(order), 0), there

"""The nearest instances of each instance, by where they lie."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_mil.networks.graph import is_recorded

_CANDIDATES = 17
"""How many more a tree is asked for than are wanted: on a grid at most eleven are as far as the last one."""


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
        found = torch.from_numpy(KDTree(points).query(points, asked)[1].reshape(-1, asked)).to(places.device)
        far = _distances(near[:, None], near[found])
        far = far.masked_fill(found == torch.arange(len(near), device=places.device)[:, None], torch.inf)
        chosen = far.argsort(dim=1, stable=True)[:, : min(count, asked - 1)]
        index[bag, real, : chosen.shape[1]] = real[found.gather(1, chosen)]
        there[bag, real, : chosen.shape[1]] = True
    return index, there


def _distances(here: Tensor, there: Tensor) -> Tensor:
    """Squared distances; of the same ones on a grid those farther left, then up are a little less."""
    step = there - here
    return step.square().sum(dim=-1) + 1e-3 * step[..., 0] + 3.7e-4 * step[..., 1]

"""A bag of several magnifications: where its levels lie, whose children tiles are, what a search through them found.

A packed bag of ``L`` levels holds the ``n`` tiles of the coarsest level first, then their ``4 n`` children, then the
children's, down to the finest: ``N = n (4^L - 1) / 3`` instances. The children of tile ``i`` of a level are the tiles
``4 i .. 4 i + 3`` of the next finer one.
"""

from __future__ import annotations

import torch
from torch import Tensor


def tree_sizes(total: int, levels: int) -> list[int]:
    """Number of tiles of every level, coarsest first.

    Args:
        total: ``N``, instances of the packed bag.
        levels: ``L``.

    Raises:
        ValueError: no bag of so many levels has so many instances.
    """
    unit, share = 0, 1
    for _ in range(levels):
        unit += share
        share *= 4
    if total % unit != 0:
        raise ValueError(
            f"a bag of {levels} levels holds {unit} instances for every tile of the coarsest one (itself and all its "
            f"descendants, coarsest level first), and {total} are no multiple of that"
        )
    sizes = [total // unit]
    for _ in range(levels - 1):
        sizes.append(sizes[-1] * 4)  # a shift is nothing that ONNX knows of a size
    return sizes


def child_rows(rows: Tensor) -> Tensor:
    """The four children of every row ``[m]`` of a level, in the rows' order: int64 ``[4 m]`` of the next finer one."""
    return (rows[:, None] * 4 + torch.arange(4, device=rows.device)).flatten()


def nested_rank(scores: Tensor, levels: int) -> Tensor:
    """One value for every tile of every level, from where a search through the levels went and what it saw there.

    Scores of different levels come from different networks and cannot be compared, but the search itself orders
    the tissue: what the coarsest level left unopened lies below all that it opened, and so on to the finest level.
    Within what a level left unopened (or, at the finest, saw) tiles are ordered by their scores. The value is the share
    of the tissue's area that lies below, so that a tile at 0.9 is among the highest tenth.

    Args:
        scores: row ``i`` holds the scores that level ``i`` gave, coarsest first, ``-inf`` where it did not look;
            ``[L, N]`` of one packed bag. All tiles of the coarsest level have a score.
        levels: ``L``.

    Returns:
        float32 ``[N]`` between 0 and 1. A tile that was not looked at has the value of the ancestor that was left
        unopened, one that was opened the highest value among its children.
    """
    parts = [row.split(tree_sizes(scores.shape[1], levels))[level] for level, row in enumerate(scores.unbind(0))]
    seen = [torch.isfinite(part) for part in parts]
    values: list[Tensor] = []
    below = torch.zeros(1, device=scores.device)
    for level in range(levels):
        leaf = seen[level]
        if level + 1 < levels:
            leaf = leaf & ~seen[level + 1].unflatten(0, [-1, 4]).any(dim=1)
        count = leaf.sum()
        order = torch.sort(parts[level].masked_fill(~leaf, -float("inf")), stable=True)[1]
        place = torch.empty_like(order).scatter_(0, order, torch.arange(order.shape[0], device=scores.device))
        share = count.float() / leaf.shape[0]
        own = below + share * (place - (leaf.shape[0] - count) + 0.5) / count.clamp(min=1)
        inherited = values[level - 1].repeat_interleave(4) if level else torch.zeros_like(own)
        values.append(torch.where(leaf, own, inherited))
        below = below + share
    for level in range(levels - 2, -1, -1):
        opened = seen[level + 1].unflatten(0, [-1, 4]).any(dim=1)
        highest = values[level + 1].unflatten(0, [-1, 4]).amax(dim=1)
        values[level] = torch.where(opened, highest, values[level])
    return torch.cat(values)

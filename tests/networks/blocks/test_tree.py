"""Packed bags of several levels: sizes, children, and the order a search through them gives to the tissue."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from monai_mil.networks.blocks.tree import child_rows, nested_rank, tree_sizes

NOTHING = -float("inf")


def search(n: int, opened: list[int], levels: int, seed: int = 0) -> Tensor:
    """Random scores of a search that opens so many tiles of every level, ``[L, N]``."""
    generator = torch.Generator().manual_seed(seed)
    sizes = tree_sizes(n * sum(4**level for level in range(levels)), levels)
    scores = torch.full((levels, sum(sizes)), NOTHING)
    rows, start = torch.arange(n), 0
    for level, size in enumerate(sizes):
        own = torch.randn(len(rows), generator=generator)
        scores[level, start + rows] = own
        start += size
        if level + 1 < levels:
            rows = child_rows(rows[own.argsort(descending=True)[: opened[level]]])
    return scores


def by_hand(scores: Tensor, levels: int) -> Tensor:
    """Every finest tile's value, one after the other: the area of all leaves of the search that lie below its own."""
    sizes = tree_sizes(scores.shape[1], levels)
    parts = [row.split(sizes)[level] for level, row in enumerate(scores)]
    leaves = []
    for level in range(levels):
        for row in range(sizes[level]):
            looked_at = parts[level][row] > NOTHING
            opened = level + 1 < levels and bool((parts[level + 1][4 * row : 4 * row + 4] > NOTHING).any())
            if looked_at and not opened:
                leaves.append((level, float(parts[level][row]), row))
    values = torch.full((sizes[-1],), torch.nan)
    below = 0.0
    for level, _, row in sorted(leaves):
        descendants = 4 ** (levels - 1 - level)
        area = descendants / sizes[-1]
        values[row * descendants : (row + 1) * descendants] = below + area / 2
        below += area
    assert below == pytest.approx(1)
    return values


@pytest.mark.parametrize(("levels", "total", "expected"), [(1, 5, [5]), (2, 15, [3, 12]), (3, 42, [2, 8, 32])])
def test_sizes_of_the_levels(levels: int, total: int, expected: list[int]) -> None:
    assert tree_sizes(total, levels) == expected


@pytest.mark.parametrize(("levels", "total"), [(2, 14), (3, 20), (3, 22), (4, 21)])
def test_a_bag_that_cannot_be_packed_is_refused(levels: int, total: int) -> None:
    with pytest.raises(ValueError, match=f"{total} are no multiple"):
        tree_sizes(total, levels)


def test_children_follow_the_order_of_their_parents() -> None:
    assert child_rows(torch.tensor([5, 0])).tolist() == [20, 21, 22, 23, 0, 1, 2, 3]
    rows = torch.randperm(50)
    expected = [4 * row + child for row in rows.tolist() for child in range(4)]
    assert child_rows(rows).tolist() == expected


@pytest.mark.parametrize(
    ("n", "opened", "levels"), [(1, [], 1), (7, [], 1), (6, [2], 2), (9, [3, 5], 3), (4, [4, 16], 3), (1, [1, 1, 1], 4)]
)
def test_the_rank_of_the_finest_tiles_is_the_area_below(n: int, opened: list[int], levels: int) -> None:
    scores = search(n, opened, levels)
    ranks = nested_rank(scores, levels)
    torch.testing.assert_close(ranks[-n * 4 ** (levels - 1) :], by_hand(scores, levels))
    assert ((ranks > 0) & (ranks < 1)).all()


def test_a_tile_that_was_opened_is_as_high_as_its_highest_child() -> None:
    scores = search(9, [3, 5], 3)
    first, second, third = nested_rank(scores, 3).split([9, 36, 144])
    for fine, coarse, seen in ((second, first, scores[1, 9:45]), (third, second, scores[2, 45:])):
        opened = (seen.view(-1, 4) > NOTHING).any(dim=1)
        torch.testing.assert_close(coarse[opened], fine.view(-1, 4)[opened].amax(dim=1))
        torch.testing.assert_close(coarse[~opened], fine.view(-1, 4)[~opened][:, 0])


def test_ranks_know_nothing_but_the_order_within_a_level() -> None:
    scores = search(9, [3, 5], 3)
    other = torch.stack(
        [row * scale + shift for row, scale, shift in zip(scores, (9, 0.1, 3), (0, 50, -7), strict=True)]
    )
    torch.testing.assert_close(nested_rank(other, 3), nested_rank(scores, 3), rtol=0, atol=0)


def test_equal_scores_have_an_order_that_does_not_change() -> None:
    scores = search(9, [3, 5], 3)
    level = torch.where(scores.isfinite(), 0.0, scores)
    ranks = nested_rank(level, 3)
    torch.testing.assert_close(ranks, nested_rank(level.clone(), 3), rtol=0, atol=0)
    assert ranks.isfinite().all()

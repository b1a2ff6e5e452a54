"""The nearest instances: the same from a tree and from all pairs, and of a grid those around."""

from __future__ import annotations

import torch

from monai_mil.networks.blocks.neighbours import _by_tree, _of_all_pairs, nearest_instances


def grid(rows: int, columns: int) -> torch.Tensor:
    """``[1, n, 2]``, row by row."""
    return torch.cartesian_prod(torch.arange(float(rows)), torch.arange(float(columns))).flip(1)[None]


def test_within_a_grid_they_are_the_eight_around() -> None:
    index, there = nearest_instances(grid(5, 7), None, 8)
    assert sorted(index[0, 2 * 7 + 3].tolist()) == [9, 10, 11, 16, 18, 23, 24, 25]
    assert there.all()
    assert set(index[0, 0, :3].tolist()) == {1, 7, 8}


def test_a_tree_finds_what_all_pairs_find() -> None:
    torch.manual_seed(0)
    for places in (grid(9, 11)[:, torch.rand(99) < 0.6], torch.randn(2, 40, 2)):
        mask = torch.rand(places.shape[:2]) < 0.7
        for given in (None, mask):
            for one, other in zip(_by_tree(places, given, 8), _of_all_pairs(places, given, 8), strict=True):
                assert torch.equal(one, other)


def test_small_bags_have_the_neighbours_there_are() -> None:
    for count, expected in ((1, [0]), (2, [1, 1]), (4, [3] * 4)):
        for find in (_by_tree, _of_all_pairs):
            index, there = find(grid(1, count), None, 3)
            assert there.sum(dim=2).tolist() == [expected]
            assert not index[~there].any()
    index, there = nearest_instances(grid(1, 5), torch.tensor([[True, False, True, False, True]]), 3)
    assert index[0, 2].tolist() == [0, 4, 0]
    assert there[0].sum(dim=1).tolist() == [2, 0, 2, 0, 2]

"""Several networks that answer as one, a bag at a time or chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from monai_mil.networks import INSIGHT, TransMIL
from monai_mil.training import Ensemble


@pytest.fixture
def ensemble() -> Ensemble:
    torch.manual_seed(0)
    member = INSIGHT(in_channels=6, num_classes=2, grid=(4, 4), reduced=8, widths=(8, 4))
    network = Ensemble(member, count=3, exclusive=True).eval()
    for number, member in enumerate(network.members):
        for parameter in member.parameters():
            torch.nn.init.normal_(parameter, std=0.2 + 0.1 * number)
    return network


def test_chunks_that_come_once_reach_every_member(ensemble: Ensemble) -> None:
    tiles = torch.randn(7, 6, 4, 4)
    with torch.no_grad():
        whole = ensemble(tiles.transpose(0, 1)[None], return_dict=True)
        streamed = ensemble.pool_chunks(iter(tiles.split(3)))
        single = ensemble.members[0].pool_chunks(iter(tiles.split(3)))
    assert set(streamed) == set(whole)
    for key, value in streamed.items():
        torch.testing.assert_close(value, whole[key])
        assert not value.requires_grad
    assert not torch.allclose(streamed["heatmap"], single["heatmap"])


def test_errors_of_a_chunk_or_of_a_member_end_it(ensemble: Ensemble) -> None:
    def breaks() -> Iterator[torch.Tensor]:
        yield torch.randn(2, 6, 4, 4)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        ensemble.pool_chunks(breaks())
    with pytest.raises(ValueError, match=r"takes bags \[b, 6, n, h, w\]"):
        ensemble.pool_chunks(torch.randn(2, 5, 4, 4) for _ in range(9))  # more than any queue holds


def test_members_that_need_the_whole_bag_take_no_chunks() -> None:
    assert not hasattr(Ensemble(TransMIL(in_channels=4, num_classes=2), count=2, exclusive=True), "pool_chunks")

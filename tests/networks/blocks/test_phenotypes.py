"""Groups of instances: those of k-means, whatever the order and the padding."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_mil.networks.blocks import phenotypes


def reference(rows: Tensor, count: int, iterations: int) -> list[int]:
    """Of one bag ``[n, d]``, instance by instance."""
    far = [(row - rows.mean(dim=0)).norm().item() for row in rows]
    centres = [rows[far.index(max(far))]]
    for _ in range(count - 1):
        far = [min((row - centre).norm().item() for centre in centres) for row in rows]
        centres.append(rows[far.index(max(far))])
    for step in range(iterations + 1):
        away = [[(row - centre).norm().item() for centre in centres] for row in rows]
        group = [each.index(min(each)) for each in away]
        if step < iterations:
            own = [[row for row, place in zip(rows, group, strict=True) if place == k] for k in range(count)]
            centres = [torch.stack(each).mean(dim=0) if each else centres[k] for k, each in enumerate(own)]
    return group


def test_groups_are_those_of_k_means() -> None:
    torch.manual_seed(0)
    for n, count in ((30, 4), (5, 5), (3, 5), (1, 2)):
        rows = torch.randn(n, 3, dtype=torch.float64)
        members = phenotypes(rows[None], None, count, 3)[0]
        assert members.argmax(dim=0).tolist() == reference(rows, count, 3)
        assert (members.sum(dim=0) == 1).all()


def test_order_and_padding_change_no_group() -> None:
    torch.manual_seed(0)
    rows, order = torch.randn(2, 40, 3), torch.randperm(40)
    members = phenotypes(rows, None, 5, 10)
    assert torch.equal(phenotypes(rows[:, order], None, 5, 10), members[:, :, order])
    mask = torch.arange(60) < 40
    padded = torch.cat([rows, 50 * torch.randn(2, 20, 3)], dim=1)
    found = phenotypes(padded, mask.expand(2, -1), 5, 10)
    assert torch.equal(found[:, :, :40], members)
    assert not found[:, :, 40:].any()

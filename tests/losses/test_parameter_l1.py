"""The L1 term of the CT protocol."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from monai_mil.losses import MILLoss, ParameterL1


def test_half_the_sum_of_all_trainable_parameters_magnitudes() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    network[2].bias.requires_grad_(False)
    with torch.no_grad():
        network[0].weight.copy_(torch.arange(-3.0, 3).reshape(3, 2))
    loss = MILLoss({"l1": ParameterL1(network)}, {"l1": 0.1})
    value = loss({}, torch.zeros(1))
    trained = [p for p in network.parameters() if p.requires_grad]
    assert value.item() == pytest.approx(0.05 * sum(p.abs().sum().item() for p in trained))
    value.backward()
    torch.testing.assert_close(network[0].weight.grad, 0.05 * network[0].weight.detach().sign())
    assert network[2].bias.grad is None


def test_the_network_does_not_become_a_part_of_the_loss() -> None:
    loss = MILLoss({"l1": ParameterL1(nn.Linear(2, 3))})
    assert not list(loss.parameters())
    assert not loss.state_dict()


def test_a_frozen_network_is_refused() -> None:
    with pytest.raises(ValueError, match="no trainable parameter"):
        ParameterL1(nn.Linear(2, 3).requires_grad_(False))({}, torch.zeros(1))

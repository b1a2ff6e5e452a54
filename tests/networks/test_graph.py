"""A bag from disk is evaluated without a trace on the network."""

from __future__ import annotations

import pytest
import torch

from monai_mil.networks import ABMIL
from monai_mil.networks.graph import evaluating


def modes(network: torch.nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in network.named_modules()}


def test_every_module_is_in_the_mode_it_was_in_before() -> None:
    network = ABMIL(4, 2, dropout=0.5).train()
    network.hidden.eval()  # a part that is frozen
    before = modes(network)
    with evaluating(network):
        assert not any(modes(network).values())
        assert not network(torch.ones(1, 4, 3)).requires_grad
    assert modes(network) == before
    with pytest.raises(RuntimeError, match="stopped"), evaluating(network):
        raise RuntimeError("stopped")
    assert modes(network) == before

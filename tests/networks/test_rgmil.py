"""RGMIL against its equations, regressor by regressor."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from monai_mil.networks import RGMIL


def hidden(network: RGMIL, rows: torch.Tensor) -> torch.Tensor:
    return torch.relu(network.second(torch.relu(network.first(rows))))


@pytest.mark.parametrize("n", [1, 2, 15])
def test_of_two_classes_it_is_what_the_equations_say(n: int) -> None:
    torch.manual_seed(0)
    network = RGMIL(6, 2, hidden_dim=8).double()
    rows = torch.randn(n, 6, dtype=torch.float64)
    evidence = hidden(network, rows) @ network.regressor
    standardised = nn.LayerNorm(n, elementwise_affine=False)(evidence[:, 1] - evidence[:, 0])
    attention = torch.softmax(standardised, dim=0)
    bag = attention @ hidden(network, rows)
    output = network(rows.T[None], return_dict=True)
    torch.testing.assert_close(output["attention"][0, 0], attention)
    torch.testing.assert_close(output["bag"][0], bag)
    torch.testing.assert_close(output["logits"][0], bag @ network.regressor)
    torch.testing.assert_close(output["instance_scores"][0], attention.expand(2, -1))


@pytest.mark.parametrize("classes", [1, 4])
def test_every_class_of_others_has_its_own_regressor_and_attention(classes: int) -> None:
    torch.manual_seed(0)
    network = RGMIL(6, classes, hidden_dim=8).double()
    rows = torch.randn(15, 6, dtype=torch.float64)
    output = network(rows.T[None], return_dict=True)
    for c in range(classes):
        vector = network.regressor[:, c]
        evidence = hidden(network, rows) @ vector
        attention = torch.softmax((evidence - evidence.mean()) / (evidence.var(correction=0) + 1e-5).sqrt(), dim=0)
        torch.testing.assert_close(output["instance_scores"][0, c], attention)
        torch.testing.assert_close(output["logits"][0, c], attention @ hidden(network, rows) @ vector)


def test_an_anchor_s_copy_makes_the_same_scores() -> None:
    network = RGMIL(6, 3, hidden_dim=8)
    image, mask = torch.randn(2, 6, 9), torch.arange(9) < torch.tensor([[9], [4]])
    output = network(image, mask, return_dict=True)
    torch.testing.assert_close(network.anchor_copy().attention_scores(image, mask, output), output["attention_logits"])

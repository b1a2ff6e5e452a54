"""DEMIL against its equations."""

from __future__ import annotations

import pytest
import torch

from monai_mil.losses import SigmoidEntropy
from monai_mil.networks import DEMIL


@pytest.mark.parametrize("n", [1, 2, 12])
def test_instances_are_judged_by_themselves_and_averaged(n: int) -> None:
    torch.manual_seed(0)
    network = DEMIL(6, 3, hidden_dim=8, attention_dim=4).double().eval()
    image = torch.randn(1, 6, n, dtype=torch.float64)
    output = network(image, return_dict=True)
    total, weight = torch.zeros(8, dtype=torch.float64), 0.0
    for instance in image[0].T:
        row = torch.relu(network.hidden(instance))
        tanh, sigmoid = network.attention.gates(row).chunk(2)
        judged = torch.sigmoid(network.attention.score(tanh.tanh() * sigmoid.sigmoid()))
        total, weight = total + judged * row, weight + judged
    torch.testing.assert_close(output["bag"][0], total / weight)
    torch.testing.assert_close(output["logits"][0], network.classifier(total / weight))


def test_attention_is_shared_where_a_softmax_would_choose() -> None:
    network = DEMIL(6, 2, hidden_dim=8, attention_dim=4).eval()
    network.attention.forward = lambda rows, mask: torch.tensor([[[30.0, 20.0, -30.0]]])
    attention = network(torch.randn(1, 6, 3), return_dict=True)["attention"]
    torch.testing.assert_close(attention, torch.tensor([[[0.5, 0.5, 0.0]]]))


def test_entropy_is_that_of_every_instance_and_has_a_gradient_beside_padding() -> None:
    scores = torch.tensor([[[0.3, -2.0, -torch.inf]], [[0.0, 1.0, 40.0]]], requires_grad=True)
    judged = [torch.tensor([0.3, -2.0]).sigmoid(), torch.tensor([0.0, 1.0, 40.0]).sigmoid()]
    expected = torch.stack([-(each * each.log()).sum() for each in judged]).mean()
    loss = SigmoidEntropy()({"attention_logits": scores}, torch.zeros(2))
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert scores.grad[0, 0, 2] == 0


def test_a_network_without_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="no attention_logits"):
        SigmoidEntropy()({"logits": torch.zeros(1, 2)}, torch.zeros(1))

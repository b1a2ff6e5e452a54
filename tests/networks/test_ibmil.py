"""IBMIL against its equations, before and behind its first stage."""

from __future__ import annotations

import pytest
import torch

from monai_mil.networks import IBMIL


def network_of() -> IBMIL:
    torch.manual_seed(0)
    return IBMIL(6, 3, attention_dim=4, confounders=5, joint_dim=4).eval()


@pytest.mark.parametrize("n", [1, 2, 9])
def test_the_bag_is_adjusted_by_the_confounders_it_is_like(n: int) -> None:
    network = network_of()
    network.confounders.normal_()
    image = torch.randn(1, 6, n)
    output = network(image, return_dict=True)
    rows = image[0].T
    scores = network.score(torch.tanh(network.query(rows)))[:, 0]
    bag = scores.softmax(dim=0) @ rows
    share = torch.stack([network.bag_query(bag) @ network.confounder_key(each) / 2 for each in network.confounders])
    adjustment = share.softmax(dim=0) @ network.confounders
    torch.testing.assert_close(output["bag"][0], bag)
    torch.testing.assert_close(output["attention_logits"][0, 0], scores)
    torch.testing.assert_close(output["logits"][0], network.classifier(torch.cat([bag, adjustment])))


def test_before_the_confounders_are_known_it_is_plain_attention() -> None:
    network = network_of()
    output = network(torch.randn(1, 6, 9), return_dict=True)
    expected = output["bag"] @ network.classifier.weight[:, :6].T + network.classifier.bias
    torch.testing.assert_close(output["logits"], expected)
    with pytest.raises(ValueError, match="at least one confounder"):
        IBMIL(6, 2, confounders=0)

"""DeepAttnMISL against its equations, phenotype by phenotype."""

from __future__ import annotations

import torch

from monai_mil.networks import DeepAttnMISL
from monai_mil.networks.blocks import phenotypes


def test_it_is_what_the_equations_say() -> None:
    torch.manual_seed(0)
    network = DeepAttnMISL(6, 3, hidden_dim=8, attention_dim=4, clusters=5).double().eval()
    for n in (1, 3, 30):
        rows = torch.randn(n, 6, dtype=torch.float64)
        group = phenotypes(rows[None], None, 5, 10)[0].argmax(dim=0)
        kinds = group.unique()
        means = torch.stack([torch.relu(network.hidden(rows[group == kind])).mean(dim=0) for kind in kinds])
        weights = torch.softmax(network.score(torch.tanh(network.gates(means)))[:, 0], dim=0)
        bag = weights @ means
        output = network(rows.T[None], return_dict=True)
        torch.testing.assert_close(output["bag"][0], bag)
        torch.testing.assert_close(output["logits"][0], network.classifier(torch.relu(network.merge(bag))))
        for kind, weight in zip(kinds, weights, strict=True):
            own = output["attention"][0, 0, group == kind]
            torch.testing.assert_close(own, (weight / len(own)).expand(len(own)))


def test_the_order_of_the_tiles_does_not_matter() -> None:
    network = DeepAttnMISL(6, 2, clusters=4).eval()
    image, order = torch.randn(1, 6, 40), torch.randperm(40)
    output, moved = (network(each, return_dict=True) for each in (image, image[:, :, order]))
    torch.testing.assert_close(moved["logits"], output["logits"])
    torch.testing.assert_close(moved["attention"], output["attention"][:, :, order])


def test_an_anchor_s_copy_makes_the_same_scores() -> None:
    network = DeepAttnMISL(6, 2, clusters=4).eval()
    image, mask = torch.randn(2, 6, 9), torch.arange(9) < torch.tensor([[9], [4]])
    output = network(image, mask, return_dict=True)
    torch.testing.assert_close(network.anchor_copy().attention_scores(image, mask, output), output["attention_logits"])

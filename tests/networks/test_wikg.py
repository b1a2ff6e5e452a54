"""WiKG against its equations, instance by instance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from monai_mil.networks import WiKG


def network_of(neighbours: int = 4) -> WiKG:
    torch.manual_seed(0)
    return WiKG(6, 3, hidden_dim=8, neighbours=neighbours).eval()


def naive(network: WiKG, features: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and readout scores of one bag ``[n, d]``, as the equations stand."""
    rows = F.leaky_relu(network.hidden(features))
    rows = (rows + rows.mean(dim=0)) / 2
    heads, tails = network.head(rows), network.tail(rows)
    nodes = []
    for head in heads:
        suits = tails @ head * 8**-0.5
        near = suits.topk(min(network.neighbours, len(rows))).indices
        share = suits[near].softmax(dim=0)
        edges = [p * tails[j] + (1 - p) * head for p, j in zip(share, near, strict=True)]
        weight = torch.stack([tails[j] @ torch.tanh(head + r) for r, j in zip(edges, near, strict=True)]).softmax(dim=0)
        heard = weight @ tails[near]
        nodes.append(F.leaky_relu(network.sum(head + heard)) + F.leaky_relu(network.product(head * heard)))
    nodes = torch.stack(nodes)
    scores = network.score(F.leaky_relu(network.read(nodes)))[:, 0]
    return network.classifier(network.norm(scores.softmax(dim=0) @ nodes)), scores


@pytest.mark.parametrize("n", [1, 2, 4, 13])
def test_heads_hear_their_neighbours_as_the_paper_says(n: int) -> None:
    network = network_of()
    image = torch.randn(2, 6, n)
    output = network(image, return_dict=True)
    for bag in range(2):
        logits, scores = naive(network, image[bag].T)
        torch.testing.assert_close(output["logits"][bag], logits, rtol=0, atol=1e-5)
        torch.testing.assert_close(output["attention_logits"][bag, 0], scores, rtol=0, atol=1e-5)


def test_neighbours_are_the_same_whatever_the_chunks() -> None:
    network = network_of()
    image = torch.randn(1, 6, 50)
    whole = network(image)
    network.chunk_rows = 7
    torch.testing.assert_close(network(image), whole, rtol=0, atol=1e-6)


def test_the_order_of_the_instances_does_not_matter() -> None:
    network = network_of()
    image, order = torch.randn(1, 6, 40), torch.randperm(40)
    output, other = (network(each, return_dict=True) for each in (image, image[:, :, order]))
    torch.testing.assert_close(other["logits"], output["logits"], rtol=0, atol=1e-5)
    torch.testing.assert_close(other["attention"], output["attention"][:, :, order], rtol=0, atol=1e-5)


def test_a_long_bag_keeps_no_matrix_of_its_instances_by_themselves() -> None:
    network, sizes = network_of(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        network(torch.randn(1, 6, 3000)).sum().backward()
    assert max(sizes) <= 3000 * 4 * 8


def test_a_head_without_neighbours_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one neighbour, got 0"):
        WiKG(6, 2, neighbours=0)

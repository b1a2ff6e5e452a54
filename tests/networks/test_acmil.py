"""ACMIL against its equations, and which instances a training step hides."""

from __future__ import annotations

import pytest
import torch

from monai_mil.losses import AttentionSimilarity
from monai_mil.networks import ACMIL, instance_scores


def network_of(**options: float) -> ACMIL:
    torch.manual_seed(0)
    return ACMIL(6, 3, hidden_dim=8, attention_dim=4, branches=3, **options)


@pytest.mark.parametrize("n", [1, 2, 12])
def test_branches_and_bag_are_those_of_the_paper(n: int) -> None:
    network = network_of().eval()
    image = torch.randn(1, 6, n)
    output = network(image, return_dict=True)
    rows = torch.relu(network.hidden(image[0].T))
    tanh, sigmoid = network.attention.gates(rows).chunk(2, dim=1)
    attention = network.attention.score(tanh.tanh() * sigmoid.sigmoid()).softmax(dim=0)
    for branch in range(3):
        weight, bias = network.branch_classifier.weight[branch], network.branch_classifier.bias[branch]
        expected = weight @ (attention[:, branch] @ rows) + bias
        torch.testing.assert_close(output["branch_logits"][0, branch], expected)
    bag = attention.mean(dim=1) @ rows
    torch.testing.assert_close(output["logits"][0], network.classifier(bag))
    torch.testing.assert_close(instance_scores(output)[0, 0], attention.mean(dim=1))


@pytest.mark.parametrize(("n", "hidden"), [(1, 0), (2, 1), (7, 4), (30, 6)])
def test_training_hides_a_share_of_every_branch_s_favourites(n: int, hidden: int) -> None:
    network = network_of(masked=10, mask_drop=0.6)
    mask = torch.arange(n + 3)[None] < n
    output = network(torch.randn(1, 6, n + 3), mask, return_dict=True)
    gone = (output["attention"][0] == 0) & mask
    assert gone.sum(dim=1).tolist() == [hidden] * 3
    favourites = output["attention_logits"][0].topk(min(10, n), dim=1).indices
    assert all(
        set(row.nonzero().flatten().tolist()) <= set(top.tolist()) for row, top in zip(gone, favourites, strict=True)
    )
    again = network(torch.randn(1, 6, 40), return_dict=True)["attention"][0] == 0
    assert not torch.equal(again[0], again[1]), "each branch draws for itself"


def test_without_masking_training_sees_all() -> None:
    assert (network_of(masked=0)(torch.randn(1, 6, 30), return_dict=True)["attention"] > 0).all()


def test_similarity_is_the_mean_cosine_of_every_pair_of_branches() -> None:
    attention = torch.rand(2, 3, 9).softmax(dim=2)
    cosine = torch.nn.functional.cosine_similarity
    pairs = [cosine(attention[:, i], attention[:, j], dim=1) for i, j in ((0, 1), (0, 2), (1, 2))]
    torch.testing.assert_close(
        AttentionSimilarity()({"attention": attention}, torch.zeros(2)), torch.stack(pairs).mean()
    )
    assert AttentionSimilarity()({"attention": attention[:, :1]}, torch.zeros(2)) == 0


@pytest.mark.parametrize("wrong", [{"branches": 0}, {"masked": -1}, {"mask_drop": 1.0}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be at least"):
        ACMIL(6, 2, **wrong)

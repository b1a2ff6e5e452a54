"""DTFD-MIL against its equations, pseudo-bag by pseudo-bag, and how a bag is parted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from monai_mil.losses import BagCrossEntropy, BranchLoss
from monai_mil.networks import DTFDMIL

KINDS = ["AFS", "MaxS", "MaxMinS"]


def network_of(distillation: str = "AFS", pseudo_bags: int = 3) -> DTFDMIL:
    torch.manual_seed(0)
    return DTFDMIL(6, 3, hidden_dim=8, attention_dim=4, pseudo_bags=pseudo_bags, distillation=distillation).eval()


def scores(attention: torch.nn.Module, rows: Tensor) -> Tensor:
    """Gated attention before softmax of rows ``[n, i]``."""
    tanh, sigmoid = attention.gates(rows).chunk(2, dim=1)
    return attention.score(tanh.tanh() * sigmoid.sigmoid())[:, 0]


@pytest.mark.parametrize("distillation", KINDS)
@pytest.mark.parametrize("n", [1, 2, 3, 7, 20])
def test_every_tier_is_that_of_the_paper(distillation: str, n: int) -> None:
    network = network_of(distillation)
    image = torch.randn(1, 6, n)
    output = network(image, return_dict=True)
    rows = torch.relu(network.hidden(image[0].T))
    features, evidence = [], torch.zeros(n, 3)
    for m in range(3):
        members = torch.arange(n)[m::3]
        if len(members) == 0:
            assert (output["branch_logits"][0, m] == -torch.inf).all()
            continue
        attention = scores(network.attention, rows[members]).softmax(dim=0)
        pseudo = attention @ rows[members]
        torch.testing.assert_close(output["branch_logits"][0, m], network.pseudo_classifier(pseudo))
        cam = (attention[:, None] * rows[members]) @ network.pseudo_classifier.weight.T
        evidence[members] = cam
        positive = cam.softmax(dim=1)[:, -1]
        chosen = {"AFS": [], "MaxS": [positive.argmax()], "MaxMinS": [positive.argmax(), positive.argmin()]}
        features += [rows[members[place]] for place in chosen[distillation]] or [pseudo]
    distilled = torch.stack(features)
    bag = scores(network.bag_attention, distilled).softmax(dim=0) @ distilled
    torch.testing.assert_close(output["bag"][0], bag)
    torch.testing.assert_close(output["logits"][0], network.classifier(bag))
    torch.testing.assert_close(output["instance_logits"][0].T, evidence)
    torch.testing.assert_close(output["instance_scores"][0].T, evidence.softmax(dim=1))
    torch.testing.assert_close(output["attention_logits"][0, 0], scores(network.attention, rows))


def test_training_parts_the_real_instances_evenly_and_anew() -> None:
    network = network_of(pseudo_bags=4).train()
    mask = torch.ones(2, 11, dtype=torch.bool)
    mask[1, 6:] = False
    drawn = [network._members(torch.zeros(2, 6, 11), mask) for _ in range(2)]
    for members in drawn:
        assert (members.sum(dim=1) == mask).all(), "each real instance is in one pseudo-bag"
        assert sorted(members[0].sum(dim=1).tolist()) == [2, 3, 3, 3]
        assert sorted(members[1].sum(dim=1).tolist()) == [1, 1, 2, 2]
    assert not torch.equal(*drawn)


def test_an_empty_pseudo_bag_has_no_part_in_loss_and_gradient() -> None:
    network = network_of()
    output = network(torch.randn(2, 6, 2), return_dict=True)
    loss = BranchLoss(BagCrossEntropy())(output, torch.tensor([1, 0]))
    alone = torch.nn.functional.cross_entropy(output["branch_logits"][:, :2].flatten(0, 1), torch.tensor([1, 1, 0, 0]))
    torch.testing.assert_close(loss, alone)
    (loss + output["logits"].sum()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_one_class_and_several_labels_are_read_by_a_sigmoid() -> None:
    for network in (DTFDMIL(6, 1, 8, 4), DTFDMIL(6, 3, 8, 4, multi_label=True)):
        output = network.eval()(torch.randn(1, 6, 9), return_dict=True)
        torch.testing.assert_close(output["instance_scores"], output["instance_logits"].sigmoid())


def test_what_is_no_distillation_is_refused() -> None:
    with pytest.raises(ValueError, match="AFS, MaxS, MaxMinS, not 'max'"):
        DTFDMIL(6, 2, distillation="max")
    with pytest.raises(ValueError, match="at least one pseudo-bag"):
        DTFDMIL(6, 2, pseudo_bags=0)

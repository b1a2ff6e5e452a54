"""PSMIL against its equations, and how its prototypes follow a training."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from monai_mil.networks import ABMIL, PSMIL
from monai_mil.training import FollowPrototypes


def network_of(**options: int) -> PSMIL:
    torch.manual_seed(0)
    network = PSMIL(6, 3, hidden_dim=8, **options).double()
    network.prototypes.normal_()
    return network


@pytest.mark.parametrize("n", [1, 2, 12])
def test_instances_are_weighed_by_their_probabilities(n: int) -> None:
    network = network_of().eval()
    image = torch.randn(1, 6, n, dtype=torch.float64)
    output = network(image, return_dict=True)
    rows = torch.stack([torch.relu(network.second(torch.relu(network.first(row)))) for row in image[0].T])
    prob = torch.stack([torch.stack([row @ prototype for prototype in network.prototypes]).softmax(0) for row in rows])
    attention = torch.stack([(each * network.weigh.weight[0]).sum() for each in prob]).softmax(0)
    torch.testing.assert_close(output["attention"][0, 0], attention)
    torch.testing.assert_close(output["logits"][0], (attention[:, None] * rows).sum(dim=0) @ network.regressor)


def test_no_gradient_reaches_features_through_attention() -> None:
    network = network_of()
    network(torch.randn(1, 6, 5, dtype=torch.float64), return_dict=True)["attention_logits"].sum().backward()
    assert network.first.weight.grad is None
    assert network.weigh.weight.grad is not None


def test_prototypes_begin_as_the_first_bag_s_mean_and_follow_the_classes_of_bags() -> None:
    network = network_of()
    network.prototypes.zero_()
    image, mask = torch.randn(2, 6, 7, dtype=torch.float64), torch.arange(7) < torch.tensor([[4], [7]])
    output = network(image, mask, return_dict=True)
    rows = network._rows(image)
    torch.testing.assert_close(network.prototypes, rows[0, :4].mean(dim=0).expand(3, -1))
    torch.testing.assert_close(output["attention"][0, 0, :4], torch.full((4,), 0.25, dtype=torch.float64))

    network.prototypes.normal_()
    output = network(image, mask, return_dict=True)
    before = network.prototypes.clone()
    handler = FollowPrototypes(network, momentum=0.9)
    handler(SimpleNamespace(state=SimpleNamespace(output={"pred": output, "label": torch.tensor([2, 0])})))
    for bag, real, label in ((0, 4, 2), (1, 7, 0)):
        like = (rows[bag, :real] @ before.T).softmax(dim=1)[:, label].argmax()
        moved = 0.9 * before[label] + 0.1 * rows[bag, like]
        torch.testing.assert_close(network.prototypes[label], moved / moved.norm())
    torch.testing.assert_close(network.prototypes[1], before[1])


def test_labels_that_do_not_exclude_each_other_move_all_that_are_true() -> None:
    network = network_of()
    before, output = network.prototypes.clone(), {"class_rows": torch.randn(1, 3, 8)}
    state = SimpleNamespace(output={"pred": output, "label": torch.tensor([[1.0, 0.0, torch.nan]])})
    FollowPrototypes(network)(SimpleNamespace(state=state))
    assert (network.prototypes != before).any(dim=1).tolist() == [True, False, False]


def test_only_psmil_has_prototypes_and_momentum_is_a_share() -> None:
    with pytest.raises(ValueError, match="ABMIL has no prototypes"):
        FollowPrototypes(ABMIL(4, 2))
    with pytest.raises(ValueError, match="momentum must be"):
        FollowPrototypes(network_of(), momentum=1.5)

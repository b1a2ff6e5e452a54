"""HDMIL's first stage against its equations: screening, Chebyshev classifiers, the second answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from monai_mil.losses import ScreeningLoss
from monai_mil.networks import HDMIL
from monai_mil.networks.hdmil import ChebyshevClassifiers


def network_of(**options: float) -> HDMIL:
    torch.manual_seed(0)
    return HDMIL(6, 3, hidden_dim=8, attention_dim=4, **{"degree": 3, "dropout": 0.0, "sampled": 2, **options})


def test_classifiers_are_sums_of_chebyshev_polynomials() -> None:
    classifiers, rows = ChebyshevClassifiers(2, 5, degree=4), torch.randn(3, 2, 5, dtype=torch.float64)
    point = rows.tanh().numpy()
    weight = classifiers.weight.detach().double().numpy()
    for each in range(2):
        series = [np.polynomial.chebyshev.chebval(point[:, each, j], weight[each, j]) for j in range(5)]
        torch.testing.assert_close(classifiers(rows)[:, each], torch.from_numpy(np.sum(series, axis=0)))


@pytest.mark.parametrize("n", [1, 2, 9])
def test_evaluation_answers_from_the_instances_it_keeps(n: int) -> None:
    network, image = network_of().eval(), torch.randn(1, 6, n)
    output = network(image, return_dict=True)
    rows = torch.relu(network.hidden(image[0].T))
    tanh, sigmoid = network.attention.gates(rows).chunk(2, dim=1)
    scores = network.attention.score(tanh.tanh() * sigmoid.sigmoid()).T
    bags = []
    for own in scores:
        kept = own > 0 if (own > 0).any() else own == own.max()
        bags.append(own[kept].softmax(dim=0) @ rows[kept])
    torch.testing.assert_close(output["bag"][0], torch.cat(bags))
    torch.testing.assert_close(output["logits"][0], network.classifier(torch.stack(bags)))
    assert "screened_logits" not in output


def test_training_answers_from_all_and_from_those_that_are_drawn() -> None:
    network, image = network_of(), torch.randn(2, 6, 30)
    mask = torch.arange(30)[None] < torch.tensor([[30], [12]])
    output = network(image, mask, return_dict=True)
    assert ((output["attention"] > 0) == mask[:, None]).all()
    assert (output["screened_share"] > 0).all()
    assert (output["screened_share"] <= 1).all()
    with torch.no_grad():
        network.attention.score.bias.fill_(50)  # all are kept
    whole = network(image, mask, return_dict=True)
    torch.testing.assert_close(whole["screened_share"], torch.ones(2))
    torch.testing.assert_close(whole["screened_bag"], whole["bag"])
    torch.testing.assert_close(whole["screened_logits"], whole["logits"])
    loss = ScreeningLoss(0.1)(output, torch.zeros(2))
    loss.backward()
    assert network.attention.score.weight.grad.abs().sum() > 0


def test_the_loss_is_that_of_the_paper() -> None:
    output = {"logits": torch.randn(2, 3), "screened_logits": torch.randn(2, 3)}
    output |= {"bag": torch.randn(2, 5), "screened_bag": torch.randn(2, 5), "screened_share": torch.tensor([0.3, 0.1])}
    whole, few = (F.softmax(output[key], dim=1) for key in ("logits", "screened_logits"))
    divergence = (whole * (whole.log() - few.log())).sum(dim=1).mean()
    apart = (output["bag"] - output["screened_bag"]).square().mean()
    torch.testing.assert_close(
        ScreeningLoss(0.1)(output, torch.zeros(2)), 0.5 * divergence + 0.5 * apart + 2 * torch.tensor(0.02)
    )
    with pytest.raises(ValueError, match="does not screen"):
        ScreeningLoss()({"logits": whole}, torch.zeros(2))


def test_the_instance_branch_sees_the_extremes_of_each_class() -> None:
    network, image = network_of().eval(), torch.randn(1, 6, 20)
    output = network(image, return_dict=True)
    rows = torch.relu(network.hidden(image[0].T))
    for c in range(3):
        for key, order in (("top", True), ("bottom", False)):
            chosen = output["attention_logits"][0, c].sort(descending=order).indices[:2]
            evidence = network.branch(rows[chosen][:, None].expand(-1, 3, -1))[:, c]
            torch.testing.assert_close(output[f"{key}_instance_logits"][0, c], evidence)
    assert network_of(sampled=0).branch is None


@pytest.mark.parametrize("wrong", [{"dropout": 1.0}, {"degree": 0}, {"sampled": -1}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        network_of(**wrong)

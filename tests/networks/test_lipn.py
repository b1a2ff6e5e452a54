"""HDMIL's second stage against its equations: who is kept, what is asked for, what is taught and what stays frozen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from monai_mil.losses import ScreeningDistillation
from monai_mil.networks import HDMIL, LIPN

SIDE = 16


def network_of() -> LIPN:
    torch.manual_seed(0)
    network = LIPN(HDMIL(6, 3, hidden_dim=8, attention_dim=4, degree=3, sampled=0), side=SIDE)
    with torch.no_grad():
        network.decide.weight *= 30  # some are kept and some not
        network.teacher.attention.score.weight *= 30
    return network


def bag(n: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, 6 + 3 * SIDE * SIDE, n)


@pytest.mark.parametrize("n", [1, 12])
def test_the_teacher_answers_from_what_the_pictures_keep(n: int) -> None:
    network, image = network_of().eval(), bag(n)
    output = network(image, return_dict=True)
    screen = network.decide(network.screen(image[0, 6:].T.reshape(n, 3, SIDE, SIDE))).T
    torch.testing.assert_close(output["screen_logits"][0], screen)
    rows = torch.relu(network.teacher.hidden(image[0, :6].T))
    scores = network.teacher.attention(rows[None], None)[0]
    bags = []
    for own, seen in zip(scores, screen, strict=True):
        kept = seen > 0 if (seen > 0).any() else seen == seen.max()
        bags.append(own[kept].softmax(dim=0) @ rows[kept])
    torch.testing.assert_close(output["logits"][0], network.teacher.classifier(torch.stack(bags)))
    assert "teacher_kept" not in output


def test_a_slide_is_answered_alike_without_the_features_of_the_others() -> None:
    network, image = network_of(), bag(40)
    asked = []

    def features(rows: Tensor) -> Tensor:
        asked.append(rows)
        return image[0, :6, rows].T

    with torch.no_grad():
        network.decide.bias -= network.eval()(image, return_dict=True)["screen_logits"][0].amax(dim=0).median()
    output, kept = network.train().answer_screened(image[0, 6:].T.split(7), features)
    assert network.training
    whole = network.eval()(image, return_dict=True)
    torch.testing.assert_close(output, whole)
    assert asked[0].tolist() == kept.tolist() == whole["attention"][0].any(dim=0).nonzero()[:, 0].tolist()
    assert 0 < len(kept) < 40
    with pytest.raises(ValueError, match="without a tile"):
        network.answer_screened([], features)


def test_the_loss_counts_differences_and_compares_shares() -> None:
    screen = torch.tensor([[[2.0, -1.0, 3.0, -torch.inf], [-1.0, -1.0, 1.0, -torch.inf]]], requires_grad=True)
    taught = torch.tensor([[[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]])
    loss = ScreeningDistillation()({"screen_logits": screen, "teacher_kept": taught}, torch.tensor([0]))
    torch.testing.assert_close(loss, torch.tensor(2 / 6 + (2 / 3 - 3 / 3) ** 2))
    loss.backward()
    slope = screen.detach().sigmoid() * (1 - screen.detach().sigmoid())
    sign = torch.tensor([[[0.0, -1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]])
    share = 2 * (2 / 3 - 1) / 3
    torch.testing.assert_close(screen.grad[:, :, :3], (slope * (sign / 6 + share))[:, :, :3])
    assert screen.grad[:, :, 3].eq(0).all()
    with pytest.raises(ValueError, match="no teacher"):
        ScreeningDistillation()({"screen_logits": screen}, torch.tensor([0]))


def test_the_student_learns_the_frozen_teachers_choice() -> None:
    network = network_of().train()
    assert not network.teacher.training
    before = {name: value.clone() for name, value in network.teacher.state_dict().items()}
    signal = torch.randn(4, 1, 30)
    direction = torch.randn(6)
    features = direction[None, :, None] * signal + 0.05 * torch.randn(4, 6, 30)
    pictures = (signal[:, :, None] * torch.ones(SIDE**2 * 3)[:, None]).flatten(1, 2)
    image = torch.cat([features, pictures + 0.1 * torch.randn_like(pictures)], dim=1)
    mask = torch.arange(30) < torch.tensor([[30], [30], [25], [10]])
    image[~mask[:, None].expand_as(image)] = torch.nan
    optimizer, loss = torch.optim.Adam(network.parameters(), 3e-3), ScreeningDistillation()
    losses = []
    for _ in range(40):
        value = loss(network(image, mask, return_dict=True), torch.zeros(4))
        optimizer.zero_grad()
        value.backward()
        if not losses:
            assert all(
                parameter.grad.abs().sum() > 0
                for parameter in [*network.screen.parameters(), *network.decide.parameters()]
            )
        optimizer.step()
        losses.append(value.item())
    assert losses[0] > 0.2
    assert losses[-1] < losses[0] / 2
    assert all(parameter.grad is None for parameter in network.teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.teacher.state_dict().items())


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="got 20 channels"):
        network_of()(torch.randn(1, 20, 5))
    with pytest.raises(ValueError, match="side"):
        LIPN(HDMIL(6, 2, hidden_dim=8), side=8)

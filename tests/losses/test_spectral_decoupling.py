"""Spectral decoupling against its formula."""

from __future__ import annotations

import pytest
import torch

from monai_mil.losses import MILLoss, SpectralDecoupling

NAN = float("nan")


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(2, 3, 5, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)


def test_it_is_half_the_mean_square_over_all_tokens_once(logits: torch.Tensor) -> None:
    loss = MILLoss({"decoupling": SpectralDecoupling()}, {"decoupling": 0.01})
    value = loss({"detection_logits": logits}, torch.zeros(2, 3))
    torch.testing.assert_close(value, 0.01 / 2 * logits.square().mean())


def test_padding_is_not_counted(logits: torch.Tensor) -> None:
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3:] = False
    value = SpectralDecoupling()({"detection_logits": logits, "mask": mask}, torch.zeros(2, 3))
    bags = [logits[0].square().mean(), logits[1, :, :3].square().mean()]
    torch.testing.assert_close(value, torch.stack(bags).mean() / 2)


def test_masked_tokens_are_not_counted(logits: torch.Tensor) -> None:
    tokens = torch.rand(2, 5, 4, 4, generator=torch.Generator().manual_seed(1)) < 0.5
    output = {"detection_logits": logits, "mask": torch.ones(2, 5, dtype=torch.bool), "token_mask": tokens}
    bags = [bag.square()[:, real].mean() for bag, real in zip(logits, tokens, strict=True)]
    torch.testing.assert_close(SpectralDecoupling()(output, torch.zeros(2, 3)), torch.stack(bags).mean() / 2)


def test_logits_of_an_unknown_label_are_left_alone(logits: torch.Tensor) -> None:
    label = torch.tensor([[1.0, NAN, 0.0], [NAN, NAN, 1.0]])
    value = SpectralDecoupling()({"detection_logits": logits}, label)
    torch.testing.assert_close(value, logits[~label.isnan()].square().mean() / 2)
    value.backward()
    assert (logits.grad[label.isnan()] == 0).all()
    nothing = SpectralDecoupling()({"detection_logits": logits}, torch.full((2, 3), NAN))
    assert nothing == 0


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 7)])
def test_other_networks_logits_can_be_decoupled_too(shape: tuple[int, ...]) -> None:
    logits = torch.randn(shape)
    value = SpectralDecoupling("logits")({"logits": logits}, torch.tensor([0, 1, 2, 0]))
    torch.testing.assert_close(value, logits.square().mean() / 2)


def test_the_value_is_float32_or_better(logits: torch.Tensor) -> None:
    label = torch.zeros(2, 3)
    assert SpectralDecoupling()({"detection_logits": logits.bfloat16()}, label).dtype == torch.float32
    assert SpectralDecoupling()({"detection_logits": logits.double()}, label).dtype == torch.float64


def test_a_network_without_these_logits_is_refused() -> None:
    with pytest.raises(ValueError, match="no 'detection_logits' in the network's output; it has attention, logits"):
        SpectralDecoupling()({"logits": torch.zeros(1, 2), "attention": torch.zeros(1, 1, 3)}, torch.zeros(1))

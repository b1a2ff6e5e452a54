"""Supervision of tokens: cross-entropy and Dice by their formulas, padding left out."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from monai_mil.losses import TokenDice


def test_it_is_cross_entropy_and_dice_of_the_real_instances() -> None:
    evidence, truth = torch.randn(1, 1, 5, 3, 3), torch.rand(1, 5, 1, 3, 3).round()
    prob, aim = evidence[0, 0].sigmoid(), truth[0, :, 0]
    dice = 1 - (2 * (prob * aim).sum() + 1e-5) / (prob.sum() + aim.sum() + 1e-5)
    expected = dice + F.binary_cross_entropy(prob, aim)
    torch.testing.assert_close(TokenDice()({"detection_logits": evidence}, truth), expected)
    padded, mask = F.pad(evidence, (0, 0, 0, 0, 0, 2)), torch.tensor([[True] * 5 + [False] * 2])
    output = {"detection_logits": padded, "mask": mask}
    torch.testing.assert_close(TokenDice()(output, F.pad(truth, (0, 0, 0, 0, 0, 0, 0, 2))), expected)


def test_another_grid_than_the_bag_s_is_refused() -> None:
    with pytest.raises(ValueError, match="must have the grid of the bag"):
        TokenDice()({"detection_logits": torch.zeros(1, 1, 5, 3, 3)}, torch.zeros(1, 5, 1, 6, 6))

"""Losses of several levels: each sees its own part of the output."""

from __future__ import annotations

import pytest
import torch

from monai_mil.losses import BagCrossEntropy, InstanceSmoothSVM, LevelLoss, MILLoss


def output(levels: int = 3) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "logits": torch.randn(2, 4),
        "level_logits": torch.randn(2, levels, 4, requires_grad=True),
        "level_top_instance_logits": torch.randn(2, levels, 4, 8, requires_grad=True),
        "level_bottom_instance_logits": torch.randn(2, levels, 4, 8, requires_grad=True),
    }


def level(smoothing: float) -> MILLoss:
    terms = {"bag": BagCrossEntropy(label_smoothing=smoothing), "instance": InstanceSmoothSVM()}
    return MILLoss(terms, {"bag": 0.5, "instance": 0.5})


def test_it_is_the_sum_of_the_levels_own_losses() -> None:
    found, label = output(), torch.tensor([1, 3])
    loss = LevelLoss([level(0.1), level(0.1), level(0.0)])
    total = loss(found, label)
    expected = []
    for index, smoothing in enumerate((0.1, 0.1, 0.0)):
        logits = found["level_logits"][:, index]
        bag = torch.nn.functional.cross_entropy(logits, label, label_smoothing=smoothing)
        parts = {key: found[f"level_{key}"][:, index] for key in ("top_instance_logits", "bottom_instance_logits")}
        expected.append(0.5 * bag + 0.5 * InstanceSmoothSVM()(parts, label))
    torch.testing.assert_close(total, torch.stack(expected).sum())
    torch.testing.assert_close(torch.stack(loss.last), torch.stack(expected).detach())
    assert not loss.last[0].requires_grad


def test_no_level_learns_from_another_s_loss() -> None:
    found = output()
    losses = [MILLoss(weights={"bag": weight}) for weight in (1e-9, 1e-9, 1.0)]
    LevelLoss(losses)(found, torch.tensor([0, 2])).backward()
    gradient = found["level_logits"].grad
    assert (gradient[:, :2].abs() < 1e-8).all()
    assert (gradient[:, 2].abs().sum(dim=1) > 1e-3).all()


def test_an_output_of_other_levels_is_refused() -> None:
    loss = LevelLoss([level(0.0), level(0.0)])
    with pytest.raises(ValueError, match="2 levels for an output with 3 levels"):
        loss(output(), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="2 levels for an output with no levels"):
        loss({"logits": torch.randn(2, 4)}, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="no level"):
        LevelLoss([])

"""Supervision of single slices."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from monai_mil.losses import InstanceBCE


def test_the_mean_over_all_labelled_slices_of_the_batch() -> None:
    logits = torch.randn(2, 1, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    label = torch.tensor([[1, 0, -1, 1], [0, 1, 0, -1]])
    value = InstanceBCE()({"instance_logits": logits}, label)
    known = label >= 0
    expected = F.binary_cross_entropy_with_logits(logits[:, 0][known], label[known].float())
    torch.testing.assert_close(value, expected)
    value.backward()
    assert (logits.grad[:, 0][~known] == 0).all()
    assert (logits.grad[:, 0][known] != 0).all()


def test_padding_does_not_count_whatever_lies_there() -> None:
    logits = torch.tensor([[[1.0, -2.0, float("-inf")]]], requires_grad=True)
    mask = torch.tensor([[True, True, False]])
    output = {"instance_logits": logits, "mask": mask}
    value = InstanceBCE()(output, torch.tensor([[1.0, 0.0, 1.0]]))
    value.backward()
    expected = F.binary_cross_entropy_with_logits(torch.tensor([1.0, -2.0]), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(value, expected)
    assert torch.isfinite(logits.grad).all()


def test_a_batch_without_labelled_slices_has_loss_and_gradient_zero() -> None:
    logits = torch.randn(2, 1, 3).bfloat16().requires_grad_()
    value = InstanceBCE()({"instance_logits": logits}, torch.full((2, 3), -1))
    value.backward()
    assert value == 0
    assert value.dtype == torch.float32
    assert (logits.grad == 0).all()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="gives no instance_logits"):
        InstanceBCE()({"logits": torch.zeros(1, 1)}, torch.zeros(1, 3))
    with pytest.raises(ValueError, match="prepare_instance_batch"):
        InstanceBCE()({"instance_logits": torch.zeros(2, 1, 3)}, torch.zeros(2, 1))

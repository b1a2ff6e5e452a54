"""The loss of a bag's most suspicious instance."""

from __future__ import annotations

import pytest
import torch

from monai_mil.losses import BagBCE, BagCrossEntropy, MaxInstance


def test_it_is_the_bag_loss_of_the_highest_real_instance() -> None:
    logits = torch.tensor([[[1.0, 3.0, 9.0], [2.0, -1.0, 9.0]]], requires_grad=True)
    output = {"instance_logits": logits, "mask": torch.tensor([[True, True, False]])}
    highest = {"logits": torch.tensor([[3.0, 2.0]])}
    for loss, label in ((BagBCE(), torch.tensor([[0.0, 1.0]])), (BagCrossEntropy(), torch.tensor([1]))):
        logits.grad = None
        value = MaxInstance(loss)(output, label)
        torch.testing.assert_close(value, loss(highest, label))
        value.backward()
        assert (logits.grad != 0).tolist() == [[[False, True, False], [True, False, False]]]


def test_a_network_without_instance_logits_is_refused() -> None:
    with pytest.raises(ValueError, match="gives no instance_logits"):
        MaxInstance(BagBCE())({"logits": torch.zeros(1, 2)}, torch.zeros(1, 2))

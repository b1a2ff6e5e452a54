"""Bag losses against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from monai_mil.losses import BagBCE, BagCrossEntropy, MILLoss, bag_loss


class LogitPenalty(nn.Module):
    """Mean square of the logits."""

    def forward(self, output: dict[str, torch.Tensor], label: torch.Tensor) -> torch.Tensor:
        return output["logits"].square().mean()


LOGITS = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]])


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_cross_entropy_with_smoothing_and_class_weights(shape: tuple[int, ...]) -> None:
    label = torch.tensor([0, 2]).reshape(shape)
    loss = BagCrossEntropy(label_smoothing=0.1, class_weights=[1, 2, 3])({"logits": LOGITS}, label)
    weights = torch.tensor([1.0, 2.0, 3.0])
    target = 0.9 * F.one_hot(torch.tensor([0, 2]), 3) + 0.1 / 3
    expected = -(weights * target * LOGITS.log_softmax(1)).sum() / 2
    torch.testing.assert_close(loss, expected)


def test_class_weights_count_in_batches_of_one_bag() -> None:
    label = torch.tensor([0, 2])
    weighted = BagCrossEntropy(class_weights=[1, 2, 3])
    parts = [weighted({"logits": LOGITS[[bag]]}, label[[bag]]) for bag in range(2)]
    torch.testing.assert_close(parts[1], 3 * F.cross_entropy(LOGITS[[1]], label[[1]]))
    torch.testing.assert_close(weighted({"logits": LOGITS}, label), torch.stack(parts).mean())


def test_bce_smooths_and_weighs_labels() -> None:
    label = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    positive, negative = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 1.0, 4.0])
    loss = BagBCE(0.2, positive.tolist(), negative.tolist())
    target = label * 0.8 + 0.1
    each = -(target * F.logsigmoid(LOGITS) + (1 - target) * F.logsigmoid(-LOGITS))
    torch.testing.assert_close(
        loss({"logits": LOGITS}, label), (each * torch.where(label > 0, positive, negative)).mean()
    )
    torch.testing.assert_close(BagBCE(0.2)({"logits": LOGITS}, label), each.mean())


@pytest.mark.parametrize("shape", [(1, 4), (4,), (4, 1), (1, 1, 4)])
def test_the_labels_of_one_bag_may_come_in_any_shape(shape: tuple[int, ...]) -> None:
    logits, label = torch.tensor([[1.0, -2.0, 0.5, 0.0]]), torch.tensor([[1.0, 0.0, float("nan"), 1.0]])
    expected = BagBCE()({"logits": logits}, label)
    torch.testing.assert_close(BagBCE()({"logits": logits}, label.reshape(shape)), expected)


def test_more_labels_than_logits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"labels \[1, 4\] for logits \[1, 1\]"):
        BagBCE()({"logits": torch.zeros(1, 1)}, torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"labels \[4, 2\] for logits \[2, 4\]"):
        BagBCE()({"logits": torch.zeros(2, 4)}, torch.zeros(4, 2))


@pytest.mark.parametrize("label", [2.0, -1.0])
def test_class_numbers_are_no_labels_of_one_output(label: float) -> None:
    """The loss would fall without end."""
    with pytest.raises(ValueError, match=r"labels are 0, 1 or NaN"):
        BagBCE()({"logits": torch.zeros(2, 1)}, torch.tensor([[1.0], [label]]))


@pytest.mark.parametrize("weights", [{"positive_weights": [1.0, 3.0]}, {"negative_weights": [1.0, 3.0]}])
def test_weights_of_other_labels_are_refused(weights: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError, match="2 weights for 1 labels"):
        BagBCE(**weights)({"logits": torch.zeros(2, 1)}, torch.ones(2, 1))


def test_an_unknown_label_has_no_loss_and_no_gradient() -> None:
    logits = LOGITS.clone().requires_grad_()
    label = torch.tensor([[1.0, float("nan"), 1.0], [0.0, 1.0, float("nan")]])
    loss = BagBCE()({"logits": logits}, label)
    known = ~label.isnan()
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(LOGITS[known], label[known]))
    loss.backward()
    assert (logits.grad[~known] == 0).all()
    assert (logits.grad[known] != 0).all()


def test_a_batch_without_any_known_label_has_loss_zero() -> None:
    logits = LOGITS.clone().requires_grad_()
    loss = BagBCE()({"logits": logits}, torch.full((2, 3), float("nan")))
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


def test_terms_are_weighted_summed_and_kept_by_name() -> None:
    label = torch.tensor([0, 1])
    loss = MILLoss({"bag": BagCrossEntropy(), "penalty": LogitPenalty()}, {"penalty": 0.5})
    value = loss({"logits": LOGITS}, label)
    bag, penalty = F.cross_entropy(LOGITS, label), LOGITS.square().mean()
    torch.testing.assert_close(value, bag + 0.5 * penalty)
    torch.testing.assert_close(loss.last, {"bag": bag, "penalty": penalty})
    assert not loss.last["bag"].requires_grad


def test_losses_are_float32_for_half_precision_logits() -> None:
    label = torch.tensor([0, 1])
    assert MILLoss()({"logits": LOGITS.bfloat16()}, label).dtype == torch.float32
    assert BagBCE()({"logits": LOGITS.bfloat16()}, F.one_hot(label, 3)).dtype == torch.float32


def test_weights_without_a_term_are_refused() -> None:
    with pytest.raises(ValueError, match="weights without a term: anchor"):
        MILLoss(weights={"anchor": 1.0})
    with pytest.raises(ValueError, match="at least one term"):
        MILLoss({})


def test_a_term_of_weight_zero_is_not_computed() -> None:
    class Impossible(nn.Module):
        def forward(self, output: object, label: object) -> torch.Tensor:
            raise AssertionError("computed")

    loss = MILLoss({"bag": BagCrossEntropy(), "off": Impossible()}, {"off": 0.0})
    logits, label = torch.randn(3, 2), torch.tensor([0, 1, 1])
    torch.testing.assert_close(loss({"logits": logits}, label), BagCrossEntropy()({"logits": logits}, label))
    with pytest.raises(ValueError, match="weight other than 0"):
        MILLoss({"off": Impossible()}, {"off": 0.0})


def test_the_labels_of_a_bag_choose_its_loss():
    assert isinstance(bag_loss(), BagCrossEntropy)
    several = bag_loss(multi_label=True, label_smoothing=0.1)
    assert isinstance(several, BagBCE)
    assert several.label_smoothing == 0.1

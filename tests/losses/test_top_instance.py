"""The paper's instance loss of HAG-MIL against its formula, and bags of few instances."""

from __future__ import annotations

import math

import pytest
import torch

from monai_mil.losses import TopInstanceSVM
from monai_mil.losses.smooth_svm import smooth_svm
from monai_mil.losses.top_instance import smooth_top1


def by_hand(scores: list[float], label: int) -> float:
    raised = [score + (index != label) for index, score in enumerate(scores)]
    first, second = sorted(scores, reverse=True)[:2]
    if first - second >= math.log(1000):
        return max(raised) - scores[label]
    return math.log(sum(math.exp(value) for value in raised)) - scores[label]


@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0])
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_the_formula_for_random_scores(scale: float, classes: int) -> None:
    torch.manual_seed(0)
    scores, label = scale * torch.randn(200, classes, dtype=torch.float64), torch.randint(classes, (200,))
    expected = [by_hand(row.tolist(), int(y)) for row, y in zip(scores, label, strict=True)]
    torch.testing.assert_close(smooth_top1(scores, label), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("difference", [math.log(1000) - 1e-3, math.log(1000) + 1e-3])
def test_it_switches_to_the_hinge_at_a_thousand(difference: float) -> None:
    scores = torch.tensor([[0.0, difference]], dtype=torch.float64)
    for label in (0, 1):
        assert smooth_top1(scores, torch.tensor([label])).item() == pytest.approx(by_hand([0.0, difference], label))


def test_of_two_classes_it_is_the_softplus_of_the_margin() -> None:
    scores = torch.randn(50, 2, dtype=torch.float64)
    torch.testing.assert_close(
        smooth_top1(scores, torch.zeros(50, dtype=torch.long)), smooth_svm(scores[:, 0] - scores[:, 1])
    )


def test_every_instance_is_labelled_as_its_bag_and_missing_ones_do_not_count() -> None:
    torch.manual_seed(0)
    top = torch.randn(2, 3, 4)
    top[1, :, 2:] = -torch.inf
    label = torch.tensor([2, 0])
    first = smooth_top1(top[0].T, label[:1]).mean()
    second = smooth_top1(top[1, :, :2].T, label[1:]).mean()
    loss = TopInstanceSVM()({"top_instance_logits": top.requires_grad_()}, label)
    torch.testing.assert_close(loss, (first + second) / 2)
    loss.backward()
    assert top.grad.isfinite().all()


@pytest.mark.parametrize(("classes", "label"), [(3, torch.ones(2, 3)), (1, torch.tensor([0, 0]))])
def test_classes_that_do_not_exclude_each_other_are_refused(classes: int, label: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="classes that exclude each other"):
        TopInstanceSVM()({"top_instance_logits": torch.randn(2, classes, 4)}, label)


def test_a_network_without_instance_branch_is_refused() -> None:
    with pytest.raises(ValueError, match="its output has logits"):
        TopInstanceSVM()({"logits": torch.zeros(1, 2)}, torch.tensor([0]))

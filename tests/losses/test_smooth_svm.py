"""CLAM's instance loss against its definition over two scores."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from monai_mil.losses import InstanceSmoothSVM, MILLoss
from monai_mil.losses.smooth_svm import smooth_svm

INF = float("inf")


def two_score_svm(scores: Tensor, target: int) -> Tensor:
    """The definition: log-sum-exp over both classes with margin 1, hard where the scores are ln 1000 apart."""
    raised = scores + (torch.arange(2) != target)
    hard = (scores[:, 0] - scores[:, 1]).abs() >= math.log(1000)
    return torch.where(hard, raised.amax(dim=1), raised.logsumexp(dim=1)) - scores[:, target]


def test_the_margin_says_all_about_two_scores() -> None:
    scores = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)) * 6
    assert ((scores[:, 0] - scores[:, 1]).abs() > math.log(1000)).any()
    difference = scores[:, 1] - scores[:, 0]
    torch.testing.assert_close(smooth_svm(difference), two_score_svm(scores, 1), rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(smooth_svm(-difference), two_score_svm(scores, 0), rtol=1e-5, atol=2e-6)


def test_the_class_of_the_bag_accepts_the_top_and_rejects_the_bottom() -> None:
    top, bottom = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    output = {"top_instance_logits": top, "bottom_instance_logits": bottom}
    label = torch.tensor([2, 0])
    expected = [torch.cat([smooth_svm(top[b, c]), smooth_svm(-bottom[b, c])]).mean() for b, c in ((0, 2), (1, 0))]
    value = InstanceSmoothSVM()(output, label)
    torch.testing.assert_close(value, torch.stack(expected).mean())
    torch.testing.assert_close(InstanceSmoothSVM()(output, label[:, None]), value)
    many = torch.nn.functional.one_hot(label, 3).float()
    torch.testing.assert_close(InstanceSmoothSVM()(output, many), value)


def test_other_classes_reject_their_top_where_classes_exclude_each_other() -> None:
    top, bottom = torch.randn(1, 3, 4), torch.randn(1, 3, 4)
    own = torch.cat([smooth_svm(top[0, 1]), smooth_svm(-bottom[0, 1])]).mean()
    others = smooth_svm(-top[0, 0]).mean() + smooth_svm(-top[0, 2]).mean()
    output = {"top_instance_logits": top, "bottom_instance_logits": bottom}
    torch.testing.assert_close(InstanceSmoothSVM(exclusive=True)(output, torch.tensor([1])), (own + others) / 3)


def test_instances_a_small_bag_lacks_count_neither_in_the_loss_nor_in_its_gradient() -> None:
    top = torch.tensor([[[1.0, -INF]]], requires_grad=True)
    bottom = torch.tensor([[[-INF, -INF]]], requires_grad=True)
    output = {"top_instance_logits": top, "bottom_instance_logits": bottom}
    value = InstanceSmoothSVM(exclusive=True)(output, torch.tensor([[1.0]]))
    torch.testing.assert_close(value, torch.tensor(math.log(2)))
    value.backward()
    assert top.grad.tolist() == [[[-0.5, 0.0]]]
    assert (bottom.grad == 0).all()


def test_an_unknown_label_teaches_nothing() -> None:
    top = torch.randn(1, 2, 3, requires_grad=True)
    output = {"top_instance_logits": top, "bottom_instance_logits": torch.randn(1, 2, 3)}
    value = InstanceSmoothSVM(exclusive=True)(output, torch.full((1, 2), torch.nan))
    value.backward()
    assert value == 0
    assert (top.grad == 0).all()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="use one with an instance branch"):
        InstanceSmoothSVM()({"logits": torch.zeros(1, 2)}, torch.zeros(1))
    output = dict.fromkeys(("top_instance_logits", "bottom_instance_logits"), torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="fit neither 2 bags nor 3 classes"):
        InstanceSmoothSVM()(output, torch.zeros(2, 2))


def test_it_is_a_term_of_the_sum() -> None:
    output = dict.fromkeys(("top_instance_logits", "bottom_instance_logits"), torch.zeros(2, 3, 4).bfloat16())
    loss = MILLoss({"instance": InstanceSmoothSVM()}, {"instance": 0.3})
    value = loss(output, torch.tensor([0, 2]))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, torch.tensor(0.3 * math.log(1 + math.e)))

"""AUROC and macro-F1 as metrics of a MONAI engine."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.handlers import ROCAUC
from sklearn.metrics import f1_score

from monai_mil.metrics import AUROC, F1AUROC, MacroF1, auroc
from monai_mil.metrics.handlers import BagMetric, pred_and_label


def test_it_equals_monai_s_for_one_hot_labels() -> None:
    pred = torch.rand(30, 3).softmax(1)
    label = torch.nn.functional.one_hot(torch.arange(30) % 3).float()
    ours, theirs = AUROC(output_transform=lambda output: output), ROCAUC()
    for handler in (ours, theirs):
        handler.update((pred[:20], label[:20]))
        handler.update((pred[20:], label[20:]))
    assert ours.compute() == pytest.approx(float(theirs.compute()))


def test_decollated_items_with_plain_number_labels_are_read() -> None:
    pred, label = torch.rand(12, 2).softmax(1), torch.arange(12) % 2
    items = [{"pred": p, "label": int(y)} for p, y in zip(pred, label, strict=True)]
    handler = AUROC()
    handler.update(handler._output_transform(items))
    assert handler.compute() == pytest.approx(auroc(pred.numpy(), label.numpy()))
    assert type(handler.compute()) is float
    together = pred_and_label({"pred": pred, "label": label})
    torch.testing.assert_close(together, pred_and_label(items))


def test_multi_label_bags_with_unknown_labels_are_read() -> None:
    pred, label = torch.rand(10, 2), (torch.rand(10, 2) > 0.5).float()
    label[0, 0] = float("nan")
    metric = BagMetric("AUROC", auroc)
    metric(pred, label)
    assert metric.aggregate() == pytest.approx(auroc(pred.numpy(), label.numpy()))


def test_bags_of_one_class_warn_and_give_nan() -> None:
    metric = BagMetric("AUROC", auroc)
    metric(torch.rand(4, 2), torch.ones(4, 1))
    with pytest.warns(UserWarning, match="4 bags all have the same label"):
        assert np.isnan(metric.aggregate())


def test_a_network_that_has_diverged_has_no_auroc() -> None:
    metric = BagMetric("AUROC", auroc)
    metric(torch.full((4, 2), torch.nan), torch.tensor([0, 0, 1, 1])[:, None])
    with pytest.warns(UserWarning, match="diverged"):
        assert np.isnan(metric.aggregate())


def computed(handler: AUROC | MacroF1 | F1AUROC, pred: torch.Tensor, label: torch.Tensor) -> float:
    handler.update(handler._output_transform({"pred": pred, "label": label}))
    return handler.compute()


def test_f1_is_macro_averaged_where_micro_would_be_the_accuracy() -> None:
    pred = torch.tensor([[0.9, 0.1]] * 8 + [[0.6, 0.4], [0.3, 0.7]])
    label = torch.tensor([0] * 8 + [1, 1])
    chosen = pred.argmax(dim=1)
    value = computed(MacroF1(), pred, label)
    assert value == pytest.approx(f1_score(label, chosen, average="macro"))
    micro = f1_score(label, chosen, average="micro")
    assert micro == pytest.approx(0.9)
    assert value < micro - 0.05


def test_the_score_that_chooses_an_epoch_is_the_mean_of_macro_f1_and_auroc() -> None:
    pred, label = torch.rand(20, 3).softmax(1), torch.arange(20) % 3
    parts = computed(MacroF1(), pred, label), computed(AUROC(), pred, label)
    assert computed(F1AUROC(), pred, label) == pytest.approx(sum(parts) / 2)


def test_an_epoch_without_auroc_has_no_score() -> None:
    with pytest.warns(UserWarning, match="no mean of macro F1 and AUROC: the 4 bags all have the same label"):
        assert np.isnan(computed(F1AUROC(), torch.rand(4, 2), torch.ones(4)))


def test_a_label_without_both_outcomes_is_named_beside_the_mean() -> None:
    pred, label = torch.rand(6, 3), torch.tensor([[0.0, 1.0, 1.0], [1.0, 1.0, 0.0]] * 3)
    with pytest.warns(UserWarning, match="AUROC is the mean without label 'edema': always 1 in the 6 bags"):
        value = computed(AUROC(classes=["mass", "edema", "nodule"]), pred, label)
    assert value == pytest.approx(auroc(pred[:, [0, 2]].numpy(), label[:, [0, 2]].numpy()))
    with pytest.warns(UserWarning, match="mean of macro F1 and AUROC is the mean without label number 1: always 1"):
        computed(F1AUROC(), pred, label)

"""AUROC as the key metric of a MONAI engine."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.handlers import ROCAUC

from monai_mil.metrics import AUROC, auroc
from monai_mil.metrics.handlers import AUROCMetric, pred_and_label


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
    metric = AUROCMetric()
    metric(pred, label)
    assert metric.aggregate() == pytest.approx(auroc(pred.numpy(), label.numpy()))


def test_bags_of_one_class_warn_and_give_nan() -> None:
    metric = AUROCMetric()
    metric(torch.rand(4, 2), torch.ones(4, 1))
    with pytest.warns(UserWarning, match="4 bags all have the same label"):
        assert np.isnan(metric.aggregate())


def test_a_network_that_has_diverged_has_no_auroc() -> None:
    metric = AUROCMetric()
    metric(torch.full((4, 2), torch.nan), torch.tensor([0, 0, 1, 1])[:, None])
    with pytest.warns(UserWarning, match="diverged"):
        assert np.isnan(metric.aggregate())

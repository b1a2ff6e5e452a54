"""AUROC inside a MONAI engine."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.handlers.ignite_metric import IgniteMetricHandler
from monai.metrics.metric import CumulativeIterationMetric
from torch import Tensor

from monai_mil.metrics.classification import auroc


class AUROCMetric(CumulativeIterationMetric):
    """:func:`monai_mil.metrics.auroc` over all bags of an epoch and of all processes.

    MONAI's own ``ROCAUC`` wants one-hot labels, knows no missing ones and gives a numpy number that a weights-only
    checkpoint refuses.
    """

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Any:
        if y is None:
            raise ValueError("an AUROC needs labels; 'y' is None")
        return y_pred.detach().float(), y.detach().float()

    def aggregate(self) -> float:
        """The AUROC; NaN, with a warning, if no class has positive and negative bags or training has diverged."""
        prob, label = self.get_buffer()
        if torch.isnan(prob).any():
            warnings.warn("no AUROC: predictions are not numbers; training has diverged", stacklevel=2)
            return math.nan
        if label.shape[1] == 1 and prob.shape[1] > 1:
            label = label[:, 0]
        value = auroc(prob.cpu().numpy(), label.cpu().numpy())
        if math.isnan(value):
            warnings.warn(
                f"no AUROC: the {len(label)} bags all have the same label; use a split with bags of every class",
                stacklevel=2,
            )
        return value


class AUROC(IgniteMetricHandler):
    """The key metric of a bundle: ``{"_target_": "monai_mil.metrics.AUROC"}`` under ``key_val_metric``.

    Reads ``pred`` (probabilities) and ``label`` (class index, one-hot or multi-label with NaN) from the engine's
    output, decollated or not.

    Args:
        output_transform: from the engine's output to lists or batches ``(pred, label)``.
    """

    def __init__(self, output_transform: Callable[[Any], tuple[Any, Any]] | None = None) -> None:
        transform = pred_and_label if output_transform is None else output_transform
        super().__init__(metric_fn=AUROCMetric(), output_transform=transform, save_details=False)


def pred_and_label(output: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> tuple[Tensor, Tensor]:
    """Probabilities ``[b, c]`` and labels ``[b, 1 or c]`` of an engine's output."""
    if isinstance(output, Mapping):
        pred, label = torch.as_tensor(output["pred"]), torch.as_tensor(output["label"])
        return pred, label.reshape(len(pred), -1)
    pred = torch.stack([torch.as_tensor(item["pred"]) for item in output])
    label = torch.stack([torch.as_tensor(item["label"]).reshape(-1) for item in output])
    return pred, label

"""The validation loss of bags inside a MONAI engine."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from monai.handlers.ignite_metric import IgniteMetricHandler
from monai.metrics.metric import CumulativeIterationMetric
from torch import Tensor

from monai_mil.metrics.handlers import pred_and_label


def log_loss(prob: Tensor, label: Tensor, highest: float = 1.0) -> float:
    """Mean cross-entropy of the bags: of their one class, or the mean over those of a bag's labels that are known.

    Args:
        prob: of the positive class, of every label, or of every class of which a bag has one, ``[b, c]``.
        label: 0, 1 or NaN (unknown), ``[b, c]``, or class indices ``[b, 1]``; bags without a known label are left out.
        highest: probabilities above count as this one.

    Returns:
        The loss; NaN if no label is known. Logarithms end at -100, as torch's do.
    """
    prob, label = prob.double().clamp(max=highest), label.double()
    if label.shape[1] < prob.shape[1]:
        prob, label = prob.gather(1, label.nan_to_num().long()), label * 0 + 1
    known = ~torch.isnan(label)
    terms = torch.where(label > 0, prob.log(), torch.log1p(-prob)).clamp(min=-100)
    losses = torch.where(known, -terms, 0.0).sum(dim=1) / known.sum(dim=1)
    return float(losses[known.any(dim=1)].mean())


class LogLossMetric(CumulativeIterationMetric):
    """:func:`log_loss` over all bags of an epoch and of all processes.

    Args:
        highest: see there.
    """

    def __init__(self, highest: float) -> None:
        super().__init__()
        self.highest = highest

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Any:
        if y is None:
            raise ValueError("a loss needs labels; 'y' is None")
        return y_pred.detach().float(), y.detach().float()

    def aggregate(self) -> float:
        """The loss; NaN, with a warning, if a prediction is not a number or no label is known."""
        prob, label = self.get_buffer()
        value = log_loss(prob, label, self.highest)
        if math.isnan(value):
            warnings.warn(
                "no loss: predictions are not numbers, or no bag has a known label; check the training and the split",
                stacklevel=2,
            )
        return value


class LogLoss(IgniteMetricHandler):
    """A key metric that is better the lower it is: the bag loss without weights and label smoothing.

    Reads ``pred`` (probabilities of the positive class, of every label or of every class) and ``label`` from the
    engine's output, decollated or not. Give :class:`~monai_mil.training.BestModel` and ``EarlyStop`` ``mode="min"``.

    Args:
        highest: probabilities above count as this one; the default is where INSIGHT's training loss ends.
        output_transform: from the engine's output to lists or batches ``(pred, label)``.

    Examples:
        >>> import torch
        >>> from monai_mil.metrics import LogLoss
        >>> metric = LogLoss()
        >>> metric.update((torch.tensor([[0.5], [0.5]]), torch.tensor([[0.0], [1.0]])))
        >>> round(metric.compute(), 4)
        0.6931
    """

    def __init__(
        self, highest: float = 0.999, output_transform: Callable[[Any], tuple[Any, Any]] | None = None
    ) -> None:
        transform = pred_and_label if output_transform is None else output_transform
        super().__init__(metric_fn=LogLossMetric(highest), output_transform=transform, save_details=False)

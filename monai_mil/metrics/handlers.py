"""AUROC and macro-F1 inside a MONAI engine."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.handlers.ignite_metric import IgniteMetricHandler
from monai.metrics.metric import CumulativeIterationMetric
from numpy.typing import ArrayLike
from torch import Tensor

from monai_mil.metrics.classification import Array, Metric, auroc, macro_f1, missing_from_mean


class BagMetric(CumulativeIterationMetric):
    """A metric of this package over all bags of an epoch and of all processes, as a plain float.

    MONAI's own ``ROCAUC`` wants one-hot labels, knows no missing ones and gives a numpy number that a weights-only
    checkpoint refuses.

    Args:
        name: of the metric, for warnings.
        function: such as :func:`monai_mil.metrics.auroc`.
        classes: names of the classes or labels, for warnings; None counts them.
    """

    def __init__(self, name: str, function: Metric, classes: Sequence[str] | None = None) -> None:
        super().__init__()
        self.name = name
        self.function = function
        self.classes = classes

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Any:
        if y is None:
            raise ValueError(f"{self.name} needs labels; 'y' is None")
        return y_pred.detach().float(), y.detach().float()

    def aggregate(self) -> float:
        """The metric; NaN, with a warning, if the labels do not allow one or training has diverged."""
        prob, label = self.get_buffer()
        if torch.isnan(prob).any():
            warnings.warn(f"no {self.name}: predictions are not numbers; training has diverged", stacklevel=2)
            return math.nan
        if label.shape[1] == 1 and prob.shape[1] > 1:
            label = label[:, 0]
        cases = prob.cpu().numpy(), label.cpu().numpy()
        value = float(self.function(*cases))
        if math.isnan(value):
            warnings.warn(
                f"no {self.name}: the {len(label)} bags all have the same label; use a split with bags of every class",
                stacklevel=2,
            )
        elif self.function in (auroc, _f1_auroc):
            self._tell_missing(*cases)
        return value

    def _tell_missing(self, prob: Array, label: Array) -> None:
        """Name what the mean is made without; Python shows a warning that stays the same once a run."""
        for index, why in missing_from_mean(auroc, prob, label).items():
            named = self.classes is not None and len(self.classes) == prob.shape[1]
            name = f"'{self.classes[index]}'" if self.classes is not None and named else f"number {index}"
            warnings.warn(f"{self.name} is the mean without label {name}: {why} in the {len(label)} bags", stacklevel=2)


class _BagMetricHandler(IgniteMetricHandler):
    """Reads ``pred`` and ``label`` from an engine's output and gives them to a :class:`BagMetric`."""

    def __init__(
        self,
        name: str,
        function: Metric,
        output_transform: Callable[[Any], tuple[Any, Any]] | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        transform = pred_and_label if output_transform is None else output_transform
        super().__init__(metric_fn=BagMetric(name, function, classes), output_transform=transform, save_details=False)


class AUROC(_BagMetricHandler):
    """The key metric of a bundle: ``{"_target_": "monai_mil.metrics.AUROC"}`` under ``key_val_metric``.

    Reads ``pred`` (probabilities) and ``label`` (class index, one-hot or multi-label with NaN) from the engine's
    output, decollated or not. A class or label without both outcomes is left out of the mean, with a warning.

    Args:
        output_transform: from the engine's output to lists or batches ``(pred, label)``.
        classes: names of the classes or labels, for that warning; None counts them.

    Examples:
        >>> import torch
        >>> from monai_mil.metrics import AUROC
        >>> metric = AUROC()
        >>> metric.update((torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([[0], [1]])))
        >>> metric.compute()
        1.0
    """

    def __init__(
        self,
        output_transform: Callable[[Any], tuple[Any, Any]] | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        super().__init__("AUROC", auroc, output_transform, classes)


class MacroF1(_BagMetricHandler):
    """:func:`monai_mil.metrics.macro_f1` of the most probable class; all else is as in :class:`AUROC`.

    The micro-averaged F1 of exclusive classes, which torchmetrics gives unless asked for another, is the accuracy.
    """

    def __init__(self, output_transform: Callable[[Any], tuple[Any, Any]] | None = None) -> None:
        super().__init__("macro F1", macro_f1, output_transform)


class F1AUROC(_BagMetricHandler):
    """Mean of macro-F1 and AUROC, by whose sum ASMIL chooses its epoch; all else is as in :class:`AUROC`."""

    def __init__(
        self,
        output_transform: Callable[[Any], tuple[Any, Any]] | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        super().__init__("mean of macro F1 and AUROC", _f1_auroc, output_transform, classes)


def _f1_auroc(prob: ArrayLike, label: ArrayLike, weight: Array | None = None) -> Any:
    return (macro_f1(prob, label, weight) + auroc(prob, label, weight)) / 2


def pred_and_label(output: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> tuple[Tensor, Tensor]:
    """Probabilities ``[b, c]`` and labels ``[b, 1 or c]`` of an engine's output.

    Examples:
        >>> import torch
        >>> from monai_mil.metrics import pred_and_label
        >>> output = [{"pred": torch.tensor([0.1, 0.9]), "label": torch.tensor(1)}]  # a decollated batch of one case
        >>> pred_and_label(output)
        (tensor([[0.1000, 0.9000]]), tensor([[1]]))
    """
    if isinstance(output, Mapping):
        pred, label = torch.as_tensor(output["pred"]), torch.as_tensor(output["label"])
        return pred, label.reshape(len(pred), -1)
    pred = torch.stack([torch.as_tensor(item["pred"]) for item in output])
    label = torch.stack([torch.as_tensor(item["label"]).reshape(-1) for item in output])
    return pred, label

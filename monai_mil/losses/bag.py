"""Classification losses on the bag's logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def bag_loss(
    multi_label: bool = False,
    positive_weights: Sequence[float] | None = None,
    negative_weights: Sequence[float] | None = None,
    **options: Any,
) -> BagCrossEntropy | BagBCE:
    """The loss of a bag's labels.

    Args:
        multi_label: the labels do not exclude each other: :class:`BagBCE`, else :class:`BagCrossEntropy`.
        positive_weights: factor of each class's loss where it is the bag's.
        negative_weights: likewise where it is not, of labels that do not exclude each other.
        options: of that loss.

    Examples:
        >>> from monai_mil.losses import bag_loss
        >>> bag_loss(multi_label=True), bag_loss(label_smoothing=0.1)
        (BagBCE(), BagCrossEntropy())
    """
    if multi_label:
        return BagBCE(positive_weights=positive_weights, negative_weights=negative_weights, **options)
    return BagCrossEntropy(class_weights=positive_weights, **options)


class BagCrossEntropy(nn.Module):
    """Cross-entropy of one class out of ``c``, mean over the bags.

    Args:
        label_smoothing: share ``e`` of the target spread over all classes, ``(1 - e) onehot + e / c``.
        class_weights: factor of each class. The mean stays that over bags: divided by the sum of their weights, as
            torch does, a batch of one bag would not know them.

    Examples:
        >>> import torch
        >>> from monai_mil.losses import BagCrossEntropy
        >>> round(BagCrossEntropy()({"logits": torch.zeros(1, 2)}, torch.tensor([1])).item(), 4)
        0.6931
    """

    class_weights: Tensor | None

    def __init__(self, label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("class_weights", _weights(class_weights), persistent=False)

    def forward(self, output: Mapping[str, Tensor], label: Tensor) -> Tensor:
        """Scalar loss of ``output["logits"]`` ``[b, c]`` for class indices ``[b]`` or ``[b, 1]``."""
        logits = output["logits"].float()
        weights = None if self.class_weights is None else self.class_weights.to(logits.device)
        target = label.to(logits.device).long().flatten()
        losses = F.cross_entropy(logits, target, weight=weights, label_smoothing=self.label_smoothing, reduction="none")
        return losses.mean()


class BagBCE(nn.Module):
    """Binary cross-entropy of every label on its own, mean over the labels that are known.

    Args:
        label_smoothing: ``e`` in ``y (1 - e) + e / 2``.
        positive_weights: factor of each label's loss where it is 1.
        negative_weights: likewise where it is 0. The mean is not divided by the weights' sum.

    Examples:
        >>> import torch
        >>> from monai_mil.losses import BagBCE
        >>> logits = torch.zeros(1, 2)
        >>> label = torch.tensor([[1.0, torch.nan]])  # of the second label nothing is known
        >>> round(BagBCE()({"logits": logits}, label).item(), 4)
        0.6931
    """

    positive_weights: Tensor | None
    negative_weights: Tensor | None

    def __init__(
        self,
        label_smoothing: float = 0.0,
        positive_weights: Sequence[float] | None = None,
        negative_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("positive_weights", _weights(positive_weights), persistent=False)
        self.register_buffer("negative_weights", _weights(negative_weights), persistent=False)

    def forward(self, output: Mapping[str, Tensor], label: Tensor) -> Tensor:
        """Scalar loss of ``output["logits"]`` ``[b, c]`` for labels 0, 1 or NaN (unknown), ``[b, c]``.

        A batch that knows no label has the loss 0, and a zero gradient.

        Raises:
            ValueError: there are more or fewer labels, or weights, than logits, or a label is none of these.
        """
        logits = output["logits"].float()
        if label.numel() != logits.numel() or (len(logits) > 1 and len(label) != len(logits)):
            raise ValueError(f"labels {list(label.shape)} for logits {list(logits.shape)}: one for every bag and label")
        target = label.to(logits).reshape(logits.shape)
        known = ~torch.isnan(target)
        target = torch.where(known, target, 0.0)
        if not ((target >= 0) & (target <= 1)).all():
            raise ValueError(f"labels are 0, 1 or NaN (unknown), got {label.flatten().tolist()}: one for every output")
        smooth = target * (1 - self.label_smoothing) + self.label_smoothing / 2
        losses = F.binary_cross_entropy_with_logits(logits, smooth, reduction="none") * self._weight(target)
        return torch.where(known, losses, 0.0).sum() / known.sum().clamp(min=1)

    def _weight(self, target: Tensor) -> Tensor:
        weight = torch.zeros_like(target)
        for weights, share in ((self.positive_weights, target), (self.negative_weights, 1 - target)):
            if weights is not None and len(weights) != target.shape[1]:
                raise ValueError(f"{len(weights)} weights for {target.shape[1]} labels: give one for every label")
            weight = weight + share * (1.0 if weights is None else weights.to(target.device))
        return weight


def _weights(values: Sequence[float] | None) -> Tensor | None:
    return None if values is None else torch.as_tensor(values, dtype=torch.float32)

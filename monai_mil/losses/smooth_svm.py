"""CLAM's instance loss: a smooth SVM on the most and least attended instances."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_mil.losses.required import required

HARD_FROM = math.log(1000)
"""Difference of the two scores from which the loss is the plain hinge, which it then equals but for a thousandth."""


class InstanceSmoothSVM(nn.Module):
    """Smooth top-1 SVM (Berrada et al., ICLR 2018; temperature and margin 1) of CLAM's pseudo-labels.

    The classifier of the bag's class is to accept the most attended instances and to reject the least attended; the
    mean over these instances is the class's loss. Of bags where classes exclude each other, those of the other
    classes are to reject their most attended instances, and the sum is divided by the number of classes.

    Args:
        exclusive: classes exclude each other also within a bag (CLAM's "subtyping").

    Examples:
        >>> import torch
        >>> from monai_mil.losses import InstanceSmoothSVM
        >>> right = torch.tensor([[[-9.0, -9.0], [9.0, 9.0]]])  # of two instances for each of two classes
        >>> output = {"top_instance_logits": right, "bottom_instance_logits": -right}
        >>> round(InstanceSmoothSVM()(output, torch.tensor([1])).item(), 4)
        0.0
    """

    def __init__(self, exclusive: bool = False) -> None:
        super().__init__()
        self.exclusive = exclusive

    def forward(self, output: Mapping[str, Tensor], label: Tensor) -> Tensor:
        """Scalar loss of ``output["top_instance_logits"]`` and ``output["bottom_instance_logits"]`` ``[b, c, k]``.

        Args:
            output: of a network with an instance branch; ``-inf`` stands where a bag has fewer instances.
            label: class indices ``[b]`` or ``[b, 1]``; or labels 0, 1 or NaN (unknown, no loss) ``[b, c]``.

        Raises:
            ValueError: the network gives no such logits, or the shapes do not fit.
        """
        top, bottom = (
            required(output, key, "use one with an instance branch, such as CLAM_SB with sampled above 0")
            for key in ("top_instance_logits", "bottom_instance_logits")
        )
        present = _presence(label.to(top.device), top.shape[0], top.shape[1])
        losses = torch.cat([smooth_svm(top.float()), smooth_svm(-bottom.float())], dim=2)
        counts = torch.cat([torch.isfinite(top), torch.isfinite(bottom)], dim=2)
        loss = ((present == 1) * _mean(losses, counts)).sum()
        if self.exclusive:
            rejected = _mean(smooth_svm(-top.float()), torch.isfinite(top))
            loss = (loss + ((present == 0) * rejected).sum()) / top.shape[1]
        return loss / top.shape[0]


def smooth_svm(margin: Tensor) -> Tensor:
    """``log(1 + exp(1 - margin))``, and the hinge ``max(0, 1 - margin)`` where the margin is at least ln 1000.

    Args:
        margin: score of the true class less that of the other, any shape; where it is not finite the loss is 0.
    """
    known = torch.isfinite(margin)
    slack = 1 - torch.where(known, margin, 0.0)
    loss = torch.where(margin.abs() < HARD_FROM, F.softplus(slack), F.relu(slack))
    return torch.where(known, loss, 0.0)


def _presence(label: Tensor, bags: int, classes: int) -> Tensor:
    """1 where a bag shows a class, 0 where not, NaN where unknown, ``[b, c]``."""
    if classes > 1 and label.numel() == bags:
        return F.one_hot(label.flatten().long(), classes)
    if label.numel() != bags * classes:
        raise ValueError(f"labels {list(label.shape)} fit neither {bags} bags nor {classes} classes of each")
    return label.reshape(bags, classes)


def _mean(losses: Tensor, counts: Tensor) -> Tensor:
    return losses.sum(dim=2) / counts.sum(dim=2).clamp(min=1)

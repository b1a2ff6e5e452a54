"""Binary cross-entropy of single instances, where they are labelled."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from monai_mil.losses.required import required


class InstanceBCE(nn.Module):
    """Binary cross-entropy of every labelled instance, mean over all of them in the batch.

    Examples:
        >>> import torch
        >>> from monai_mil.losses import InstanceBCE
        >>> output = {"instance_logits": torch.zeros(1, 1, 3)}
        >>> round(InstanceBCE()(output, torch.tensor([[0, 1, -1]])).item(), 4)  # the third slice is unknown
        0.6931
    """

    def forward(self, output: Mapping[str, Tensor], label: Tensor) -> Tensor:
        """Scalar loss of ``output["instance_logits"]`` ``[b, 1, n]`` for labels ``[b, n]``.

        Labels are 0, 1, or below 0 where unknown or padding. A batch that knows none has the loss 0, and a zero
        gradient.

        Raises:
            ValueError: the network tells no instance logits, or the shapes do not fit.
        """
        logits = required(output, "instance_logits")
        if logits.dim() != 3 or logits.shape[1] != 1 or logits[:, 0].shape != label.shape:
            raise ValueError(
                f"instance logits {list(logits.shape)} and labels {list(label.shape)} must be [b, 1, n] and [b, n]; "
                "use prepare_instance_batch"
            )
        target = label.to(logits.device)
        known = target >= 0
        if output.get("mask") is not None:
            known = known & output["mask"]
        losses = F.binary_cross_entropy_with_logits(logits[:, 0][known].float(), target[known].float(), reduction="sum")
        return losses / known.sum().clamp(min=1)

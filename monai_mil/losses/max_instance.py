"""A bag's loss on its most suspicious instance of every class."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from monai_mil.losses.required import required


class MaxInstance(nn.Module):
    """A bag loss of ``max_i instance_logits_i`` in the place of ``logits``: teaches DSMIL's first stream.

    Args:
        loss: the bag loss, such as ``BagBCE`` or ``BagCrossEntropy``.

    Examples:
        >>> import torch
        >>> from monai_mil.losses import BagBCE, MaxInstance
        >>> output = {"instance_logits": torch.tensor([[[-5.0, -5.0, 5.0]]])}
        >>> round(MaxInstance(BagBCE())(output, torch.tensor([[1.0]])).item(), 4)
        0.0067
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, output: Mapping[str, Tensor], label: Tensor) -> Tensor:
        """Scalar loss of ``output["instance_logits"]`` ``[b, c, n]`` over the real instances.

        Raises:
            ValueError: the network tells no instance logits.
        """
        logits = required(output, "instance_logits")
        mask = output.get("mask")
        if mask is not None:
            logits = logits.masked_fill(~mask[:, None], -float("inf"))
        return self.loss({"logits": logits.amax(dim=2)}, label)

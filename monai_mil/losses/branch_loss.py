"""A bag's loss on what every branch of a network, or every pseudo-bag, says by itself."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from monai_mil.losses.required import required


class BranchLoss(nn.Module):
    """Mean of a bag loss over the branches that speak, each in the place of ``logits``: teaches ACMIL's and DTFD's.

    Args:
        loss: the bag loss, such as ``BagCrossEntropy``.

    Examples:
        >>> import torch
        >>> from monai_mil.losses import BagCrossEntropy, BranchLoss
        >>> output = {"branch_logits": torch.tensor([[[0.0, 0.0], [0.0, 5.0], [-torch.inf, -torch.inf]]])}
        >>> round(BranchLoss(BagCrossEntropy())(output, torch.tensor([1])).item(), 4)  # (0.6931 + 0.0067) / 2
        0.3499
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, output: Mapping[str, Tensor], label: Tensor) -> Tensor:
        """Scalar loss of ``output["branch_logits"]`` ``[b, t, c]``; a branch of ``-inf`` does not speak.

        Raises:
            ValueError: the network tells no branch logits.
        """
        logits = required(output, "branch_logits")
        speaks = logits.amax(dim=2) > -float("inf")
        if len(logits) == 1:  # the usual batch, for which nobody has to wait until the device knows who speaks
            each = logits[0].masked_fill(~speaks[0, :, None], 0.0).split(1)
            losses = torch.stack([self.loss({"logits": branch}, label) for branch in each])
            return losses.masked_fill(~speaks[0], 0.0).sum() / speaks.sum()
        bags = speaks.nonzero()[:, 0]
        return self.loss({"logits": logits[speaks]}, label[bags.to(label.device)])

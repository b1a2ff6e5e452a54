"""Supervision of every token, or voxel, by where the finding is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from monai_mil.losses.required import required


class TokenDice(nn.Module):
    """Binary cross-entropy and soft Dice of every token's evidence, their sum; MONAI's ``DiceCELoss`` bag by bag.

    For references that are taught where the finding is, such as a 3D U-Net: ``mean BCE(e, g) + 1 - (2 sum p g + eps) /
    (sum p + sum g + eps)`` with ``p = sigmoid(e)`` and ``g`` the share of a token's voxels that have the finding.

    Examples:
        >>> import torch
        >>> from monai_mil.losses import TokenDice
        >>> output = {"detection_logits": torch.tensor([100.0, -100.0]).view(1, 1, 2, 1, 1)}
        >>> round(TokenDice()(output, torch.tensor([1.0, 0.0]).view(1, 2, 1, 1, 1)).item(), 4)
        0.0
    """

    def __init__(self) -> None:
        super().__init__()
        from monai.losses import DiceCELoss

        self.loss = DiceCELoss(sigmoid=True)

    def forward(self, output: Mapping[str, Tensor], label: Tensor) -> Tensor:
        """Scalar loss of ``output["detection_logits"]`` ``[b, c, n, y, x]`` for shares ``[b, n, c, y, x]`` in 0 to 1.

        Raises:
            ValueError: the network tells no evidence of tokens, or the shapes do not fit.
        """
        evidence = required(output, "detection_logits")
        truth = label.to(evidence).transpose(1, 2)
        if truth.shape != evidence.shape:
            raise ValueError(
                f"evidence [b, c, n, y, x] is {list(evidence.shape)} and the truth {list(truth.shape)}: the network's "
                "map must have the grid of the bag"
            )
        mask = output.get("mask")
        losses = []
        for index in range(len(evidence)):
            real = slice(None) if mask is None else mask[index]
            losses.append(self.loss(evidence[index : index + 1, :, real], truth[index : index + 1, :, real]))
        return torch.stack(losses).mean()

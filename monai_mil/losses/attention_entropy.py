"""Attention entropy maximisation (Zhang et al. 2024, AEM): attention is not to rest on a few instances."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from monai_mil.losses.required import required
from monai_mil.networks import exact_dtype


class AttentionEntropy(nn.Module):
    """``sum_i a_i log a_i``, the negative entropy of the attention, which a network makes low by attending widely.

    Mean over heads and bags; its weight is the paper's lambda. ``-log n`` for a uniform attention, 0 for one that sees
    one instance. Any network with attention can be taught it.

    Examples:
        >>> import torch
        >>> from monai_mil.losses import AttentionEntropy
        >>> output = {"attention_logits": torch.zeros(1, 1, 4)}
        >>> round(AttentionEntropy()(output, torch.tensor([1])).item(), 4)  # -log 4
        -1.3863
    """

    def forward(self, output: Mapping[str, Tensor], label: Tensor) -> Tensor:
        """Scalar, 0 at most.

        Args:
            output: has ``attention_logits`` ``[b, h, n]``, ``-inf`` on padding.
            label: not read.

        Raises:
            ValueError: the network gives no attention.
        """
        scores = required(output, "attention_logits")
        logarithm = scores.to(exact_dtype(scores.dtype)).log_softmax(dim=2)
        attention = logarithm.exp()
        return (attention * logarithm.masked_fill(attention == 0, 0.0)).sum(dim=2).mean()

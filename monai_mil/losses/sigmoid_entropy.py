"""DEMIL's term: an instance is judged with decision (Tang et al., NeurIPS 2023)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from monai_mil.losses.required import required
from monai_mil.networks import exact_dtype


class SigmoidEntropy(nn.Module):
    """``-sum_i r_i log r_i`` of ``r_i = sigmoid(s_i)``, the attention before it is brought to sum 1 (DEMIPL, Eq. 4).

    It is 0 where every ``r_i`` is 0 or 1. Mean over heads and bags; its weight is the paper's lambda.

    Examples:
        >>> import torch
        >>> from monai_mil.losses import SigmoidEntropy
        >>> output = {"attention_logits": torch.zeros(1, 1, 4)}
        >>> round(SigmoidEntropy()(output, torch.tensor([1])).item(), 4)  # 4 times 0.5 log 2
        1.3863
    """

    def forward(self, output: Mapping[str, Tensor], label: Tensor) -> Tensor:
        """Scalar, at least 0.

        Args:
            output: has ``attention_logits`` ``[b, h, n]``, ``-inf`` on padding.
            label: not read.

        Raises:
            ValueError: the network gives no attention.
        """
        scores = required(output, "attention_logits")
        scores = scores.to(exact_dtype(scores.dtype))
        real = scores > -float("inf")
        scores = scores.masked_fill(~real, 0.0)
        entropy = -torch.sigmoid(scores) * nn.functional.logsigmoid(scores)
        return entropy.masked_fill(~real, 0.0).sum(dim=2).mean()

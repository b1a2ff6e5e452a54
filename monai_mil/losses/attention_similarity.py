"""ACMIL's diversity term: attention branches are to look at different instances."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_mil.losses.required import required
from monai_mil.networks import exact_matmul


class AttentionSimilarity(nn.Module):
    """Mean cosine similarity of the attention of every two heads; 0 where there is one.

    Examples:
        >>> import torch
        >>> from monai_mil.losses import AttentionSimilarity
        >>> apart = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        >>> AttentionSimilarity()({"attention": apart}, torch.tensor([1])).item()
        0.0
    """

    def forward(self, output: Mapping[str, Tensor], label: Tensor) -> Tensor:
        """Scalar, mean of the bags.

        Args:
            output: has ``attention`` ``[b, h, n]``, 0 on padding.
            label: not read.

        Raises:
            ValueError: the network gives no attention.
        """
        attention = required(output, "attention")
        heads = attention.shape[1]
        if heads == 1:
            return attention.sum() * 0.0
        unit = F.normalize(attention, dim=2)
        similar = exact_matmul(unit, unit.transpose(1, 2))
        first, second = torch.triu_indices(heads, heads, offset=1, device=similar.device)
        return similar[:, first, second].mean()

"""Gated attention scores of the rows of a bag, in plain operations."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from monai_mil.networks.contract import exact_dtype


class GatedAttention(nn.Module):
    """``s_i = w^T (tanh(V h_i) * sigmoid(U h_i))`` of Ilse et al. 2018, Eq. 9, before softmax.

    Args:
        width: of a row.
        attention_dim: rows of ``V`` and ``U``.
        heads: ``h``, each with its own ``w``.
    """

    def __init__(self, width: int, attention_dim: int, heads: int = 1) -> None:
        super().__init__()
        self.attention_dim = attention_dim
        self.gates = nn.Linear(width, 2 * attention_dim)
        self.score = nn.Linear(attention_dim, heads)

    def forward(self, rows: Tensor, mask: Tensor | None) -> Tensor:
        """Scores ``[b, h, n]`` of rows ``[b, n, i]``, ``-inf`` where the mask ``[b, n]`` is False, in float32 up."""
        gates = self.gates(rows.to(self.gates.weight.dtype))
        gated = torch.tanh(gates[:, :, : self.attention_dim]) * torch.sigmoid(gates[:, :, self.attention_dim :])
        scores = self.score(gated).transpose(1, 2)
        scores = scores.to(exact_dtype(scores.dtype))
        return scores if mask is None else scores.masked_fill(~mask[:, None], -float("inf"))

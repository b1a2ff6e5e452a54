"""ASMIL as its description reads: one attention block a token, every tile projected for each of them.

What :class:`monai_mil.networks.ASMIL` must equal; parameters bear the names of the released program.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Multi-head attention of one query ``[1, 1, i]`` to rows ``[1, n, i]``."""

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q_proj, self.k_proj = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.v_proj, self.out_proj = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.layer_norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, query: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        asked, keys, values = (
            layer(part).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer, part in ((self.q_proj, query), (self.k_proj, rows), (self.v_proj, rows))
        )
        scores = asked @ keys.mT / asked.shape[3] ** 0.5
        mixed = (scores.softmax(dim=3) @ values).transpose(1, 2).flatten(2)
        return self.layer_norm(F.dropout(self.out_proj(mixed), self.dropout, self.training))[:, 0], scores[:, :, 0]


class ByToken(nn.Module):
    """The whole network for one bag ``[1, n, d]``; ``drop`` tokens are hidden in training."""

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        hidden_dim: int,
        tokens: int = 8,
        heads: int = 8,
        drop: int = 0,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.drop = drop
        self.dimreduction = nn.ModuleDict({"fc1": nn.Linear(in_channels, hidden_dim, bias=False)})
        self.dimreduction["bn"] = nn.LayerNorm(hidden_dim)  # in every checkpoint, never applied
        self.q = nn.Parameter(1e-6 * torch.randn(1, tokens, hidden_dim))
        self.sub_attention = nn.ModuleList(Block(hidden_dim, heads, dropout) for _ in range(tokens))
        self.classifier = nn.ModuleList(
            nn.ModuleDict({"fc": nn.Linear(hidden_dim, num_classes)}) for _ in range(tokens)
        )
        self.cls = nn.Parameter(torch.zeros(1, 1, hidden_dim))
        self.bag_attention = Block(hidden_dim, heads, dropout)
        self.Slide_classifier = nn.ModuleDict({"fc": nn.Linear(hidden_dim, num_classes)})

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Token logits ``[t, c]``, logits ``[1, c]`` and attention before softmax ``[h, t, n]``."""
        hidden = F.relu(self.dimreduction["fc1"](rows))
        queries = self.q.split(1, dim=1)
        answers = [block(query, hidden) for block, query in zip(self.sub_attention, queries, strict=True)]
        features = torch.cat([feature for feature, _ in answers])
        tokens = torch.cat([head["fc"](row[None]) for head, row in zip(self.classifier, features, strict=True)])
        kept = list(range(len(features)))
        if self.training:
            hidden_tokens = set(torch.randperm(len(features))[: self.drop].tolist())
            kept = [token for token in kept if token not in hidden_tokens]
        bag, _ = self.bag_attention(self.cls, features[kept][None])
        return tokens, self.Slide_classifier["fc"](bag), torch.stack([scores[0] for _, scores in answers], dim=1)

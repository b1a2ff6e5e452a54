"""Multi-head attention of learned queries to the rows of a bag, without a projection of any row."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_mil.networks.contract import exact_matmul


class QueryAttention(nn.Module):
    """``t`` learned queries attend to the same rows, each through query, key, value and output projections of its own.

    ``s_n = (Wq q + bq) . (Wk h_n + bk) / sqrt(i / h)`` of every head, ``a = softmax(s)`` over the rows, and
    ``f = LN(dropout(Wo (sum_n a_n (Wv h_n + bv)) + bo))``, heads side by side.

    A query does not depend on the bag and an attention sums to 1, so this is done exactly without keys and values: the
    key projection is folded into the query (:meth:`probes`) and the value projection acts on the pooled row
    (:meth:`read`). A row costs ``t h`` products of width ``i`` twice, instead of ``t`` of ``i`` by ``i``.

    Args:
        channels: ``i``, width of a row.
        queries: ``t``.
        heads: ``h``, a divisor of ``channels``.
        dropout: on the result in training.
    """

    def __init__(self, channels: int, queries: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.token = nn.Parameter(torch.zeros(queries, channels))
        self.query = StackedLinear(queries, channels, channels)
        self.key = StackedLinear(queries, channels, channels)
        self.value = StackedLinear(queries, channels, channels)
        self.output = StackedLinear(queries, channels, channels)
        self.norm_weight = nn.Parameter(torch.ones(queries, channels))
        self.norm_bias = nn.Parameter(torch.zeros(queries, channels))

    def probes(self) -> tuple[Tensor, Tensor]:
        """Queries that meet rows as they are: ``[t h, i]`` and what is added to their product, ``[t h]``."""
        asked = self.query(self.token[None])[0].unflatten(1, [self.heads, -1])
        asked = asked / math.sqrt(asked.shape[2])
        probes = exact_matmul(asked[:, :, None], self.key.weight.unflatten(1, [self.heads, -1]))
        offsets = (asked * self.key.bias.unflatten(1, [self.heads, -1])).sum(dim=2)
        return probes.flatten(0, 2), offsets.flatten()

    def scores(self, rows: Tensor, mask: Tensor | None) -> Tensor:
        """Attention before softmax.

        Args:
            rows: ``[b, n, i]``.
            mask: True where a row is real, ``[b, n]``, or None.

        Returns:
            ``[b, t h, n]``, the heads of a query side by side, ``-inf`` on padding, float32 or better.
        """
        probes, offsets = self.probes()
        scores = exact_matmul(probes.expand(rows.shape[0], -1, -1), rows.transpose(1, 2)) + offsets[:, None]
        return scores if mask is None else scores.masked_fill(~mask[:, None], -float("inf"))

    def read(self, pooled: Tensor) -> Tensor:
        """What the queries make of the rows summed with their attention, ``[b, t h, i]`` to ``[b, t, i]``."""
        pooled = pooled.unflatten(1, [-1, self.heads]).permute(1, 2, 0, 3)
        values = exact_matmul(pooled, self.value.weight.unflatten(1, [self.heads, -1]).transpose(2, 3))
        merged = values.permute(2, 0, 1, 3).flatten(2) + self.value.bias
        result = F.dropout(self.output(merged), self.dropout, self.training)
        return F.layer_norm(result, [result.shape[2]], eps=1e-6) * self.norm_weight + self.norm_bias


class StackedLinear(nn.Module):
    """``t`` linear layers beside each other, initialised like ``torch.nn.Linear``.

    Args:
        count: ``t``.
        in_features: width of the input.
        out_features: width of the output.
    """

    def __init__(self, count: int, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(count, out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(count, out_features).uniform_(-bound, bound))

    def forward(self, rows: Tensor) -> Tensor:
        """``[b, t, in]`` to ``[b, t, out]``, row ``t`` through layer ``t``, float32 or better."""
        return exact_matmul(rows.transpose(0, 1), self.weight.transpose(1, 2)).transpose(0, 1) + self.bias

"""Nystroem attention (Xiong et al., AAAI 2021) as TransMIL and the Integrated Attention Transformer use it.

The approximation of ``softmax(Q K^T) V`` is ``A1 Z (A3 V)`` with ``A1 = softmax(Q K~^T)``, ``A3 = softmax(Q~ K^T)`` and
``Z`` the pseudo-inverse of ``A2 = softmax(Q~ K~^T)``, where ``Q~`` and ``K~`` are ``m`` landmarks: means of consecutive
tokens. Bracketed from the right it is two ordinary attentions, ``A3 V`` and then ``A1 (Z A3 V)``, none of which keeps
a matrix of ``n`` by ``m``: memory is linear in the tokens, whatever the number of landmarks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_mil.networks.contract import exact_dtype, exact_matmul


class NystromAttention(nn.Module):
    """Nystroem self-attention plus a depthwise convolution of the values along the tokens.

    Zero tokens are put in front until the landmarks divide their number; as in the reference they take part, so that
    the result depends on the length of the sequence, and on its order. Masks have no place here: the caller takes
    padding out first. Bags of a batch do not influence each other (the reference scales the pseudo-inverse's start by
    the largest sums of the whole batch; here they are those of one bag).

    Args:
        channels: ``D``.
        heads: ``h``, a divisor of ``D``.
        landmarks: ``m``.
        iterations: of the pseudo-inverse.
        kernel: taps of the convolution, odd.
        dropout: on the result in training.

    Raises:
        ValueError: ``heads`` does not divide ``channels``.
    """

    def __init__(
        self,
        channels: int,
        heads: int = 8,
        landmarks: int = 256,
        iterations: int = 6,
        kernel: int = 33,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"heads must divide the channels of the attention, got {heads} and {channels}")
        self.heads = heads
        self.landmarks = landmarks
        self.iterations = iterations
        self.dropout = dropout
        self.project = nn.Linear(channels, 3 * channels, bias=False)
        self.output = nn.Linear(channels, channels)
        self.mix = nn.Conv1d(heads, heads, kernel, padding=kernel // 2, groups=heads, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[b, n, D]`` to the same."""
        tokens, pad = self._pad(tokens)
        query, key, value = self._split(self.project(tokens), 3).unbind(0)
        query_marks, key_marks = self._marks(query), self._marks(key)
        read = self._read(query_marks, key_marks, key, value)
        mixed = F.scaled_dot_product_attention(query, key_marks, read.to(query.dtype)) + self._mix(value)
        return self._out(mixed)[:, pad:]

    def row(self, tokens: Tensor, place: int) -> Tensor:
        """The result of one token, for less than half of the work: ``forward(tokens)[:, place]``.

        Queries of the others are needed as landmarks only, and the mean of projections is the projection of the mean.

        Args:
            tokens: ``[b, n, D]``.
            place: of the token, from 0.

        Returns:
            ``[b, D]``.
        """
        tokens, pad = self._pad(tokens)
        reach = self.mix.weight.shape[2] // 2
        around = torch.arange(2 * reach + 1, device=tokens.device) + (place + pad)
        query_weight = self.project.weight[: tokens.shape[2]]
        marks = tokens.unflatten(1, [self.landmarks, -1]).mean(dim=2)
        query_marks = self._split(F.linear(marks, query_weight), 1)[0]
        query = self._split(F.linear(tokens.index_select(1, around[:1]), query_weight), 1)[0]
        key, value = self._split(F.linear(tokens, self.project.weight[tokens.shape[2] :]), 2).unbind(0)
        key_marks = self._marks(key)
        read = self._read(query_marks, key_marks, key, value)
        mixed = F.scaled_dot_product_attention(query, key_marks, read.to(query.dtype))
        near = F.pad(value, [0, 0, reach, reach]).index_select(2, around)
        mixed = mixed + (near * self.mix.weight[:, 0, :, None]).sum(dim=2, keepdim=True)
        return self._out(mixed)[:, 0]

    def scores(self, tokens: Tensor, place: int) -> Tensor:
        """Exact scores of one token's attention to all, before softmax and without approximation: ``[b, h, n]``.

        Args:
            tokens: ``[b, n, D]``.
            place: of the token that asks, from 0.
        """
        width = tokens.shape[2]
        asked = exact_matmul(tokens[:, place : place + 1], self.project.weight[:width].T)
        asked = asked.unflatten(2, [self.heads, -1]).transpose(1, 2) * (width // self.heads) ** -0.5
        # The key's weight is folded into the query: h rows meet the tokens instead of D.
        probe = exact_matmul(asked, self.project.weight[width : 2 * width].unflatten(0, [self.heads, -1]))
        return exact_matmul(probe.squeeze(2), tokens.transpose(1, 2))

    def _pad(self, tokens: Tensor) -> tuple[Tensor, int]:
        """Zero tokens in front until the landmarks divide their number, and how many they are."""
        count = tokens.shape[1]
        group = (count + self.landmarks - 1) // self.landmarks
        pad = group * self.landmarks - count
        return F.pad(tokens, [0, 0, pad, 0]), pad

    def _split(self, projected: Tensor, parts: int) -> Tensor:
        """``[b, n, parts D]`` to ``[parts, b, h, n, D / h]``."""
        return projected.unflatten(2, [parts, self.heads, -1]).permute(2, 0, 3, 1, 4)

    def _marks(self, rows: Tensor) -> Tensor:
        """Means of consecutive rows, ``[b, h, n, e]`` to ``[b, h, m, e]``."""
        return rows.unflatten(2, [self.landmarks, -1]).mean(dim=3)

    def _read(self, query_marks: Tensor, key_marks: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """``Z A3 V``, ``[b, h, m, e]``, float32 or better."""
        gathered = F.scaled_dot_product_attention(query_marks, key, value)
        scale = query_marks.shape[3] ** -0.5
        between = torch.softmax(exact_matmul(query_marks, key_marks.transpose(2, 3)) * scale, dim=3)
        return exact_matmul(pseudo_inverse(between, self.iterations), gathered)

    def _mix(self, value: Tensor) -> Tensor:
        """The convolution of every channel along the tokens, with its head's kernel, ``[b, h, n, e]``.

        Conv1d, because PyTorch's float32 gradient of the two-dimensional form is wrong on CPUs for some lengths.
        """
        rows = self.mix(value.permute(0, 3, 1, 2).flatten(0, 1))
        return rows.unflatten(0, [-1, value.shape[3]]).permute(0, 2, 3, 1)

    def _out(self, mixed: Tensor) -> Tensor:
        return F.dropout(self.output(mixed.transpose(1, 2).flatten(2)), self.dropout, self.training)


def pseudo_inverse(matrix: Tensor, iterations: int) -> Tensor:
    """Iterative Moore-Penrose inverse of Razavi et al., of matrices ``[b, h, m, m]``; float32 or better.

    ``Z <- Z (13 I - S (15 I - S (7 I - S))) / 4`` with ``S = A Z``, from ``A^T`` over the product of the largest row
    and column sum that any head of the bag has. Six iterations do not converge for hundreds of landmarks; the methods
    are defined with them as they are.
    """
    matrix = matrix.to(exact_dtype(matrix.dtype))
    rows = matrix.abs().sum(dim=3).amax(dim=[1, 2])
    columns = matrix.abs().sum(dim=2).amax(dim=[1, 2])
    inverse = matrix.transpose(2, 3) / (rows * columns)[:, None, None, None]
    one = torch.eye(matrix.shape[3], dtype=matrix.dtype, device=matrix.device)
    for _ in range(iterations):
        product = exact_matmul(matrix, inverse)
        inner = 15 * one - exact_matmul(product, 7 * one - product)
        inverse = 0.25 * exact_matmul(inverse, 13 * one - exact_matmul(product, inner))
    return inverse

"""Blocks of the transformers over CT slices: a class token, full attention, positions by depthwise convolution.

What a straightforward layer computes without need is left out where that is exact: the gradient of features that need
none (``normed_projection``); and in the last layer, where only the class token's row is used,
keys and values, which fold into that one row, ``q (W_k x) = (W_k^T q) x``, so that the layer costs ``heads * n * d``
instead of ``n * d^2 + n^2 * d``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_mil.networks.blocks.normed_projection import normed_projection
from monai_mil.networks.contract import exact_matmul
from monai_mil.networks.graph import is_recorded


class AttentionLayer(nn.Module):
    """Pre-norm multi-head attention, ``MHA(LN(x))``; the caller adds the residual.

    Args:
        channels: ``d``.
        heads: ``h``, a divisor of ``d``.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.width = channels // heads
        self.norm = nn.LayerNorm(channels)
        self.attention = nn.MultiheadAttention(channels, heads)  # holds the parameters and their initialisation

    def forward(self, token: Tensor, slices: Tensor, mask: Tensor | None, rows: int = -1) -> Tensor:
        """Attend from the first tokens to all; time is quadratic in ``n``, memory linear.

        Args:
            token: the class token, ``[b, 1, d]``.
            slices: ``[b, n, d]``.
            mask: True where a slice is real, ``[b, n]``, or None.
            rows: how many of the ``1 + n`` tokens ask; -1 for all.

        Returns:
            ``[b, rows, d]``.
        """
        projected = self._project(self.normalise(token), self.normalise(slices))
        projected = projected.reshape(slices.shape[0], -1, 3, self.heads, self.width)
        query, key, value = projected.permute(2, 0, 3, 1, 4).unbind(0)
        if rows >= 0:
            query = query[:, :, :rows]
        allowed: Tensor | None = None
        if mask is not None:
            allowed = mask_with_token(mask)[:, None, None]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        return self.attention.out_proj(mixed.transpose(1, 2).flatten(2))

    def _project(self, token: Tensor, slices: Tensor) -> Tensor:
        """Query, key and value of every token, one behind the other, ``[b, 1 + n, 3 d]``."""
        weight, bias = self.attention.in_proj_weight, self.attention.in_proj_bias
        if torch.jit.is_scripting() or is_recorded():
            return F.linear(self._affine(torch.cat([token, slices], dim=1)), weight, bias)
        return self._lean_project(token, slices)

    @torch.jit.unused
    def _lean_project(self, token: Tensor, slices: Tensor) -> Tensor:
        weight, bias = self.attention.in_proj_weight, self.attention.in_proj_bias
        return normed_projection(token, slices, self.norm.weight, self.norm.bias, weight, bias)

    def token_scores(self, token: Tensor, slices: Tensor, mask: Tensor | None) -> Tensor:
        """Log-softmax of the class token's attention over all tokens, itself first: ``[b, h, 1 + n]``, exact.

        Args:
            token: normalised by :meth:`normalise`, ``[b, 1, d]``.
            slices: likewise, ``[b, n, d]``.
            mask: True where a slice is real, ``[b, n]``, or None.
        """
        query_weight, key_weight = self.attention.in_proj_weight.chunk(3)[:2]
        query_bias = self.attention.in_proj_bias.chunk(3)[0]
        asked = exact_matmul(self._affine(token), query_weight.T) + query_bias
        asked = asked.unflatten(2, (self.heads, self.width)).transpose(1, 2)  # [b, h, 1, d / h]
        # A key's bias and the normalisation's shift are the same for every key: softmax takes them out.
        probe = exact_matmul(asked, key_weight.unflatten(0, (self.heads, self.width))).squeeze(2)
        probe = probe * self.norm.weight * self.width**-0.5
        scores = exact_matmul(probe, slices.transpose(1, 2))
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], -float("inf"))
        return torch.log_softmax(torch.cat([exact_matmul(probe, token.transpose(1, 2)), scores], dim=2), dim=2)

    def token_row(self, token: Tensor, slices: Tensor, scores: Tensor) -> Tensor:
        """The class token's row of the output, ``[b, 1, d]``, from :meth:`token_scores` and its arguments."""
        share = torch.exp(scores)
        pooled = exact_matmul(share[:, :, 1:], slices) + exact_matmul(share[:, :, :1], token)
        value_weight = self.attention.in_proj_weight.chunk(3)[2].unflatten(0, (self.heads, self.width))
        value_bias = self.attention.in_proj_bias.chunk(3)[2]
        row = exact_matmul(self._affine(pooled)[:, :, None], value_weight.transpose(1, 2)).flatten(1) + value_bias
        row = exact_matmul(row, self.attention.out_proj.weight.T) + self.attention.out_proj.bias
        return row[:, None]

    def normalise(self, rows: Tensor) -> Tensor:
        """``(x - mean) / std``, without the normalisation's scale and shift."""
        return F.layer_norm(rows, [self.width * self.heads], eps=self.norm.eps)

    def _affine(self, rows: Tensor) -> Tensor:
        return rows * self.norm.weight + self.norm.bias


class DepthwisePositions(nn.Module):
    """``x + k3 * x + k5 * x + k7 * x`` over the slices, depthwise and zero-padded: TransMIL's PPEG in one dimension.

    The three kernels are added up first: one convolution of width 7.

    Args:
        channels: ``d``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.three = nn.Conv1d(channels, channels, 3, groups=channels)
        self.five = nn.Conv1d(channels, channels, 5, groups=channels)
        self.seven = nn.Conv1d(channels, channels, 7, groups=channels)

    def forward(self, slices: Tensor, mask: Tensor | None) -> Tensor:
        """``[b, n, d]`` to the same; padding counts as the zeros beyond the scan's ends, and is 0 in the result."""
        if mask is not None:
            slices = slices.masked_fill(~mask[:, :, None], 0.0)
        kernel = F.pad(self.three.weight, [2, 2]) + F.pad(self.five.weight, [1, 1]) + self.seven.weight
        three, five, seven = self.three.bias, self.five.bias, self.seven.bias
        assert three is not None  # TorchScript cannot know
        assert five is not None
        assert seven is not None
        padded = F.pad(slices, [0, 0, 3, 3])
        slices = slices + (three + five + seven)
        for tap in range(7):  # as fast as a depthwise convolution of rows, and ONNX has none with a computed kernel
            slices = slices + padded[:, tap : tap + slices.shape[1]] * kernel[:, 0, tap]
        return slices if mask is None else slices.masked_fill(~mask[:, :, None], 0.0)


def mask_with_token(mask: Tensor) -> Tensor:
    """The mask of the class token and the slices, ``[b, 1 + n]``."""
    return torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)


def class_token_output(token: Tensor, scores: Tensor, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """The output dict of a network that classifies its class token.

    Args:
        token: the class token behind the last layer, ``[b, 1, d]``.
        scores: of :meth:`AttentionLayer.token_scores`.
        weight: of the classifier, ``[c, d]``.
        bias: likewise, ``[c]``.
    """
    bag = token.squeeze(1)
    share_logits = scores[:, :, 1:]
    return {
        "logits": exact_matmul(bag, weight.T) + bias,
        "attention": torch.softmax(share_logits, dim=2),
        "attention_share": torch.exp(share_logits),
        "attention_logits": share_logits,
        "bag": bag,
    }

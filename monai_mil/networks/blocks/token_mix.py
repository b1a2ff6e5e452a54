"""A depthwise convolution of every head's channels along the tokens, as matrix products of blocks of tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

BLOCK = 64
"""Tokens of a block: what a product computes too much is ``kernel / BLOCK`` of it."""


def mix_tokens(value: Tensor, weight: Tensor) -> Tensor:
    """``y_i = sum_t w_t x_(i + t - k // 2)`` with zeros beyond the ends.

    On a CPU products of a band matrix take a fifth of the time of Conv1d, which wants the tokens last, in a copy that
    it keeps for the gradient. PyTorch's float32 gradient of the two-dimensional form is wrong there for some lengths.

    Args:
        value: ``[b, h, n, e]``, any strides.
        weight: a kernel of ``k`` taps, odd, for each head, ``[h, 1, k]``.

    Returns:
        The same shape; in memory a token's heads lie side by side.
    """
    if value.is_cpu:
        return _MixTokens.apply(value, weight)
    rows = F.conv1d(value.permute(0, 3, 1, 2).flatten(0, 1), weight, padding=weight.shape[2] // 2, groups=len(weight))
    return rows.unflatten(0, [-1, value.shape[3]]).permute(0, 2, 3, 1)


class _MixTokens(torch.autograd.Function):
    """The differentiable form: saves what it was given."""

    @staticmethod
    def forward(value: Tensor, weight: Tensor) -> Tensor:
        return _mixed(value, weight.to(value.dtype))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        value, weight = ctx.saved_tensors
        grad_value = _mixed(grad, weight.flip(2).to(grad.dtype)) if ctx.needs_input_grad[0] else None
        return grad_value, _kernel_gradient(value, grad, weight) if ctx.needs_input_grad[1] else None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], *tensors: Tensor) -> tuple[Tensor, int]:
        """Under ``torch.func.vmap`` one example after the other, as kernels differ."""
        parts = (
            [tensor] * info.batch_size if where is None else tensor.unbind(where)
            for tensor, where in zip(tensors, in_dims, strict=True)
        )
        return torch.stack([_MixTokens.apply(*each) for each in zip(*parts, strict=True)]), 0


def _mixed(value: Tensor, weight: Tensor) -> Tensor:
    bags, heads, count, width = value.shape
    taps = weight.shape[2]
    mixed = value.new_empty(bags, count, heads, width)
    rows = _padded(value, taps)
    for head in range(heads):
        band = value.new_zeros(BLOCK, BLOCK + taps - 1)
        _diagonals(band, taps).copy_(weight[head])
        for bag in range(bags):
            rows[taps // 2 : taps // 2 + count] = value[bag, head]
            blocks = _blocks(rows, BLOCK + taps - 1)
            mixed[bag, :, head] = torch.bmm(band.expand(len(blocks), -1, -1), blocks).flatten(0, 1)[:count]
    return mixed.transpose(1, 2)


def _kernel_gradient(value: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
    bags, heads, count, _ = value.shape
    taps = weight.shape[2]
    rows, grads = _padded(value, taps), _padded(grad, 1)
    total = torch.zeros_like(weight)
    for head in range(heads):
        for bag in range(bags):
            rows[taps // 2 : taps // 2 + count] = value[bag, head]
            grads[:count] = grad[bag, head]
            met = torch.bmm(_blocks(grads, BLOCK), _blocks(rows, BLOCK + taps - 1).transpose(1, 2))
            total[head, 0] += _diagonals(met.sum(dim=0, dtype=weight.dtype), taps).sum(dim=0)
    return total


def _padded(value: Tensor, taps: int) -> Tensor:
    """Zeros for the rows of one head, filled up to whole blocks, and half a kernel on both sides."""
    return value.new_zeros(-(-value.shape[2] // BLOCK) * BLOCK + taps - 1, value.shape[3])


def _blocks(rows: Tensor, length: int) -> Tensor:
    """The blocks of ``rows`` ``[m, e]``, each with what the kernel sees beside it: views ``[m', length, e]``."""
    return rows.unfold(0, length, BLOCK).transpose(1, 2)


def _diagonals(band: Tensor, taps: int) -> Tensor:
    """Where row ``r`` of a matrix of a block meets token ``r + t``: a view ``[BLOCK, taps]``."""
    return band.as_strided([BLOCK, taps], [band.shape[1] + 1, 1])

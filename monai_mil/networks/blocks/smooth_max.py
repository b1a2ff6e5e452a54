"""SmoothMax: the mean of a map, weighted by the exponential of itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from monai_mil.networks.graph import is_recorded

_BLOCK = 65536


def smooth_max(values: Tensor, alpha: float, counted: Tensor | None = None) -> Tensor:
    """INSIGHT Eq. 3: ``p = sum_i v_i exp(alpha v_i) / sum_i exp(alpha v_i)``.

    ``alpha`` 0 gives the mean, a large one the maximum. The largest value is subtracted before the exponential, so
    that any ``alpha`` is finite; sums are added up in float64, because a slide has millions of tokens.

    Args:
        values: rows ``[..., m]`` of finite values.
        alpha: sharpness.
        counted: True where a value takes part, broadcastable to ``values``, at least once a row; None if all do.

    Returns:
        ``[...]``, of the type of ``values``.
    """
    if counted is not None:
        values = values.masked_fill(~counted, 0.0)
    largest = values.detach().amax(dim=-1, keepdim=True)
    if torch.jit.is_scripting() or is_recorded():
        return _in_one(values, largest, alpha, counted)
    return _in_blocks(values, largest, alpha, counted)


def _in_one(values: Tensor, largest: Tensor, alpha: float, counted: Tensor | None) -> Tensor:
    weights = _weights(values, largest, alpha, counted)
    total = weights.sum(dim=-1, dtype=torch.float64)
    return ((weights * values).sum(dim=-1, dtype=torch.float64) / total).to(values.dtype)


@torch.jit.unused
def _in_blocks(values: Tensor, largest: Tensor, alpha: float, counted: Tensor | None) -> Tensor:
    return _SmoothMax.apply(values, largest, alpha, counted)


def _weights(values: Tensor, largest: Tensor, alpha: float, counted: Tensor | None) -> Tensor:
    weights = torch.exp(alpha * (values - largest))
    return weights if counted is None else weights.masked_fill(~counted, 0.0)


class _SmoothMax(torch.autograd.Function):
    """Block by block, keeping nothing but the values: ``dp/dv_i = w_i (1 + alpha (v_i - p))``, ``w`` of sum 1."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, largest: Tensor, alpha: float, counted: Tensor | None) -> Tensor:
        total, weighted = (values.new_zeros(values.shape[:-1], dtype=torch.float64) for _ in range(2))
        for part, real in _blocks(values, counted):
            weights = _weights(part, largest, alpha, real)
            total += weights.sum(dim=-1, dtype=torch.float64)
            weighted += (weights * part).sum(dim=-1, dtype=torch.float64)
        pooled = weighted / total
        ctx.alpha = alpha
        ctx.save_for_backward(values, largest, counted, pooled, total)
        return pooled.to(values.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, largest, counted, pooled, total = ctx.saved_tensors
        pooled, factor = pooled.to(values.dtype)[..., None], (grad / total).to(values.dtype)[..., None]
        gradient = torch.empty_like(values)
        for (part, real), target in zip(_blocks(values, counted), gradient.split(_BLOCK, dim=-1), strict=True):
            weights = _weights(part, largest, ctx.alpha, real)
            target.copy_(weights * factor * (1 + ctx.alpha * (part - pooled)))
        return gradient, None, None, None


def _blocks(values: Tensor, counted: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
    parts = values.split(_BLOCK, dim=-1)
    real = [None] * len(parts) if counted is None else counted.expand_as(values).split(_BLOCK, dim=-1)
    return list(zip(parts, real, strict=True))

"""Projection of normalised rows whose gradient costs one product where the rows need none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from monai_mil.networks.blocks.attention_pool import compute_dtype
from monai_mil.networks.contract import exact_dtype


def normed_projection(
    token: Tensor, slices: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """``W (scale * x + shift) + b`` for the class token and the slices behind it.

    The gradients of ``scale`` and ``shift`` follow from ``G = sum_i g_i x_i^T``, which the gradient of ``W`` needs
    anyway, so that slices which need no gradient themselves (features from disk) cost no product with ``W``.

    Args:
        token: normalised, ``[b, 1, d]``.
        slices: normalised, ``[b, n, d]``.
        scale: of the layer normalisation, ``[d]``.
        shift: likewise.
        weight: ``[e, d]``.
        bias: ``[e]``.

    Returns:
        ``[b, 1 + n, e]``, in the autocast type where autocast is on.
    """
    return _NormedProjection.apply(token, slices, scale, shift, weight, bias, compute_dtype(weight))


class _NormedProjection(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        token: Tensor,
        slices: Tensor,
        scale: Tensor,
        shift: Tensor,
        weight: Tensor,
        bias: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.save_for_backward(token, slices, scale, shift, weight)
        ctx.dtype = dtype
        with torch.autocast(token.device.type, enabled=False):
            rows = torch.addcmul(shift, torch.cat([token, slices], dim=1), scale)
            return F.linear(rows.to(dtype), weight.to(dtype), bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        token, slices, scale, shift, weight = ctx.saved_tensors
        exact = exact_dtype(weight.dtype)
        with torch.autocast(grad.device.type, enabled=False):
            cast, weight = weight.to(ctx.dtype), weight.to(exact)
            rows = torch.cat([token, slices], dim=1).to(ctx.dtype)
            outer = (grad.flatten(0, 1).T @ rows.flatten(0, 1)).to(exact)
            grad_bias = grad.sum(dim=(0, 1), dtype=exact)
            grad_scale = (outer * weight).sum(dim=0)
            grad_shift = grad_bias @ weight
            grad_token = (grad[:, :1] @ cast).to(exact) * scale if ctx.needs_input_grad[0] else None
            grad_slices = (grad[:, 1:] @ cast).to(exact) * scale if ctx.needs_input_grad[1] else None
            grad_weight = outer.mul_(scale).addr_(grad_bias, shift)
        return grad_token, grad_slices, grad_scale, grad_shift, grad_weight, grad_bias, None

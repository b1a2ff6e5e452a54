"""The smooth operator along a scan (Castro-Macías et al., "Sm: enhanced localization in MIL", NeurIPS 2024).

``g = argmin (1 - a) ||g - f||^2 + a * (roughness of g)`` between slices that lie at most ``neighbours`` apart, through
the row-normalised adjacency ``A`` of that path (no self-loops): ``g <- (1 - a) f + a A g`` from ``g = f``, a fixed
number of times, or the limit ``(I - a A) g = (1 - a) f``. Nothing of size ``[n, n]`` is ever made: a step is a shift
and an average, the limit a block-tridiagonal solve; time and memory grow with ``n``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from monai_mil.networks.contract import exact_dtype
from monai_mil.networks.graph import is_recorded

SOLVE_BLOCK = 32
"""Slices eliminated at once by the exact solve, where the neighbourhood is not wider."""


class SmoothOperator(nn.Module):
    """Smooth signals along the slices of a scan; its strength ``a = sigmoid(raw_alpha)`` is learned.

    A slice without neighbours, as in a scan of one, is multiplied by ``1 - a``: its row of ``A`` is 0, as in the
    reference implementation. A hole in the mask is a slice that is missing: nothing is averaged across it except by
    neighbours that reach over it.

    Args:
        neighbours: slices ``i`` and ``j`` are neighbours where ``0 < |i - j| <= neighbours``.
        steps: how often to average.
        exact: solve for the limit of infinitely many steps instead; ONNX cannot hold it.

    Raises:
        ValueError: ``neighbours`` or ``steps`` is below 1.
    """

    def __init__(self, neighbours: int = 1, steps: int = 10, exact: bool = False) -> None:
        super().__init__()
        if neighbours < 1 or steps < 1:
            raise ValueError(f"neighbours and steps must be at least 1, got {neighbours} and {steps}")
        self.neighbours = neighbours
        self.steps = steps
        self.exact = exact
        self.raw_alpha = nn.Parameter(torch.tensor(0.0))

    def forward(self, signal: Tensor, mask: Tensor | None = None, transposed: bool = False) -> Tensor:
        """``S f`` for every channel, where ``S`` is the operator, or ``S^T f``.

        ``S`` acts on slices only, so it commutes with any linear map of the channels.

        Args:
            signal: ``f``, slices last, ``[b, c, n]``.
            mask: True where a slice is real, ``[b, n]``; None if all are. What lies under False
                never matters.
            transposed: apply ``S^T``: ``<S^T u, v> = <u, S v>``.

        Returns:
            ``[b, c, n]``, float32 or better, 0 on padding.
        """
        signal = signal.to(exact_dtype(signal.dtype))
        inverse_degree = self._inverse_degree(signal, mask)
        if mask is not None:
            signal = signal.masked_fill(~mask[:, None], 0.0)
        if torch.jit.is_scripting():
            return self._whole(signal, inverse_degree, transposed)
        with torch.autocast(signal.device.type, enabled=False):
            if is_recorded():
                return self._whole(signal, inverse_degree, transposed)
            return self._lean(signal, inverse_degree, transposed)

    def _inverse_degree(self, signal: Tensor, mask: Tensor | None) -> Tensor:
        """``1 / number of neighbours`` of every real slice that has any, else 0: ``[b or 1, 1, n]``."""
        real = torch.ones_like(signal[:1, :1]) if mask is None else mask[:, None].to(signal.dtype)
        degree = neighbour_sum(real, self.neighbours)
        return real * (degree > 0).to(real.dtype) / degree.clamp(min=1)

    @torch.jit.unused
    def _lean(self, signal: Tensor, inverse_degree: Tensor, transposed: bool) -> Tensor:
        alpha = torch.sigmoid(self.raw_alpha).to(signal.dtype)
        if self.exact:
            return _Solve.apply(signal, alpha, inverse_degree, self.neighbours, transposed)
        return _Steps.apply(signal, alpha, inverse_degree, self.neighbours, self.steps, transposed)

    def _whole(self, signal: Tensor, inverse_degree: Tensor, transposed: bool) -> Tensor:
        """The same in plain operations: what TorchScript, traces and ONNX hold.

        The exact solve is dense here, and not for ONNX, which has none.
        """
        alpha = torch.sigmoid(self.raw_alpha).to(signal.dtype)
        if self.exact:
            index = torch.arange(signal.shape[2], device=signal.device)
            apart = (index[:, None] - index).abs()
            average = inverse_degree.transpose(1, 2) * ((apart > 0) & (apart <= self.neighbours)).to(signal.dtype)
            system = torch.eye(signal.shape[2], dtype=signal.dtype, device=signal.device) - alpha * average
            if not transposed:
                system = system.transpose(1, 2)
            return torch.linalg.solve(system, (1 - alpha) * signal, left=False)
        state = signal
        for _ in range(self.steps):
            if transposed:
                average = neighbour_sum(state * inverse_degree, self.neighbours)
            else:
                average = neighbour_sum(state, self.neighbours) * inverse_degree
            state = (1 - alpha) * signal + alpha * average
        return state


def neighbour_sum(signal: Tensor, neighbours: int) -> Tensor:
    """Sum of what lies at most ``neighbours`` slices away on either side, ``[..., n]``."""
    padded = F.pad(signal, [neighbours, neighbours + 1])
    total = torch.zeros_like(signal)
    for offset in range(1, neighbours + 1):  # ends counted from behind: ONNX would write a length down as a number
        total = total + padded[:, :, neighbours - offset : -neighbours - offset - 1]
        total = total + padded[:, :, neighbours + offset : offset - neighbours - 1]
    return total


class _Steps(torch.autograd.Function):
    """The steps with two buffers in all and nothing kept for the gradient but the signal.

    The operator is the polynomial ``S = sum_j c_j(a) A^j``: the signal's gradient is the transposed polynomial of the
    output's, and that of ``a`` the same sum with the coefficients' derivatives.
    """

    @staticmethod
    def forward(
        ctx: Any, signal: Tensor, alpha: Tensor, inverse_degree: Tensor, neighbours: int, steps: int, transposed: bool
    ) -> Tensor:
        ctx.save_for_backward(signal, alpha, inverse_degree)
        ctx.settings = neighbours, steps, transposed
        average = _Average(signal, inverse_degree, neighbours, transposed)
        state = signal
        out = torch.empty_like(signal)
        for _ in range(steps):
            state = torch.lerp(signal, average(state), alpha, out=out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        signal, alpha, inverse_degree = ctx.saved_tensors
        neighbours, steps, transposed = ctx.settings
        average = _Average(grad, inverse_degree, neighbours, not transposed)
        power, grad_signal, slope = grad, (1 - alpha) * grad, -(grad * signal).sum()
        for step in range(1, steps + 1):
            power = average(power)
            last = step == steps
            weight = alpha**step if last else (1 - alpha) * alpha**step
            derivative = step * alpha ** (step - 1) - (0 if last else (step + 1) * alpha**step)
            grad_signal.addcmul_(power, weight)
            if ctx.needs_input_grad[1]:
                slope = slope + derivative * (power * signal).sum()
        return grad_signal, slope, None, None, None, None


class _Average:
    """``A v`` or ``A^T v`` in a buffer that the next call overwrites.

    Args:
        like: a tensor of the shape and memory order to come, ``[b, c, n]``.
        inverse_degree: ``[b or 1, 1, n]``.
        neighbours: reach of the average.
        transposed: ``A^T v``.
    """

    def __init__(self, like: Tensor, inverse_degree: Tensor, neighbours: int, transposed: bool) -> None:
        batch, channels, length = like.shape
        if like.stride(1) == 1:
            padded = like.new_zeros(batch, length + 2 * neighbours, channels).mT
        else:
            padded = like.new_zeros(batch, channels, length + 2 * neighbours)
        self.middle = padded[:, :, neighbours : neighbours + length]
        self.sides = [
            (padded[:, :, neighbours - offset :][:, :, :length], padded[:, :, neighbours + offset :][:, :, :length])
            for offset in range(1, neighbours + 1)
        ]
        self.total = torch.empty_like(self.middle)
        self.inverse_degree, self.transposed = inverse_degree, transposed

    def __call__(self, values: Tensor) -> Tensor:
        if self.transposed:
            torch.mul(values, self.inverse_degree, out=self.middle)
        else:
            self.middle.copy_(values)
        torch.add(*self.sides[0], out=self.total)
        for left, right in self.sides[1:]:
            self.total += left
            self.total += right
        if not self.transposed:
            self.total *= self.inverse_degree
        return self.total


class _Solve(torch.autograd.Function):
    """``(I - a A) g = (1 - a) f``; the gradient is a solve with the transposed system."""

    @staticmethod
    def forward(
        ctx: Any, signal: Tensor, alpha: Tensor, inverse_degree: Tensor, neighbours: int, transposed: bool
    ) -> Tensor:
        smooth = (1 - alpha) * _solve_path(signal, alpha * inverse_degree, neighbours, transposed)
        ctx.save_for_backward(signal, smooth, alpha, inverse_degree)
        ctx.settings = neighbours, transposed
        return smooth

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        signal, smooth, alpha, inverse_degree = ctx.saved_tensors
        neighbours, transposed = ctx.settings
        adjoint = _solve_path(grad, alpha * inverse_degree, neighbours, not transposed)
        residual = _Average(smooth, inverse_degree, neighbours, transposed)(smooth) - signal
        return (1 - alpha) * adjoint, (adjoint * residual).sum(), None, None, None


def _solve_path(signal: Tensor, weight: Tensor, neighbours: int, transposed: bool) -> Tensor:
    """Solve ``(I - diag(w) N) g = f`` or its transpose, ``N`` the adjacency of the path, by block elimination.

    The system is diagonally dominant by rows (transposed: by columns), so no pivoting across blocks is needed.

    Args:
        signal: ``f``, ``[b, c, n]``.
        weight: ``w``, ``[b or 1, 1, n]``, with ``sum_j w_i N_ij < 1``.
        neighbours: half-width of ``N``'s band.
        transposed: solve with ``I - N diag(w)``.
    """
    batch, channels, length = signal.shape
    size = max(SOLVE_BLOCK, neighbours)
    blocks = -(-length // size)
    short = (0, blocks * size - length)
    sides = F.pad(signal, short).mT.unflatten(1, (blocks, size)).unbind(1)  # [b, size, c] each
    weights = F.pad(weight, short).mT.unflatten(1, (blocks, size)).unbind(1)  # [b or 1, size, 1] each
    index = torch.arange(size, device=signal.device)
    apart = index[:, None] - index
    one = torch.eye(size, dtype=signal.dtype, device=signal.device)
    inside = ((apart != 0) & (apart.abs() <= neighbours)).to(signal.dtype)
    after = ((apart + size) <= neighbours).to(signal.dtype).T  # to the block that follows

    def coupling(link: Tensor, row: int, column: int) -> Tensor:
        return link * weights[column].mT if transposed else link * weights[row]

    uppers: list[Tensor] = []
    partial: list[Tensor] = []
    for block in range(blocks):
        diagonal = one - coupling(inside, block, block)
        side = sides[block]
        if block:
            lower = coupling(after.T, block, block - 1)
            diagonal = diagonal - lower @ uppers[-1]
            side = side + lower @ partial[-1]
        follows = coupling(after, block, min(block + 1, blocks - 1))
        right = torch.cat([follows.expand(batch, -1, -1), side], dim=2)
        upper, solved = torch.linalg.solve(diagonal, right).split([size, channels], dim=2)
        uppers.append(upper)
        partial.append(solved)
    for block in range(blocks - 2, -1, -1):
        partial[block] = partial[block] + uppers[block] @ partial[block + 1]
    return torch.cat(partial, dim=1)[:, :length].mT

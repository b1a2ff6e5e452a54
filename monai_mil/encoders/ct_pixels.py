"""CT slices as they are, for networks that look at pixels themselves."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CT_PIXELS_VERSION = "ct_pixels/1"


class CTPixels(nn.Module):
    """The prepared slice itself: a token a pixel, of one value; no weights.

    Bags of it are volumes of grey values, ``[1, n, 128, 128]``, for :class:`monai_mil.networks.VolumeClassifier`. The
    pooled vector is the slice's mean grey value, which is of little use.

    Args:
        spatial: give the token map, not the pooled vector.
    """

    def __init__(self, spatial: bool) -> None:
        super().__init__()
        self.spatial = spatial

    def forward(self, slices: Tensor) -> Tensor:
        """Slices ``[b, 3, s, s]`` of one window as float32 ``[b, 1]``, spatial ``[b, s, s, 1]``."""
        grey = slices[:, :1].to(torch.float32)
        return grey.permute(0, 2, 3, 1) if self.spatial else grey.mean(dim=(2, 3))

"""INSIGHT without any reference's files: parameters, input and numbers by the recipe of its specification, float64."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from monai_mil.networks import INSIGHT
from monai_mil.networks.blocks.insight_tiles import TokenLayer


def sequence(shape: tuple[int, ...], counter: int) -> Tensor:
    """Numbers between -1 and 1 that look random, the same on every machine."""
    i = np.arange(np.prod(shape), dtype=np.int64)
    values = 2 * (((7 * i**2 + 7919 * i + 104729 * (counter + 1)) % 10007) / 10007) - 1
    return torch.from_numpy(values).reshape(shape)


def network() -> INSIGHT:
    """Two labels, 1024 channels, 14 x 14 tokens."""
    insight = INSIGHT(1024, 2).double()
    tiles = insight.tiles
    layers = [tiles.projection, *tiles.detection, tiles.detection_score, *tiles.context, tiles.context_score]
    counter = 0
    with torch.no_grad():
        for layer in layers:
            convolution = layer.convolution if isinstance(layer, TokenLayer) else layer
            fan_in = convolution.weight[0].numel()
            convolution.weight.copy_(sequence(convolution.weight.shape, counter) * (3 / fan_in) ** 0.5)
            convolution.bias.copy_(0.1 * sequence(convolution.bias.shape, counter + 1))
            counter += 2
            if isinstance(layer, TokenLayer):
                shape = (len(convolution.bias), 14, 14)
                layer.scale.copy_(1 + 0.1 * sequence(shape, counter).permute(1, 2, 0))
                layer.shift.copy_(0.1 * sequence(shape, counter + 1).permute(1, 2, 0))
                counter += 2
    return insight


def image() -> Tensor:
    """A bag of six tiles, ``[1, 1024, 6, 14, 14]``."""
    return 2 * sequence((6, 1024, 14, 14), 999).transpose(0, 1)[None]

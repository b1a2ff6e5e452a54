"""uint8 tiles to the tensor a network was trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_mil.encoders.card import Preprocessing


def prepare(tiles: Tensor, settings: Preprocessing, dtype: torch.dtype = torch.float32) -> Tensor:
    """Resize, crop and normalise.

    Args:
        tiles: uint8 RGB ``[b, 3, s, s]``, any ``s``, any memory layout.
        settings: what the encoder's card says.
        dtype: of the result, unless ``settings.mean`` is None and pixels stay uint8.

    Returns:
        ``[b, 3, input_size, input_size]``, channels-last in memory.
    """
    images = _resize(tiles.contiguous(memory_format=torch.channels_last), settings)
    if settings.mean is None:
        return images
    b, c, h, w = images.shape
    # One row of w pixels is one vector of 3w: adding per channel on channels-last memory would run in steps of 3.
    rows = images.permute(0, 2, 3, 1).reshape(b, h, w * c)
    mean, std = (_row(values, w, tiles.device) for values in (settings.mean, settings.std))
    normalised = rows.float()
    # In place: fresh memory costs more than the arithmetic.
    torch.addcmul(-mean / std, normalised, 1 / (255 * std), out=normalised)
    return normalised.to(dtype).view(b, h, w, c).permute(0, 3, 1, 2)


def _row(values: Sequence[float], width: int, device: torch.device) -> Tensor:
    """One value a channel, for every pixel of a row; filled in there, for a copy to a GPU would wait for its work."""
    return torch.cat([torch.full((1,), value, device=device) for value in values]).repeat(width)


def _resize(tiles: Tensor, settings: Preprocessing) -> Tensor:
    side = settings.resize or settings.input_size
    if tiles.shape[-2:] != (side, side):
        # Torch resizes uint8 on the CPU only.
        pixels = tiles if tiles.device.type == "cpu" else tiles.float()
        resized = F.interpolate(pixels, size=(side, side), mode=settings.interpolation, antialias=True)
        tiles = resized if resized.dtype == torch.uint8 else resized.round_().clamp_(0, 255).to(torch.uint8)
    margin = (side - settings.input_size) // 2
    return tiles[:, :, margin : margin + settings.input_size, margin : margin + settings.input_size]

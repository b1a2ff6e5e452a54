"""What INSIGHT takes: bags of tokens or of their codes, with masks of instances or of tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def instance_mask(mask: Tensor | None) -> Tensor | None:
    """The mask ``[b, n]`` of instances for one of instances or tokens: an instance is real if a token of it is."""
    if mask is None:
        return None
    return mask if mask.dim() != 4 else mask.flatten(2).any(dim=2)


def check_tokens(image: Tensor, channels: int, height: int, width: int) -> None:
    """Raise a ValueError unless bags ``[b, d, n, h, w]`` have ``channels`` and, where ``height`` is not 0, the grid."""
    if image.dim() != 5 or image.shape[1] != channels:
        raise ValueError(f"INSIGHT takes bags [b, {channels}, n, h, w], got {list(image.shape)}")
    if height > 0 and (image.shape[3] != height or image.shape[4] != width):
        raise ValueError(
            f"this INSIGHT was made for tokens on a grid {height} x {width}, the bag has "
            f"{image.shape[3]} x {image.shape[4]}"
        )


def check_codes(image: Tensor, scale: Tensor | None, offset: Tensor | None) -> None:
    """Raise a ValueError unless ``image`` holds features, or codes whose scale and offset ``[b, d]`` come with them."""
    if scale is None or offset is None:
        if scale is not None or offset is not None or not image.is_floating_point():
            raise ValueError(f"features are floating point, or uint8 codes with 'scale' and 'offset': {image.dtype}")
    else:
        wanted = [image.shape[0], image.shape[1]]
        if list(scale.shape) != wanted or list(offset.shape) != wanted:
            raise ValueError(
                f"scale and offset of codes {list(image.shape)} are {wanted}, got {list(scale.shape)} and "
                f"{list(offset.shape)}"
            )


def check_token_mask(maps: Tensor, mask: Tensor | None) -> None:
    """Raise a ValueError if ``mask`` is one of tokens and not that of ``maps`` ``[b, c, n, h, w]``."""
    if mask is not None and mask.dim() == 4 and (mask.dtype != torch.bool or mask.shape[2:] != maps.shape[3:]):
        raise ValueError(
            f"a mask of tokens, {mask.dtype} {list(mask.shape)}, does not fit a bag {list(maps.shape)}: "
            "bool [b, n, h, w]"
        )


def non_finite_message(network: nn.Module, finite: Tensor) -> str:
    """The error for heatmaps ``[b, c, n, h, w]`` that are not all ``finite``: blames weights, bag or float16."""
    spoilt = [name for name, parameter in network.named_parameters() if not parameter.isfinite().all()]
    if spoilt:
        return (
            f"the network's weights are not finite, first '{spoilt[0]}': its training has diverged; go back to an "
            "earlier checkpoint and lower the learning rate"
        )
    bag, instance = torch.nonzero(~finite.flatten(3).all(dim=3).all(dim=1))[0].tolist()
    where = f"bag {bag} of the batch has features that are not finite, first in instance {instance}"
    device = finite.device.type
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16:
        return where + "; or they are too large for autocast's float16, take bfloat16"
    return where

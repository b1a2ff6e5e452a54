"""From a card to an encoder that runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from torch import nn

from monai_mil.encoders.card import EncoderCard, NumberType
from monai_mil.encoders.ct_pixels import CT_PIXELS_VERSION, CTPixels
from monai_mil.encoders.ct_texture import CTTextureBank
from monai_mil.encoders.ct_texture_designs import CT_TEXTURE, CT_TEXTURE_518
from monai_mil.encoders.efficientnet_lite import EfficientNetLite0
from monai_mil.encoders.encoder import Encoder
from monai_mil.encoders.texture import TEXTURE_VERSION, TextureBank
from monai_mil.encoders.tile_pixels import TILE_PIXELS_VERSION, TilePixels
from monai_mil.encoders.weights import digest_file, digest_text, digest_weights
from monai_mil.errors import EncoderError

_BANKS: dict[str, tuple[str, Callable[[bool], nn.Module]]] = {
    "texture": (TEXTURE_VERSION, TextureBank),
    "ct_texture": (CT_TEXTURE.version, partial(CTTextureBank, CT_TEXTURE)),
    "ct_texture_518": (CT_TEXTURE_518.version, partial(CTTextureBank, CT_TEXTURE_518)),
    "ct_pixels": (CT_PIXELS_VERSION, CTPixels),
    "tile_pixels": (TILE_PIXELS_VERSION, TilePixels),
}
"""Encoders without weights: their version and what builds them."""

_CPU_CHUNK = 8
_SMALL_CHUNK = 4
_GPU_CHUNK = 1024
"""Tiles a call works on at a time; on a CPU as many as its cache holds."""


def load_encoder(
    card: EncoderCard,
    *,
    spatial: bool,
    weights: str | Path | None,
    device: str | torch.device,
    dtype: torch.dtype | NumberType | None,
) -> Encoder:
    """Build the card's network, fill it with weights and wrap it; see :func:`monai_mil.encoders.get_encoder`."""
    device = _device(device, card.name)
    dtype = _default_dtype(device, card) if dtype is None else _given_dtype(dtype, card)
    model, digest = _model(card, spatial, weights)
    model = model.eval().requires_grad_(False).to(device)
    bank = card.architecture in _BANKS
    small = bank or card.architecture == "efficientnet_lite0"
    if not bank:
        model = model.to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if not (card.token_width if spatial else card.width):
        card = _measure(card, model, spatial, device, dtype)
    on_cpu = device.type == "cpu"
    return Encoder(
        card,
        model,
        digest=digest,
        spatial=spatial,
        device=device,
        dtype=dtype,
        chunk=_GPU_CHUNK if not on_cpu else _SMALL_CHUNK if small else _CPU_CHUNK,
        side_by_side=on_cpu and bank,
    )


def _model(card: EncoderCard, spatial: bool, weights: str | Path | None) -> tuple[nn.Module, str]:
    facts = _facts(card)
    if card.architecture in _BANKS:
        if weights is not None:
            raise EncoderError(f"encoder '{card.name}': it has no weights; leave weights out")
        version, bank = _BANKS[card.architecture]
        return bank(spatial), digest_text(f"{version} {facts}")
    if card.architecture == "torchscript":
        from monai_mil.encoders.backbones import load_script

        path = Path(weights or card.source)
        return load_script(path, spatial), digest_file(path, facts)
    from monai_mil.encoders.backbones import build

    model = build(card, spatial, weights)
    digest = digest_weights(model, facts)
    if isinstance(model, EfficientNetLite0):
        model.fold()
    return model, digest


def _facts(card: EncoderCard) -> str:
    """What changes features beside the weights, spelled out so that a new field on the card changes no digest."""
    how = card.preprocessing
    resize = how.resize or how.input_size
    facts = (how.input_size, resize, how.interpolation, how.mean, how.std, card.pooling, card.without)
    return " ".join(map(str, facts))


def _device(device: str | torch.device, name: str) -> torch.device:
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise EncoderError(f"encoder '{name}': '{device}' is no device; use 'cpu', 'cuda' or 'cuda:1'") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise EncoderError(f"encoder '{name}': device '{found}' is not available here; use device 'cpu'")
    return found


def _given_dtype(dtype: torch.dtype | NumberType, card: EncoderCard) -> torch.dtype:
    name = str(dtype).removeprefix("torch.")
    if name not in get_args(NumberType):
        choices = ", ".join(get_args(NumberType))
        raise EncoderError(f"encoder '{card.name}': it does not run in '{name}'; choose from {choices}")
    if card.architecture in _BANKS and name != "float32":
        raise EncoderError(f"encoder '{card.name}': it computes in float32 alone, not in {name}; leave dtype out")
    return getattr(torch, name)


def _default_dtype(device: torch.device, card: EncoderCard) -> torch.dtype:
    if device.type != "cuda" or card.architecture in _BANKS:
        return torch.float32
    if card.architecture == "efficientnet_lite0":
        return torch.float16  # its values stay small, and bfloat16 changes its features by 1 %
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32


def _measure(
    card: EncoderCard, model: nn.Module, spatial: bool, device: torch.device, dtype: torch.dtype
) -> EncoderCard:
    """Learn width and grid from one blank tile."""
    side = card.preprocessing.input_size
    with torch.inference_mode():
        shape = model(torch.zeros(1, card.channels, side, side, device=device, dtype=dtype)).shape[1:]
    if len(shape) != (3 if spatial else 1):
        wanted = "a map [b, d, h, w]" if spatial else "vectors [b, d]"
        raise EncoderError(
            f"encoder '{card.name}': it does not give {wanted}, one tile gives {list(shape)}; "
            f"{'leave spatial out' if spatial else 'ask for spatial=True'}"
        )
    if spatial:
        return replace(card, token_width=shape[2], grid=(shape[0], shape[1]))
    return replace(card, width=shape[0])

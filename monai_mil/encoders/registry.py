"""Encoders by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from monai_mil.encoders.card import EncoderCard, NumberType, Preprocessing
from monai_mil.encoders.cards import CARDS
from monai_mil.errors import EncoderError

if TYPE_CHECKING:
    import torch

    from monai_mil.encoders.encoder import Encoder

_SCRIPT_SUFFIXES = (".ts", ".pt", ".torchscript")


def list_encoders() -> list[EncoderCard]:
    """The cards of all encoders known by name; needs no optional package.

    Examples:
        >>> from monai_mil.encoders import list_encoders
        >>> {card.name: card.licence for card in list_encoders()}["texture"]
        'Apache-2.0'
        >>> "uni" in {card.name for card in list_encoders()}
        True
    """
    return list(CARDS.values())


def get_encoder(
    name: str | EncoderCard,
    *,
    spatial: bool = False,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | NumberType | None = None,
) -> Encoder:
    """Load an encoder.

    Args:
        name: a name from :func:`list_encoders`; a timm model (``timm:convnext_tiny``, or its plain name); the path of
            a TorchScript file (``.ts``, ``.pt``), fed with 224 px tiles in ImageNet's normalisation; or a card of
            your own. A TorchScript file is a program: open only files whose authors you trust.
        spatial: give token maps ``[b, d, h, w]`` instead of pooled vectors ``[b, d]``.
        weights: a local weight file (safetensors, or a pickle of plain tensors), used instead of a download.
        device: where the network runs.
        dtype: what it runs in, or its name as configs write it; default float32 on the CPU and bfloat16 on a GPU that
            has it. bfloat16 on a CPU with bfloat16 instructions is about twice as fast, its features agree to a cosine
            above 0.999. With ``efficientnet_lite0`` that is 0.99 only, so that it runs in float16 on a GPU.

    Raises:
        EncoderError: the name is unknown, a package is missing, the weights cannot be had or do not fit, or it does not
            run in ``dtype``.

    Examples:
        >>> import torch
        >>> from monai_mil.encoders import get_encoder
        >>> encoder = get_encoder("texture")
        >>> encoder.tile_size, encoder.target_mpp
        (256, 0.5)
        >>> tiles = torch.zeros(2, 3, 256, 256, dtype=torch.uint8)
        >>> encoder(tiles).shape == (2, encoder.width)
        True
    """
    from monai_mil.encoders.load import load_encoder

    if isinstance(name, EncoderCard):
        card = name
    elif Path(name).suffix in _SCRIPT_SUFFIXES and weights is None:
        card, weights = _script_card(Path(name)), name
    else:
        card = find_card(name)
    return load_encoder(card, spatial=spatial, weights=weights, device=device, dtype=dtype)


def find_card(name: str) -> EncoderCard:
    """The card of a known name, or one made from timm's own configuration."""
    if name in CARDS:
        return CARDS[name]
    from monai_mil.encoders.backbones import timm_card

    if name.startswith("timm:"):
        return timm_card(name.removeprefix("timm:"))
    try:
        return timm_card(name)
    except EncoderError as error:
        raise EncoderError(
            f"encoder '{name}': unknown; use one of {', '.join(CARDS)}, a timm model as 'timm:<model>', "
            f"or the path of a TorchScript file (.ts, .pt) ({error})"
        ) from error


def _script_card(path: Path) -> EncoderCard:
    return EncoderCard(name=path.stem, architecture="torchscript", preprocessing=Preprocessing(224), source=str(path))

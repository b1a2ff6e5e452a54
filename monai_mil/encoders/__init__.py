"""Frozen feature extractors: tiles and slices to pooled vectors or spatial token maps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from monai_mil.encoders.card import EncoderCard, Preprocessing
from monai_mil.encoders.registry import get_encoder, list_encoders
from monai_mil.encoders.report import EncoderStatus, encoder_report

if TYPE_CHECKING:
    from monai_mil.encoders.encoder import Encoder

__all__ = [
    "Encoder",
    "EncoderCard",
    "EncoderStatus",
    "Preprocessing",
    "encoder_report",
    "get_encoder",
    "list_encoders",
]


def __getattr__(name: str) -> Any:
    if name == "Encoder":
        from monai_mil.encoders.encoder import Encoder

        return Encoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

from .card import EncoderCard, Preprocessing
from .encoder import Encoder
from .number_types import bfloat16_gain
from .registry import get_encoder, list_encoders
from .report import EncoderStatus, encoder_report

__all__ = [
    "Encoder",
    "EncoderCard",
    "EncoderStatus",
    "Preprocessing",
    "bfloat16_gain",
    "encoder_report",
    "get_encoder",
    "list_encoders",
]

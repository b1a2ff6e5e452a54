"""Which encoders work here, and what the others lack."""

from __future__ import annotations

from dataclasses import dataclass

from monai_mil.encoders.card import EncoderCard
from monai_mil.encoders.cards import CARDS
from monai_mil.errors import EncoderError


@dataclass(frozen=True)
class EncoderStatus:
    """One encoder on this machine."""

    card: EncoderCard
    ready: bool
    """It runs now, without a network."""
    missing: str
    """What to do before it runs; empty when ready."""


def encoder_report() -> list[EncoderStatus]:
    """The state of every encoder known by name; nothing is downloaded."""
    timm_problem = _timm_problem()
    return [_status(card, timm_problem) for card in CARDS.values()]


def _status(card: EncoderCard, timm_problem: str) -> EncoderStatus:
    if not card.needs:
        return EncoderStatus(card, ready=True, missing="")
    steps = [timm_problem] if timm_problem else []
    if not _is_cached(card):
        access = f"request access to {card.repo} and log in with 'hf auth login', or " if card.gated else ""
        steps.append(
            f"weights of {card.repo} are not on this machine: {access or 'downloaded at first use, or '}"
            "pass a local file with --weights"
        )
    return EncoderStatus(card, ready=not steps, missing="; ".join(steps))


def _timm_problem() -> str:
    from monai_mil.encoders.backbones import import_timm

    try:
        import_timm("timm")
    except EncoderError as error:
        return str(error).removeprefix("encoder 'timm': ")
    return ""


def _is_cached(card: EncoderCard) -> bool:
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return False
    return card.repo is not None and any(
        isinstance(try_to_load_from_cache(card.repo, name), str) for name in card.files
    )

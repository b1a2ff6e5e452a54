"""Which encoders work here, and what the others lack."""

from __future__ import annotations

from dataclasses import dataclass

from monai_mil.encoders.card import EncoderCard
from monai_mil.encoders.cards import CARDS
from monai_mil.errors import EncoderError


@dataclass(frozen=True)
class EncoderStatus:
    """One encoder on this machine.

    Attributes:
        card: the encoder.
        cached: its weights are here.
        problem: what else is to be done before it runs, such as installing a package; empty if nothing.
    """

    card: EncoderCard
    cached: bool
    problem: str

    @property
    def ready(self) -> bool:
        """It runs now, without a network."""
        return self.cached and not self.problem


def encoder_report() -> list[EncoderStatus]:
    """The state of every encoder known by name; nothing is downloaded."""
    timm_problem = _timm_problem()
    return [_status(card, timm_problem) for card in CARDS.values()]


def _status(card: EncoderCard, timm_problem: str) -> EncoderStatus:
    if not card.needs:
        return EncoderStatus(card, True, "")
    if card.package is None:
        return EncoderStatus(card, _is_cached(card), timm_problem)
    from monai_mil.encoders.weights import package_file

    try:
        package_file(card, card.package)
    except EncoderError as error:
        return EncoderStatus(card, False, str(error))
    return EncoderStatus(card, True, "")


def _timm_problem() -> str:
    from monai_mil.encoders.backbones import import_timm

    try:
        import_timm("timm")
    except EncoderError as error:
        return str(error).removeprefix("encoder 'timm': ")
    return ""


def _is_cached(card: EncoderCard) -> bool:
    if card.url is not None:
        from monai_mil.encoders.weights import url_file

        return url_file(card.url).is_file()
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return False
    return card.repo is not None and any(
        isinstance(try_to_load_from_cache(card.repo, name), str) for name in card.files
    )

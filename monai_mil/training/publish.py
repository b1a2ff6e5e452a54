"""A training's model in the place of the one that is in use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ignite.distributed as idist
import torch

from monai_mil.model_card import read_model
from monai_mil.training.state_files import save_atomically


def publish_model(trained: str | Path, place: str | Path) -> None:
    """Put a training's weights, with their card, in the place of others that somebody may be reading.

    A reader finds the old weights or the new ones, whole, and a card that is theirs, whenever the process is killed.

    Args:
        trained: the ``model.pt`` a training has left.
        place: the ``model.pt`` in use, which need not be there.

    Raises:
        SettingsError: either cannot be read as weights, or has the card of others.
    """
    if idist.get_rank() != 0:
        return
    card, place = read_model(trained), Path(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    replace(card, path=place, earlier_weights=read_model(place).weights).write()
    save_atomically(torch.load(trained, map_location="cpu", weights_only=True), place)

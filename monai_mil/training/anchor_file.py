"""The anchor beside the weights it was trained with, for whoever wants to know where the two look differently."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from monai_mil.errors import SettingsError
from monai_mil.model_card import weights_digest
from monai_mil.training.distributed import unwrap
from monai_mil.training.state_files import save_atomically

if TYPE_CHECKING:
    from monai_mil.networks.blocks import AttentionNetwork
    from monai_mil.training.anchor import Anchor

NAME = "anchor.pt"


def save_anchor(anchor: Anchor, weights: Path, digest: str) -> None:
    """Write ``anchor.pt`` beside a file of weights.

    Args:
        anchor: as it was when the weights were saved.
        weights: their file.
        digest: ``model_card.weights_digest`` of them, by which :func:`read_anchor` knows whose anchor it is.
    """
    state = {"weights": digest, "network": anchor.network.state_dict(), "steps": anchor.steps}
    save_atomically(state, weights.with_name(NAME))


def read_anchor(network: nn.Module, weights: str | Path) -> AttentionNetwork | None:
    """The anchor that a training left beside its weights; its ``attention_scores`` are those the network's followed.

    Args:
        network: the one that holds the weights; a DDP wrapper is taken off.
        weights: their file.

    Returns:
        A network that makes attention scores and nothing else; None where there is no anchor of these weights.

    Raises:
        SettingsError: the anchor's file cannot be read, or is one of another network.
    """
    path = Path(weights).with_name(NAME)
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        online = unwrap(network)
        if state["weights"] != weights_digest(online.state_dict()):
            return None
        copy: AttentionNetwork = online.anchor_copy()
        copy.load_state_dict(state["network"])
    except Exception as error:  # torch raises whatever its unpickler meets
        raise SettingsError(f"anchor '{path}' cannot be read ({error}); remove it, or copy it again") from error
    return copy

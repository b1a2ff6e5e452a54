"""The model that a training begins with: its own of before, where it goes on, or another's, where it is fine-tuned."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from torch import nn

from monai_mil.errors import SettingsError
from monai_mil.model_card import ModelCard, read_model
from monai_mil.training.distributed import unwrap
from monai_mil.training.exported import ExportedNetwork
from monai_mil.training.fit import require_fit
from monai_mil.training.freeze import frozen_names

logger = logging.getLogger(__name__)

_OF_THE_TASK = {"class_names", "label_columns", "multi_label", "time_edges"}


def known_model(path: str | Path, resume: bool = False, pretrained: str | Path | None = None) -> ModelCard:
    """The card of the model that a training begins with.

    Args:
        path: the weights that the training writes.
        resume: it goes on with the run that wrote them.
        pretrained: weights to be fine-tuned, which a run that goes on has no more use for; that is told.

    Returns:
        The run's own card, or the pretrained model's without what belongs to its task (classes and labels), to be
        :attr:`ModelCard.fine_tuned`; an empty one for a training from scratch.

    Raises:
        SettingsError: there are no weights at ``pretrained``, or a card cannot be read.
    """
    if resume and Path(path).is_file():
        if pretrained is not None and idist.get_rank() == 0:
            logger.warning("the run goes on with its own weights: pretrained '%s' is left aside (--resume)", pretrained)
        return read_model(path)
    if pretrained is None:
        return ModelCard()
    if not Path(pretrained).is_file():
        raise SettingsError(f"pretrained '{pretrained}': no such file; give the model.pt of a training")
    card = read_model(pretrained)
    kept = {name: value for name, value in card.settings.items() if name not in _OF_THE_TASK}
    if "network" in kept:
        kept["network"] = {name: value for name, value in kept["network"].items() if name not in _OF_THE_TASK}
    return replace(card, settings=kept, fine_tuned_from=card.weights, fine_tuned=True)


def fit_weights(
    network: nn.Module,
    model: ModelCard,
    settings: Mapping[str, Any] | None = None,
    methods: Mapping[str, Callable[[], nn.Module]] | None = None,
) -> None:
    """Make sure that a model's weights fit the network, and load those that are to be fine-tuned; before a run begins.

    Of weights to be fine-tuned the heads may be those of another number of classes: they are left as they are made
    anew, and told.

    Args:
        network: as configured.
        model: the card of the weights; one without a file is let pass.
        settings: see :func:`require_fit`.
        methods: likewise.

    Raises:
        SettingsError: the weights are of another network, or not those that an exported program holds, or heads that
            begin anew are frozen.
    """
    if model.path is None:
        return
    weights = torch.load(model.path, map_location="cpu", weights_only=True)
    if isinstance(network, ExportedNetwork):
        network.load_state_dict(weights)
        return
    if not model.fine_tuned:
        require_fit(network, weights, model.path, settings, methods)
        return
    heads = require_fit(network, weights, model.path, settings, methods, any_classes=True)
    dead = [name for name in frozen_names(unwrap(network)) if name in heads]
    if dead:
        raise SettingsError(
            f"freeze holds {', '.join(dead)}, which begin anew as '{model.path}' is for another number of classes, and "
            "would never learn; freeze other parts"
        )
    own = unwrap(network).state_dict()
    unwrap(network).load_state_dict(weights | {name: own[name] for name in heads})
    if idist.get_rank() == 0:
        but = f", but for {', '.join(heads)}, which are of another number of classes and begin anew" if heads else ""
        logger.info("fine-tuning: the network begins with the weights of '%s'%s", model.path, but)

"""An ensemble of trained networks of one bundle, as a bundle of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_mil.errors import SettingsError
from monai_mil.files import make_folder, replacing, write_json
from monai_mil.model_card import ModelCard, read_model, weights_digest
from monai_mil.runs.bundles import Bundle, copy_bundle
from monai_mil.runs.run import BundleRun
from monai_mil.runs.train import model_folder

_OWN = ("fold", "network")


def make_ensemble(bundle: Bundle, models: Sequence[Path], out: Path) -> Path:
    """Copy a bundle to ``out/<name>`` with one network in it that answers as the mean of several trained ones.

    ``predict``, ``evaluate`` and ``monai.bundle run`` take it as any other bundle; it is not trained further.

    Args:
        bundle: that the networks were trained with.
        models: their folders, or their ``model.pt``.
        out: where the bundle goes.

    Returns:
        The bundle's folder.

    Raises:
        SettingsError: there is no model, they differ in classes, encoder or design, or predict survival.
        OutputError: it cannot be written, or is there already.
    """
    import torch

    files = [model_folder(model) / "model.pt" for model in models]
    if not files:
        raise SettingsError("an ensemble needs at least one trained model")
    cards = [read_model(path) for path in files]
    for path, card in zip(files, cards, strict=True):
        if _shared(card) != _shared(cards[0]):
            raise SettingsError(f"'{path}' is of other classes, features or design than '{files[0]}': not one ensemble")
        if card.get("time_edges"):
            raise SettingsError(f"'{path}' predicts survival, whose time bins differ from fold to fold: no ensemble")
    make_folder(out)
    copy = Bundle(copy_bundle(bundle, out))
    for name in ("train", "inference"):
        _as_ensemble(copy.config(name), len(files), cards[0])
    metadata = files[0].with_name("metadata.json")
    if metadata.is_file():  # what of the bundle's is true of these networks
        shutil.copyfile(metadata, copy.config("metadata"))
    states = [torch.load(path, map_location="cpu", weights_only=True) for path in files]
    weights = {f"members.{number}.{key}": value for number, state in enumerate(states) for key, value in state.items()}
    with replacing(copy.weights) as partial:
        torch.save(weights, partial)
    digest = weights_digest(weights)
    ModelCard(_shared(cards[0]), digest, path=copy.weights).write()
    network = BundleRun(copy, ("inference",)).workflow().parser.get_parsed_content("model_settings")["network"]
    ModelCard({**_shared(cards[0]), "network": network}, digest, path=copy.weights, note=cards[0].note).write()
    return copy.root


def _shared(card: ModelCard) -> dict[str, Any]:
    """What a model's card says that is true of the ensemble too."""
    return {name: value for name, value in card.settings.items() if name not in _OWN}


def _as_ensemble(path: Path, count: int, card: ModelCard) -> None:
    """Let a config build so many of its network, and of them the ensemble."""
    config = json.loads(path.read_text(encoding="utf-8"))
    exclusive = not card.get("multi_label", False)
    ensemble = {
        "_target_": "monai_mil.training.Ensemble",
        "member": "@member_def",
        "count": count,
        "exclusive": exclusive,
    }
    parts = {"member_def": config["network_def"], "network_def": ensemble}
    changed: dict[str, Any] = {}
    for name, value in config.items():
        changed |= parts if name == "network_def" else {name: value}
    write_json(changed, path)

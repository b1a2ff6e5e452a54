"""What a model knows of itself: ``model.json`` beside its weights, which nobody has to say again or can contradict."""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from monai_mil import __version__
from monai_mil.errors import SettingsError
from monai_mil.files import check_archive, parse_json, replacing

logger = logging.getLogger(__name__)

FORMAT = 1
_DIGITS = 32
_notes: dict[str, str] = {}
"""Notes of the models that this process has read, by the digests of their weights."""


@dataclass(frozen=True)
class ModelCard:
    """What was true of a training whose weights somebody is about to use.

    Attributes:
        settings: keys of the training's config that the weights depend on, with their values: class names in order,
            method, encoder and its digest, width, and so on; empty for weights without a card.
        weights: :func:`weights_digest` of the weights.
        earlier_weights: that of the weights which these replace, of the same run: a run may be killed between its two
            files.
        training_data: digest of the cases and labels the model was trained on (``Cohort.digest``), or None.
        operating_points: a threshold for every output, written by a bundle's ``calibrate``, or None.
        operating_point_rule: how they were chosen.
        note: what whoever reads the model's answers must know of it, as that it was trained on synthetic data; stands
            in every result that a person reads.
        version: of this package.
        path: the weights.
        fine_tuned_from: digest of the weights that the training began with, or None.
        fine_tuned: these weights are what a training begins with; not written.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    earlier_weights: str | None = None
    training_data: str | None = None
    operating_points: tuple[float, ...] | None = None
    operating_point_rule: str | float | None = None
    note: str | None = None
    version: str = __version__
    path: Path | None = None
    fine_tuned_from: str | None = None
    fine_tuned: bool = False

    def get(self, name: str, default: Any = None) -> Any:
        """The value a setting had in training; ``default`` where the card does not say."""
        value = self.settings.get(name)
        return default if value is None else value

    def check(self, settings: Mapping[str, Any]) -> None:
        """Hold a run's settings to the model's; what one of them does not name is not compared.

        Raises:
            SettingsError: some differ; names each with both values.
        """
        own, said = _flat(self.settings), _flat(_plain(settings))
        wrong = [name for name in own if name in said and said[name] != own[name]]
        if wrong:
            differing = "; ".join(f"{name} {own[name]!r}, and this run says {said[name]!r}" for name in wrong)
            raise SettingsError(
                f"model '{self.path}' was trained with {differing}: leave {' and '.join(wrong)} out, which takes the "
                "model's own, or give the weights that were trained so"
            )

    def check_encoder(self, encoder: Any) -> None:
        """Hold the encoder of raw slides or scans to the one of the training's bags, by name and by its weights.

        Raises:
            SettingsError: it is another one.
        """
        own = {name: self.settings[name] for name in ("encoder", "encoder_digest") if self.settings.get(name)}
        replace(self, settings=own).check({"encoder": encoder.name, "encoder_digest": encoder.digest})

    def write(self) -> None:
        """Write the card beside :attr:`path`."""
        assert self.path is not None
        content = {
            "format": FORMAT,
            "settings": _plain(self.settings),
            "weights": self.weights,
            "earlier_weights": self.earlier_weights,
            "training_data": self.training_data,
            "fine_tuned_from": self.fine_tuned_from,
            "operating_points": self.operating_points,
            "operating_point_rule": self.operating_point_rule,
            "note": self.note,
            "version": self.version,
        }
        with replacing(card_path(self.path)) as temporary:
            temporary.write_text(json.dumps(content, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")


def card_path(weights: str | Path) -> Path:
    """Where the card of a file of weights lies: ``model.json`` beside ``model.pt``."""
    return Path(weights).with_suffix(".json")


def read_model(path: str | Path | None) -> ModelCard:
    """The card of a file of weights.

    Args:
        path: the weights, such as ``models/model.pt``; None for a run that has none yet.

    Returns:
        The card; an empty one where there are no weights, or, with a remark in the log, where they have no card.

    Raises:
        SettingsError: the card cannot be read, or is that of other weights.

    Examples:
        >>> from monai_mil.model_card import ModelCard, read_model
        >>> import torch
        >>> from monai_mil.model_card import weights_digest
        >>> weights = torch.nn.Linear(2, 2).state_dict()
        >>> torch.save(weights, folder / "model.pt")
        >>> settings = {"class_names": ["normal", "tumor"]}
        >>> ModelCard(settings, weights_digest(weights), path=folder / "model.pt").write()
        >>> read_model(folder / "model.pt").get("class_names")
        ['normal', 'tumor']
    """
    if path is None or not Path(path).is_file():
        return ModelCard()
    path, place = Path(path), card_path(path)
    if not place.is_file():
        logger.warning(
            "model '%s' has no %s: its classes, method and encoder are taken from the configuration; it was trained by "
            "an older version or elsewhere",
            path,
            place.name,
        )
        return ModelCard(weights=_digest_of(path), path=path)
    card, digest = _read(place, path), _digest_of(path)
    if digest not in (card.weights, card.earlier_weights):
        raise SettingsError(
            f"'{place}' is of other weights than '{path}': copy both files of a model, or remove the .json and say its "
            "settings yourself"
        )
    if card.note:
        _notes[digest] = card.note
    return replace(card, weights=digest)


def note_on(digest: str | None) -> str | None:
    """What must be known of a model that :func:`read_model` has read (``ModelCard.note``), by its weights' digest."""
    return None if digest is None else _notes.get(digest)


def network_digest(network: Any) -> str | None:
    """:func:`weights_digest` of a network, within DistributedDataParallel too; None of what holds no weights."""
    state_dict = getattr(getattr(network, "module", network), "state_dict", None)
    return None if state_dict is None else weights_digest(state_dict())


def weights_digest(weights: Mapping[str, Any]) -> str:
    """What tells a state dict from any other: a hash of its names, types, shapes and values, 32 hexadecimal digits."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(weights):
        value: torch.Tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data if value.numel() else b"")
    return digest.hexdigest()[:_DIGITS]


def _digest_of(path: Path) -> str:
    import torch

    try:
        if zipfile.is_zipfile(path):  # torch before 1.6 wrote no checksums
            check_archive(path)
        return weights_digest(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises whatever its unpickler meets
        reason = str(error).split("\n", 1)[0]
        raise SettingsError(f"model '{path}' cannot be read as weights ({reason}); copy it again") from error


def _read(place: Path, weights: Path) -> ModelCard:
    try:
        content = parse_json(place.read_text(encoding="utf-8"))
        if content["format"] > FORMAT:
            raise SettingsError(f"'{place}': format {content['format']} is of a later version; update monai-mil")
        points = content["operating_points"]
        return ModelCard(
            dict(content["settings"]),
            content["weights"],
            content["earlier_weights"],
            content["training_data"],
            None if points is None else tuple(float(point) for point in points),
            content["operating_point_rule"],
            content.get("note"),
            content["version"],
            weights,
            content.get("fine_tuned_from"),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"'{place}' is no card of a model ({error!r}): copy it again with its weights, or remove it and say the "
            "model's settings yourself"
        ) from error


def _flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Settings within settings as ``outer::inner``, the way a config names them."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{above}{name}::") if isinstance(value, dict) else {f"{above}{name}": value}
    return flat


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives them back, class names as text whether they were written as numbers, truth values or words."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(settings)))
    if "class_names" in plain:
        plain["class_names"] = [str(name) for name in settings["class_names"]]
    return plain

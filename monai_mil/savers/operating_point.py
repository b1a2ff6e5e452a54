"""The operating points of a validation run, in the card of the model or in a bundle's metadata."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from ignite.engine import Engine

from monai_mil.errors import CohortError, OutputError, SettingsError
from monai_mil.files import parse_json, replacing
from monai_mil.metrics import OperatingPoint, Rule, operating_points
from monai_mil.model_card import ModelCard, card_path
from monai_mil.savers.labelled import LabelledCase, LabelledSaver

logger = logging.getLogger(__name__)


class OperatingPointSaver(LabelledSaver):
    """Writes ``operating_points``, a threshold for every output, into the model's card or into a ``metadata.json``.

    Attach it to an evaluation of the chosen model on the validation split. Reads ``pred`` (probabilities) and ``label``
    of the decollated output; with several processes, of all. The rest of the file stays as it is, and the rule is kept
    beside as ``operating_point_rule``.

    Args:
        metadata_file: a bundle's ``metadata.json``, which then says of which weights the points are; None writes into
            the model's card.
        classes: names of the classes, in the order of the network's outputs, for messages. One single probability
            with two classes is that of the second and has one point.
        rule: see :func:`monai_mil.metrics.operating_point`.
        model: the card of the model.

    Raises:
        SettingsError: there is neither a file nor a card to write into.
    """

    def __init__(
        self,
        metadata_file: str | Path | None,
        classes: Sequence[str],
        rule: Rule = "youden",
        model: ModelCard | None = None,
    ) -> None:
        super().__init__()
        card = None if model is None or model.path is None or not model.settings else card_path(model.path)
        place = metadata_file or card
        if place is None:
            raise SettingsError(
                "the operating points have no place: the model has no model.json; name a bundle's metadata.json with "
                "--metadata_file"
            )
        self.model = model
        self.metadata = None if metadata_file is None else Path(metadata_file)
        self.path = Path(place)
        self.classes = tuple(map(str, classes))
        self.rule = rule

    def _write(self, kept: Mapping[str, LabelledCase], engine: Engine) -> None:
        if not kept:
            raise CohortError(f"no operating points for '{self.path}': no case was validated; check the split")
        prob = np.stack([case.prob for case in kept.values()])
        label = np.stack([case.label for case in kept.values()])
        names = self.classes if len(self.classes) == prob.shape[1] else self.classes[-prob.shape[1] :]
        exclusive = label.shape[1] == 1 and len(self.classes) > 1
        try:
            points = operating_points(prob, label[:, 0] if exclusive else label, self.rule)
        except ValueError as error:
            raise CohortError(
                f"no operating points for '{self.path}' ({', '.join(names)}): {error}; validate on a split with cases "
                "of every class"
            ) from error
        self._update(points)
        for name, point in zip(names, points, strict=True):
            logger.info(
                "operating point of %s: %.6g (sensitivity %.3f, specificity %.3f)",
                name,
                point.threshold,
                point.sensitivity,
                point.specificity,
            )

    def _update(self, points: Sequence[OperatingPoint]) -> None:
        if self.metadata is None:
            assert self.model is not None
            thresholds = tuple(point.threshold for point in points)
            replace(self.model, operating_points=thresholds, operating_point_rule=self.rule).write()
            return
        try:
            metadata = parse_json(self.metadata.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise OutputError(
                f"the operating points have no place: metadata '{self.path}' cannot be read ({error}); name a bundle's"
            ) from error
        metadata["operating_points"] = [point.threshold for point in points]
        metadata["operating_point_rule"] = self.rule
        if self.model is not None and self.model.weights is not None:
            metadata["operating_points_model"] = self.model.weights
        with replacing(self.metadata) as temporary:
            temporary.write_text(json.dumps(metadata, indent=4) + "\n", encoding="utf-8")

"""The operating points of a validation run, in a bundle's metadata."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ignite.engine import Engine

from monai_mil.errors import CohortError, OutputError
from monai_mil.files import replacing
from monai_mil.metrics import OperatingPoint, Rule, operating_points
from monai_mil.savers.labelled import LabelledCase, LabelledSaver

logger = logging.getLogger(__name__)


class OperatingPointSaver(LabelledSaver):
    """Writes ``operating_points``, a threshold for every output, into a bundle's ``metadata.json``.

    Attach it to an evaluation of the chosen model on the validation split. Reads ``pred`` (probabilities) and ``label``
    of the decollated output; with several processes, of all. The rest of the file stays as it is, and the rule is kept
    beside as ``operating_point_rule``.

    Args:
        metadata_file: the bundle's ``metadata.json``.
        classes: names of the classes, in the order of the network's outputs, for messages. One single probability
            with two classes is that of the second and has one point.
        rule: see :func:`monai_mil.metrics.operating_point`.
    """

    def __init__(self, metadata_file: str | Path, classes: Sequence[str], rule: Rule = "youden") -> None:
        super().__init__()
        self.path = Path(metadata_file)
        self.classes = tuple(classes)
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
        try:
            metadata = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise OutputError(
                f"the operating points have no place: metadata '{self.path}' cannot be read ({error}); name a bundle's"
            ) from error
        metadata["operating_points"] = [point.threshold for point in points]
        metadata["operating_point_rule"] = self.rule
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps(metadata, indent=4) + "\n", encoding="utf-8")

"""The metrics of an evaluation as a file."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ignite.engine import Engine

from monai_mil.files import write_json
from monai_mil.metrics import classification_report
from monai_mil.savers.labelled import LabelledCase, LabelledSaver

logger = logging.getLogger(__name__)


class ReportSaver(LabelledSaver):
    """Writes ``<output_dir>/metrics.json``, a :func:`monai_mil.metrics.classification_report`, when an evaluator ends.

    Reads ``pred`` (probabilities) and ``label`` of the decollated output and ``patient_id`` of the batch, whose cases
    the bootstrap keeps together. One single probability with two classes is that of the second. With several processes
    it tells of the cases of all; what is not defined is null.

    Args:
        output_dir: the run's folder.
        classes: names of the classes, in the order of the network's outputs.
        n: bootstrap resamples.
        seed: of the resampling.
        operating_points: from which probability on each output counts; see ``OperatingPointSaver``.
    """

    def __init__(
        self,
        output_dir: str | Path,
        classes: Sequence[str],
        n: int = 1000,
        seed: int = 0,
        operating_points: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.path = Path(output_dir, "metrics.json")
        self.classes = tuple(map(str, classes))
        self.n = n
        self.seed = seed
        self.operating_points = operating_points

    def _results(self) -> tuple[Path, ...]:
        return (self.path,)

    def _write(self, kept: Mapping[str, LabelledCase], engine: Engine) -> None:
        # The resampling depends on the order of the cases; how many processes there were must not.
        cases = sorted(kept.values(), key=lambda case: (case.patient_id, case.label.tolist(), case.prob.tolist()))
        prob = np.stack([case.prob for case in cases]).astype(np.float64)
        label = np.stack([case.label for case in cases]).astype(np.float32)
        points = self.operating_points
        if prob.shape[1] == 1 and len(self.classes) == 2:
            prob = np.concatenate([1 - prob, prob], axis=1)
            points = None if points is None else [1 - points[0], points[0]]
        truth = label[:, 0] if label.shape[1] == 1 and len(self.classes) > 1 else label
        patients = [case.patient_id for case in cases]
        report = classification_report(prob, truth, self.classes, patients, self.n, self.seed, points)
        write_json(self.signed(report), self.path)
        for name in ("auroc", "auprc", "balanced_accuracy", "macro_f1"):
            figure = report[name]
            without = "".join(f", without '{label}' ({why})" for label, why in figure.get("missing", {}).items())
            numbers = figure["value"], figure["low"], figure["high"]
            logger.info("%s %.4f (95 %% interval %.4f to %.4f)%s", name, *numbers, without)

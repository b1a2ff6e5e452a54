"""The metrics of an evaluation as a file."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine

from monai_mil.files import write_json
from monai_mil.metrics import classification_report
from monai_mil.savers.labelled import LabelledCase, LabelledSaver
from monai_mil.savers.patient import PatientLevel, check_level, grouped, patient_label, patient_probabilities

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
        patient_level: adds the report of the patients, each key with ``patient_`` before it; what their slides say is
            put together by this rule, see :class:`PatientSaver`. None leaves it out.
    """

    def __init__(
        self,
        output_dir: str | Path,
        classes: Sequence[str],
        n: int = 1000,
        seed: int = 0,
        operating_points: Sequence[float] | None = None,
        patient_level: PatientLevel | None = None,
    ) -> None:
        super().__init__()
        check_level(patient_level)
        self.path = Path(output_dir, "metrics.json")
        self.classes = tuple(map(str, classes))
        self.n = n
        self.seed = seed
        self.operating_points = operating_points
        self.patient_level = patient_level

    def _results(self) -> tuple[Path, ...]:
        return (self.path,)

    def _write(self, kept: Mapping[str, LabelledCase], engine: Engine) -> None:
        report = self._report(list(kept.values()))
        if self.patient_level is not None:
            of_patients = self._report(self._patients(kept, self.patient_level))
            report |= {"patient_level": self.patient_level}
            report |= {f"patient_{name}": figure for name, figure in of_patients.items()}
        write_json(self.signed(report), self.path)
        for name in ("auroc", "auprc", "balanced_accuracy", "macro_f1"):
            for key in (name, f"patient_{name}"):
                if key in report:
                    value, low, high = (report[key][part] for part in ("value", "low", "high"))
                    missing = report[key].get("missing", {})
                    without = "".join(f", without '{label}' ({why})" for label, why in missing.items())
                    logger.info("%s %.4f (95 %% interval %.4f to %.4f)%s", key, value, low, high, without)

    def _report(self, given: Sequence[LabelledCase]) -> dict[str, Any]:
        # The resampling depends on the order of the cases; how many processes there were must not.
        cases = sorted(given, key=lambda case: (case.patient_id, case.label.tolist(), case.prob.tolist()))
        prob = np.stack([case.prob for case in cases]).astype(np.float64)
        label = np.stack([case.label for case in cases]).astype(np.float32)
        points = self.operating_points
        if prob.shape[1] == 1 and len(self.classes) == 2:
            prob = np.concatenate([1 - prob, prob], axis=1)
            points = None if points is None else [1 - points[0], points[0]]
        truth = label[:, 0] if label.shape[1] == 1 and len(self.classes) > 1 else label
        patients = [case.patient_id for case in cases]
        return classification_report(prob, truth, self.classes, patients, self.n, self.seed, points)

    def _patients(self, kept: Mapping[str, LabelledCase], level: PatientLevel) -> list[LabelledCase]:
        """What the slides of every patient say together."""
        slides = grouped(kept, [case.patient_id for case in kept.values()])
        return [self._patient(patient, cases, level) for patient, cases in slides.items()]

    def _patient(self, patient: str, cases: Mapping[str, LabelledCase], level: PatientLevel) -> LabelledCase:
        label = patient_label(patient, {name: case.label for name, case in cases.items()}, self.classes)
        exclusive = len(label) == 1 and len(self.classes) > 1
        prob = np.stack([case.prob for case in cases.values()])
        return LabelledCase(patient, patient_probabilities(prob, level, exclusive), label)

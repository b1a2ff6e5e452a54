"""The table of patients: what a network's answers for their slides or scans say of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ignite.engine import Engine

from monai_mil.savers.base import CaseSaver
from monai_mil.savers.case import Case
from monai_mil.savers.patient import PatientLevel, check_level, grouped, patient_label, patient_probabilities
from monai_mil.savers.prediction import Prediction, read_prediction
from monai_mil.savers.tables import write_table


class PatientSaver(CaseSaver[Prediction]):
    """Writes ``<output_dir>/patients.csv``: one row a patient; :class:`PredictionSaver` has one.

    Columns: ``patient_id``, ``slides`` (their number) and ``slide_ids`` joined by ``;`` (or ``scans`` and
    ``scan_ids``), then ``label``, ``pred``, ``prob_<class>`` and all else as in ``predictions.csv``, decided by the
    same rules. Under DistributedDataParallel the slides of all processes come together.

    Args:
        output_dir: the run's folder.
        classes: names of the classes, in the order of the network's outputs.
        multi_label: classes do not exclude each other.
        operating_points: as of :class:`PredictionSaver`.
        patient_level: how the probabilities of the slides become the patient's, see
            :func:`monai_mil.savers.patient.patient_probabilities`; None writes no table and removes an earlier one.

    Two slides of one patient with different labels raise a CohortError at the end.
    """

    def __init__(
        self,
        output_dir: str | Path,
        classes: Sequence[str],
        multi_label: bool = False,
        operating_points: Sequence[float] | None = None,
        patient_level: PatientLevel | None = None,
    ) -> None:
        super().__init__()
        check_level(patient_level)
        self.path = Path(output_dir, "patients.csv")
        self.classes = tuple(map(str, classes))
        self.multi_label = multi_label
        self.operating_points = operating_points
        self.patient_level = patient_level

    def _results(self) -> tuple[Path, ...]:
        return (self.path,)

    def _collect(self, case: Case) -> Prediction | None:
        if self.patient_level is None:
            return None
        return read_prediction(case, self.classes, self.multi_label, self.operating_points)

    def _write(self, kept: Mapping[str, Prediction], engine: Engine) -> None:
        if self.patient_level is None or not kept:
            return
        patients = grouped(kept, [slide.patient_id for slide in kept.values()])
        rows = [self._row(patient, slides, self.patient_level) for patient, slides in patients.items()]
        write_table(self.path, list(rows[0]), (list(row.values()) for row in rows))

    def _row(self, patient: str, slides: Mapping[str, Prediction], level: PatientLevel) -> dict[str, str]:
        answers, exclusive = list(slides.values()), not self.multi_label
        row = Prediction(
            patient,
            patient,
            patient_probabilities(np.stack([slide.prob for slide in answers]), level, exclusive),
            self.classes,
            self.multi_label,
            _shared_label(patient, slides, self.classes),
            "patient_id",
            answers[0].operating_points,
            "; ".join(f"{slide.slide_id}: {slide.remarks}" for slide in answers if slide.remarks),
            tuple(name for slide in answers for name in slide.slides),
            answers[0].slide_column,
        ).row()
        return row | self.signature


def _shared_label(
    patient: str, slides: Mapping[str, Prediction], classes: Sequence[str]
) -> int | tuple[float, ...] | None:
    given = {name: slide.label for name, slide in slides.items() if slide.label is not None}
    if not given:
        return None
    labels = {name: np.atleast_1d(np.asarray(label, dtype=float)) for name, label in given.items()}
    shared = patient_label(patient, labels, classes)
    multi_label = any(isinstance(label, tuple) for label in given.values())
    return tuple(shared.tolist()) if multi_label else int(shared[0])

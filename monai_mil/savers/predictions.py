"""The table of a network's predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ignite.engine import Engine

from monai_mil.savers.case import Case
from monai_mil.savers.patient import PatientLevel
from monai_mil.savers.patients import PatientSaver
from monai_mil.savers.prediction import read_prediction
from monai_mil.savers.tables import TableSaver


class PredictionSaver(TableSaver):
    """Writes ``<output_dir>/predictions.csv``: one row a slide or scan, replaced as a whole when the engine ends.

    Columns: ``slide_id`` (or ``scan_id``), ``patient_id, label, pred, prob_<class>...``; multi-label cohorts also have
    ``label_<class>`` (1, 0 or empty) and join names in ``label`` and ``pred`` by ``;``; with operating points there is
    ``operating_point_<class>`` of each; ``remarks`` says what the reader assumed, repaired or left out.
    ``model`` is the digest of the network's weights. While the engine runs, finished rows stand in
    ``predictions.partial.csv``, so a run that is killed loses nothing but its last case. Under DistributedDataParallel
    the rows of all processes come together in one table. Beside it stands ``patients.csv`` of :class:`PatientSaver`
    where ``patient_level`` is given.

    Args:
        output_dir: the run's folder.
        classes: names of the classes, in the order of the network's outputs.
        multi_label: classes do not exclude each other.
        filename: name of the table.
        operating_points: the probability from which on each class is called in ``pred``, or that of the second of two
            exclusive classes; None calls the most probable class, or all of at least 0.5.
        patient_level: how the answers for the slides become the patient's, ``"mean"`` or ``"max"``; None for no table
            of patients.

    Examples:
        >>> import torch
        >>> from ignite.engine import Engine
        >>> from monai_mil.savers import PredictionSaver
        >>> engine = Engine(lambda engine, cases: cases)  # what a MONAI evaluator is, with its network's answers
        >>> PredictionSaver(str(folder), classes=["normal", "tumor"]).attach(engine)
        >>> _ = engine.run([[{"slide_id": "S-1", "pred": torch.tensor([0.25, 0.75])}]])
        >>> (folder / "predictions.csv").read_text().split()
        ['slide_id,patient_id,label,pred,prob_normal,prob_tumor,remarks', 'S-1,,,tumor,0.25,0.75,']
    """

    def __init__(
        self,
        output_dir: str,
        classes: Sequence[str],
        multi_label: bool = False,
        filename: str = "predictions.csv",
        operating_points: Sequence[float] | None = None,
        patient_level: PatientLevel | None = None,
    ) -> None:
        super().__init__(Path(output_dir, filename))
        self.classes = tuple(map(str, classes))
        self.multi_label = multi_label
        self.operating_points = operating_points
        self.resumable = patient_level is None
        self.patients = PatientSaver(output_dir, classes, multi_label, operating_points, patient_level)

    def attach(self, engine: Engine) -> None:
        """Collect at every iteration of ``engine`` and write both tables at its end."""
        super().attach(engine)
        self.patients.attach(engine)

    def _collect(self, case: Case) -> dict[str, str]:
        row = read_prediction(case, self.classes, self.multi_label, self.operating_points).row()
        return row | self.signature

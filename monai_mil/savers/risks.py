"""The table of risks that a survival network's predictions are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from ignite.engine import Engine

from monai_mil.errors import CohortError
from monai_mil.savers.base import CaseSaver
from monai_mil.savers.case import Case, row_beginning
from monai_mil.savers.patient import PatientLevel, check_level, grouped
from monai_mil.savers.tables import TableSaver, write_table


@dataclass(frozen=True, eq=False)
class RiskAnswer:
    """Risk and survival curve (``[bins]``) for slides or scans of a patient, and the follow-up, NaN where unknown."""

    patient_id: str
    slides: tuple[str, ...]
    slide_column: str
    risk: float
    survival: np.ndarray
    time: float
    event: float

    @classmethod
    def of(cls, case: Case, edges: Sequence[float]) -> RiskAnswer:
        """What :class:`monai_mil.training.SurvivalRiskd` made of a case.

        Raises:
            CohortError: it has no risk, or more or fewer bins than there are edges for.
        """
        survival = case.values("survival")
        if case.risk is None or survival is None:
            raise CohortError(
                f"{case.text}: no risk; put SurvivalRiskd into the postprocessing, or inference_survival.json "
                "behind the other configs"
            )
        if len(survival) != len(edges) - 1:
            raise CohortError(
                f"{case.text}: {len(survival)} outputs for {len(edges) - 1} time bins; give the "
                "time_bins.json of this model"
            )
        return cls(case.patient_id, case.slide_names, case.slide_column, case.risk, survival, *case.follow_up)

    def row(self, edges: Sequence[float]) -> dict[str, str]:
        """Cells of time, event, risk and survival at the end of every bin but the last."""
        follow_up = {"time": self.time, "event": self.event}
        row = {name: "" if math.isnan(value) else f"{value:g}" for name, value in follow_up.items()}
        row["risk"] = f"{self.risk:.6g}"
        ends = edges[1:-1]
        return row | {f"survival_{end:g}": f"{value:.6g}" for end, value in zip(ends, self.survival, strict=False)}


class RiskSaver(TableSaver):
    """Writes ``<output_dir>/predictions.csv`` of a survival network: one row a slide or scan.

    Columns: ``slide_id`` (or ``scan_id``), ``patient_id``, ``time`` and ``event`` (empty where unknown), ``risk``
    (higher for an earlier event) and ``survival_<time>``, the probability that the event comes after that time, for
    the end of every time bin but the last. Reads what :class:`monai_mil.training.SurvivalRiskd` makes. All else is as
    in :class:`PredictionSaver`; the risk of a patient with several slides is in ``survival.csv`` of an evaluation, and
    in ``patients.csv`` where ``patient_level`` is given.

    Args:
        output_dir: the run's folder.
        edges: of the time bins, one more than the network has outputs.
        filename: name of the table.
        patient_level: how the slides' risks become the patient's in ``patients.csv``, see :class:`PatientRiskSaver`.

    A case without a risk, or with more or fewer bins than there are edges for, raises a CohortError.

    Examples:
        >>> import torch
        >>> from ignite.engine import Engine
        >>> from monai_mil.savers import RiskSaver
        >>> from monai_mil.training import SurvivalRiskd
        >>> engine = Engine(lambda engine, cases: [SurvivalRiskd("pred")({"pred": case["pred"]}) for case in cases])
        >>> RiskSaver(str(folder), edges=(0.0, 12.0, 24.0)).attach(engine)
        >>> _ = engine.run([[{"slide_id": "S-1", "pred": torch.zeros(2)}]])
        >>> (folder / "predictions.csv").read_text().split()
        ['slide_id,patient_id,time,event,risk,survival_12', 'S-1,S-1,,,-0.5,0.5']
    """

    def __init__(
        self,
        output_dir: str,
        edges: Sequence[float],
        filename: str = "predictions.csv",
        patient_level: PatientLevel | None = None,
    ) -> None:
        super().__init__(Path(output_dir, filename))
        self.edges = tuple(edges)
        self.resumable = patient_level is None
        self.patients = PatientRiskSaver(output_dir, edges, patient_level)

    def attach(self, engine: Engine) -> None:
        """Collect at every iteration of ``engine`` and write both tables at its end."""
        super().attach(engine)
        self.patients.attach(engine)

    def _collect(self, case: Case) -> dict[str, str]:
        answer = RiskAnswer.of(case, self.edges)
        row = case.beginning | answer.row(self.edges)
        return row | self.signature


class PatientRiskSaver(CaseSaver[RiskAnswer]):
    """Writes ``<output_dir>/patients.csv`` of a survival network: one row a patient; :class:`RiskSaver` has one.

    Columns: as :class:`PatientSaver` begins, then as :class:`RiskSaver`.

    Args:
        output_dir: the run's folder.
        edges: of the time bins, one more than the network has outputs.
        patient_level: ``"mean"`` of the slides' risks and survival curves, or ``"max"``, those of the slide of the
            highest risk; None writes no table and removes an earlier one.
    """

    def __init__(
        self, output_dir: str | Path, edges: Sequence[float], patient_level: PatientLevel | None = None
    ) -> None:
        super().__init__()
        check_level(patient_level)
        self.path = Path(output_dir, "patients.csv")
        self.edges = tuple(edges)
        self.patient_level = patient_level

    def _results(self) -> tuple[Path, ...]:
        return (self.path,)

    def _collect(self, case: Case) -> RiskAnswer | None:
        return None if self.patient_level is None else RiskAnswer.of(case, self.edges)

    def _write(self, kept: Mapping[str, RiskAnswer], engine: Engine) -> None:
        if self.patient_level is None or not kept:
            return
        rows = []
        for patient, slides in grouped(kept, [answer.patient_id for answer in kept.values()]).items():
            answers = list(slides.values())
            names = [name for answer in answers for name in answer.slides]
            row = row_beginning(patient, "patient_id", patient, names, answers[0].slide_column)
            row |= _together(answers, self.patient_level).row(self.edges)
            rows.append(row | self.signature)
        write_table(self.path, list(rows[0]), (list(row.values()) for row in rows))


def _together(answers: Sequence[RiskAnswer], level: PatientLevel) -> RiskAnswer:
    """What the slides of a patient, whose follow-up is one, say of the risk."""
    known = next((answer for answer in answers if not math.isnan(answer.time)), answers[0])
    if level == "max":
        highest = max(answers, key=lambda answer: answer.risk)
        return replace(known, risk=highest.risk, survival=highest.survival)
    risk = math.fsum(answer.risk for answer in answers) / len(answers)
    return replace(known, risk=risk, survival=np.mean([answer.survival for answer in answers], axis=0))

"""Risk and follow-up of slides and patients, as survival metrics take them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from monai_mil.savers.case import Case
from monai_mil.savers.patient import PatientLevel


@dataclass(frozen=True)
class SurvivalCase:
    """A slide, scan or patient: the risk, higher for an earlier event, and the follow-up; NaN where unknown."""

    case_id: str
    patient_id: str
    risk: float
    time: float = math.nan
    event: float = math.nan

    @property
    def known(self) -> bool:
        """Whether the patient was followed."""
        return not math.isnan(self.time) and not math.isnan(self.event)

    @classmethod
    def of(cls, case: Case) -> SurvivalCase:
        """The risk and the follow-up of a case, as :class:`monai_mil.training.SurvivalRiskd` leaves it.

        Raises:
            ValueError: it has no risk.
        """
        if case.risk is None:
            raise ValueError(f"{case.text} has no 'risk'; put SurvivalRiskd into its postprocessing")
        return cls(case.name, case.patient_id, case.risk, *case.follow_up)


def by_patient(cases: Sequence[SurvivalCase], level: PatientLevel = "mean") -> list[SurvivalCase]:
    """One case a patient, in the order of their names: mean or highest risk of its slides, each counted once."""
    found: dict[str, dict[str, SurvivalCase]] = {}
    for case in cases:
        found.setdefault(case.patient_id, {})[case.case_id] = case
    return [_together(patient, list(found[patient].values()), level) for patient in sorted(found)]


def followed(patients: Sequence[SurvivalCase]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Risk, time and event of the patients whose follow-up is known, float64 ``[n]`` each."""
    rows = [(case.risk, case.time, case.event) for case in patients if case.known]
    risk, time, event = np.array(rows, dtype=float).reshape(-1, 3).T
    return risk, time, event


def _together(patient: str, slides: Sequence[SurvivalCase], level: PatientLevel) -> SurvivalCase:
    risks = [slide.risk for slide in slides]
    risk = max(risks) if level == "max" else math.fsum(risks) / len(risks)
    return replace(slides[0], case_id=patient, risk=risk)

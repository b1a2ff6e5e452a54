"""What survival metrics read from an evaluator's iteration."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine

from monai_mil.metrics import Array


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


def survival_cases(engine: Engine) -> Iterator[SurvivalCase]:
    """The cases of an engine's iteration, as :class:`monai_mil.training.SurvivalRiskd` leaves them.

    Raises:
        ValueError: the engine does not decollate, or a case has no risk.
    """
    batch: Any = engine.state.batch
    output: Any = engine.state.output
    if not isinstance(batch, Sequence) or not isinstance(output, Sequence):
        raise ValueError("survival metrics need decollated items: keep decollate=True of the evaluator")
    for given, made in zip(batch, output, strict=True):
        item = {**given, **made}
        if "risk" not in item:
            raise ValueError("a case of the engine has no 'risk'; put SurvivalRiskd into its postprocessing")
        name = item.get("slide_id", item.get("scan_id", item.get("patient_id", "")))
        label = item.get("label")
        follow_up = [math.nan, math.nan] if label is None else torch.as_tensor(label).flatten().tolist()
        yield SurvivalCase(str(name), str(item.get("patient_id", name)), float(item["risk"]), *follow_up)


def by_patient(cases: Sequence[SurvivalCase]) -> list[SurvivalCase]:
    """One case a patient, in the order of their names: the mean risk of the patient's slides, each counted once."""
    found: dict[str, dict[str, SurvivalCase]] = {}
    for case in cases:
        found.setdefault(case.patient_id, {})[case.case_id] = case
    return [_mean(patient, list(found[patient].values())) for patient in sorted(found)]


def followed(patients: Sequence[SurvivalCase]) -> tuple[Array, Array, Array]:
    """Risk, time and event of the patients whose follow-up is known, float64 ``[n]`` each."""
    rows = [(case.risk, case.time, case.event) for case in patients if case.known]
    risk, time, event = np.array(rows, dtype=float).reshape(-1, 3).T
    return risk, time, event


def _mean(patient: str, slides: Sequence[SurvivalCase]) -> SurvivalCase:
    risk = math.fsum(slide.risk for slide in slides) / len(slides)
    return replace(slides[0], case_id=patient, risk=risk)

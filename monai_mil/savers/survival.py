"""Survival inside a MONAI engine: the concordance index that chooses a model, and the report as files."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from ignite.engine import Engine
from ignite.metrics import Metric

from monai_mil.files import write_json
from monai_mil.metrics import concordance_index, group_names, risk_groups, survival_report
from monai_mil.savers.base import CaseSaver
from monai_mil.savers.case import Case, read_cases
from monai_mil.savers.gather import gather_cases
from monai_mil.savers.patient import PatientLevel, check_level
from monai_mil.savers.survival_cases import SurvivalCase, by_patient, followed
from monai_mil.savers.tables import write_table

logger = logging.getLogger(__name__)


class ConcordanceIndex(Metric):
    """:func:`concordance_index` over the patients of an epoch: the key metric of a survival bundle.

    Reads ``risk``, which :class:`monai_mil.training.SurvivalRiskd` makes, and ``label`` (time and event) and
    ``patient_id`` of the batch; a patient's slides count as one, with their mean risk.
    """

    def __init__(self) -> None:
        super().__init__()

    def reset(self) -> None:
        """Begin an epoch."""
        self._cases: list[SurvivalCase] = []

    def iteration_completed(self, engine: Engine) -> None:
        """Add the cases of an iteration."""
        self.update([SurvivalCase.of(case) for case in read_cases(engine)])

    def update(self, output: Sequence[SurvivalCase]) -> None:
        """Add cases."""
        self._cases.extend(output)

    def compute(self) -> float:
        """The index; NaN, with a warning, if no pair is comparable or training has diverged."""
        risk, time, event = followed(by_patient(gather_cases(self._cases)))
        try:
            return float(concordance_index(risk, time, event))
        except ValueError as error:
            warnings.warn(f"no concordance index: {error}", stacklevel=2)
            return math.nan


class SurvivalSaver(CaseSaver[SurvivalCase]):
    """Writes ``survival.json``, a :func:`survival_report`, and ``survival.csv`` when an evaluator ends.

    Reads what :class:`ConcordanceIndex` reads. The table has a row a patient: ``patient_id, risk, group, time, event``,
    the last two empty where unknown, the group where the risk is NaN. The report is of the patients who were followed;
    without two of them that can be compared there is none, with a warning. With several processes both tell of the
    patients of all.

    Args:
        output_dir: the run's folder.
        cutoffs: risks between the groups, chosen on other patients; None takes the median of these.
        n: bootstrap resamples.
        seed: of the resampling.
        patient_level: whether the risk of a patient is the mean of the slides' or the highest; None is the mean.
    """

    def __init__(
        self,
        output_dir: str | Path,
        cutoffs: Sequence[float] | None = None,
        n: int = 1000,
        seed: int = 0,
        patient_level: PatientLevel | None = None,
    ) -> None:
        super().__init__()
        check_level(patient_level)
        self.folder = Path(output_dir)
        self.cutoffs = cutoffs
        self.n = n
        self.seed = seed
        self.patient_level: PatientLevel = patient_level or "mean"

    def _results(self) -> tuple[Path, ...]:
        return (self.folder / "survival.json", self.folder / "survival.csv")

    def _collect(self, case: Case) -> SurvivalCase:
        return SurvivalCase.of(case)

    def _write(self, kept: Mapping[str, SurvivalCase], engine: Engine) -> None:
        patients = by_patient(list(kept.values()), self.patient_level)
        cutoffs = self.cutoffs
        try:
            report = survival_report(*followed(patients), cutoffs, self.n, self.seed)
        except ValueError as error:
            logger.warning("no survival report: %s", error)
        else:
            write_json(self.signed(report), self.folder / "survival.json")
            cutoffs = report["cutoffs"]
            figure, test = report["concordance"], report["log_rank"]
            logger.info(
                "concordance %.4f (95 %% interval %.4f to %.4f), log-rank p %.3g of %d patients with %d events",
                *figure.values(),
                test["p_value"],
                report["patients"],
                report["events"],
            )
        self._write_table(patients, cutoffs)

    def _write_table(self, patients: Sequence[SurvivalCase], cutoffs: Sequence[float] | None) -> None:
        columns = ("patient_id", "risk", "group", "time", "event")
        write_table(self.folder / "survival.csv", columns, (_row(case, cutoffs) for case in patients))


def _row(case: SurvivalCase, cutoffs: Sequence[float] | None) -> list[str]:
    names = group_names(1 + len(cutoffs or ()))
    grouped = cutoffs and not math.isnan(case.risk)
    group = names[int(risk_groups(case.risk, cutoffs or ()))] if grouped else ""
    follow_up = [f"{case.time:g}", f"{case.event:g}"] if case.known else ["", ""]
    return [case.patient_id, f"{case.risk:.6g}", group, *follow_up]

"""The table of risks that a survival network's predictions are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from monai_mil.errors import CohortError
from monai_mil.savers.case import Case
from monai_mil.savers.tables import TableSaver


class RiskSaver(TableSaver):
    """Writes ``<output_dir>/predictions.csv`` of a survival network: one row a slide or scan.

    Columns: ``slide_id`` (or ``scan_id``), ``patient_id``, ``time`` and ``event`` (empty where unknown), ``risk``
    (higher for an earlier event) and ``survival_<time>``, the probability that the event comes after that time, for
    the end of every time bin but the last. Reads what :class:`monai_mil.training.SurvivalRiskd` makes. All else is as
    in :class:`PredictionSaver`; the risk of a patient with several slides is in ``survival.csv``.

    Args:
        output_dir: the run's folder.
        edges: of the time bins, one more than the network has outputs.
        filename: name of the table.

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

    def __init__(self, output_dir: str, edges: Sequence[float], filename: str = "predictions.csv") -> None:
        super().__init__(Path(output_dir, filename))
        self.edges = tuple(edges)

    def _collect(self, case: Case) -> dict[str, str]:
        survival = case.values("survival")
        if case.risk is None or survival is None:
            raise CohortError(
                f"{case.text}: no risk; put SurvivalRiskd into the postprocessing, or inference_survival.json "
                "behind the other configs"
            )
        if len(survival) != len(self.edges) - 1:
            raise CohortError(
                f"{case.text}: {len(survival)} outputs for {len(self.edges) - 1} time bins; give the "
                "time_bins.json of this model"
            )
        time, event = case.follow_up
        row = {case.id_column: case.name, "patient_id": case.patient_id}
        row |= {"time": "" if math.isnan(time) else f"{time:g}", "event": "" if math.isnan(event) else f"{event:g}"}
        row["risk"] = f"{case.risk:.6g}"
        ends = self.edges[1:-1]
        row |= {f"survival_{end:g}": f"{value:.6g}" for end, value in zip(ends, survival, strict=False)}
        return row if self.model_digest is None else row | {"model": self.model_digest}

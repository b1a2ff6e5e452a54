"""The localisation of an evaluation as a file."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path

from ignite.engine import Engine

from monai_mil.files import write_json
from monai_mil.metrics import SliceReport, slice_metrics
from monai_mil.savers.base import CaseSaver
from monai_mil.savers.case import Case
from monai_mil.savers.slice_cases import SliceCase

logger = logging.getLogger(__name__)


class SliceReportSaver(CaseSaver[SliceCase]):
    """Writes ``<output_dir>/slice_metrics.json``, a :class:`SliceReport`, when an evaluator ends.

    Reads ``scores`` and ``attention`` of the decollated output, as :class:`monai_mil.training.UnpackOutputd` makes
    them, and ``instance_labels``, ``mask``, ``scan_id`` (or ``slide_id``) and ``patient_id`` of the batch. A patient's
    scans are resampled together. With several processes it tells of the scans of all; what is not defined is null.

    Args:
        output_dir: the run's folder.
        n: bootstrap resamples.
        seed: of the resampling.
    """

    by_slide = True

    def __init__(self, output_dir: str | Path, n: int = 1000, seed: int = 0) -> None:
        super().__init__()
        self.path = Path(output_dir, "slice_metrics.json")
        self.n = n
        self.seed = seed

    def _collect(self, case: Case) -> SliceCase:
        return SliceCase.of(case, ("scores",))

    def _results(self) -> tuple[Path, ...]:
        return (self.path,)

    def _write(self, kept: Mapping[str, SliceCase], engine: Engine) -> None:
        # The resampling depends on the order of the cases; how many processes there were must not.
        cases = [kept[name] for name in sorted(kept)]
        report = slice_metrics(
            [case.scores for case in cases],
            [case.labels for case in cases],
            [case.case_id for case in cases],
            [case.patient_id for case in cases],
            self.n,
            self.seed,
            [case.attention for case in cases],
        )
        write_json(self.signed(report.as_dict()), self.path)
        _log(report)


def _log(report: SliceReport) -> None:
    for name in ("auroc", "auprc", "attention_mass"):
        figure = getattr(report, name)
        centre = {"rank": report.centre_rank[name], "Gaussian": report.centre_gaussian[name]}
        logger.info(
            "slice %s %.4f (95 %% interval %.4f to %.4f) of %d scans; their centre: %s",
            name,
            figure.value,
            figure.low,
            figure.high,
            report.scans,
            ", ".join(f"{value:.4f} by {rule}" for rule, value in centre.items() if not math.isnan(value)) or "none",
        )
    for reason in ("all_positive", "unlabelled"):
        if names := getattr(report, reason):
            logger.warning("no slice metrics of %d scans, %s: %s", len(names), reason, ", ".join(names[:20]))

"""The localisation of an evaluation as a file."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import ignite.distributed as idist
from ignite.engine import Engine, Events

from monai_mil.files import write_json
from monai_mil.metrics import SliceReport, slice_metrics
from monai_mil.savers.gather import gather_cases
from monai_mil.savers.slice_cases import SliceCase, slice_cases

logger = logging.getLogger(__name__)


class SliceReportSaver:
    """Writes ``<output_dir>/slice_metrics.json``, a :class:`SliceReport`, when an evaluator ends.

    Reads ``scores`` and ``attention`` of the decollated output, as :class:`monai_mil.training.UnpackOutputd` makes
    them, and ``instance_labels``, ``mask``, ``scan_id`` (or ``slide_id``) and ``patient_id`` of the batch. A patient's
    scans are resampled together. With several processes it tells of the scans of all; what is not defined is null.

    Args:
        output_dir: the run's folder.
        n: bootstrap resamples.
        seed: of the resampling.
    """

    def __init__(self, output_dir: str | Path, n: int = 1000, seed: int = 0) -> None:
        self.path = Path(output_dir, "slice_metrics.json")
        self.n = n
        self.seed = seed
        self._cases: list[SliceCase] = []

    def attach(self, engine: Engine) -> None:
        """Collect at every iteration of ``engine`` and write at its end."""
        engine.add_event_handler(Events.STARTED, lambda: self._cases.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _collect(self, engine: Engine) -> None:
        self._cases.extend(slice_cases(engine, ("scores",)))

    def _write(self, engine: Engine) -> None:
        found = {case.case_id: case for case in gather_cases(self._cases)}
        # The resampling depends on the order of the cases; how many processes there were must not.
        cases = [found[case_id] for case_id in sorted(found)]
        if idist.get_rank() != 0:
            return
        report = slice_metrics(
            [case.scores for case in cases],
            [case.labels for case in cases],
            [case.case_id for case in cases],
            [case.patient_id for case in cases],
            self.n,
            self.seed,
            [case.attention for case in cases],
        )
        write_json(report.as_dict(), self.path)
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

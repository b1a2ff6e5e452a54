"""The metrics of an evaluation as a file."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import Tensor

from monai_mil.files import write_json
from monai_mil.metrics import classification_report, pred_and_label
from monai_mil.savers.gather import gather_cases

logger = logging.getLogger(__name__)


class ReportSaver:
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
    """

    def __init__(
        self,
        output_dir: str | Path,
        classes: Sequence[str],
        n: int = 1000,
        seed: int = 0,
        operating_points: Sequence[float] | None = None,
    ) -> None:
        self.path = Path(output_dir, "metrics.json")
        self.classes = tuple(classes)
        self.n = n
        self.seed = seed
        self.operating_points = operating_points
        self._cases: list[tuple[Tensor, Tensor, str]] = []

    def attach(self, engine: Engine) -> None:
        """Collect at every iteration of ``engine`` and write at its end."""
        engine.add_event_handler(Events.STARTED, lambda: self._cases.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _collect(self, engine: Engine) -> None:
        output: Any = engine.state.output
        batch: Any = engine.state.batch
        preds, labels = (values.detach().float().cpu() for values in pred_and_label(output))
        for item, pred, label in zip(batch, preds, labels, strict=True):
            own = f"case {len(self._cases)} of process {idist.get_rank()}"
            self._cases.append((pred, label, str(item.get("patient_id", own))))

    def _write(self, engine: Engine) -> None:
        # The resampling depends on the order of the cases; how many processes there were must not.
        cases = sorted(gather_cases(self._cases), key=lambda case: (case[2], case[1].tolist(), case[0].tolist()))
        preds, labels, patients = zip(*cases, strict=True)
        if idist.get_rank() != 0:
            return
        prob, label = torch.stack(preds), torch.stack(labels)
        points = self.operating_points
        if prob.shape[1] == 1 and len(self.classes) == 2:
            prob = torch.cat([1 - prob, prob], dim=1)
            points = None if points is None else [1 - points[0], points[0]]
        truth = label[:, 0] if label.shape[1] == 1 and len(self.classes) > 1 else label
        report = classification_report(prob.numpy(), truth.numpy(), self.classes, patients, self.n, self.seed, points)
        write_json(report, self.path)
        for name in ("auroc", "auprc", "balanced_accuracy", "macro_f1"):
            figure = report[name]
            logger.info("%s %.4f (95 %% interval %.4f to %.4f)", name, figure["value"], figure["low"], figure["high"])

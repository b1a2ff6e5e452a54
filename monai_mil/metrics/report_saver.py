"""The metrics of an evaluation as a file."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from monai_mil.files import replacing
from monai_mil.metrics.handlers import pred_and_label
from monai_mil.metrics.report import classification_report

logger = logging.getLogger(__name__)


class ReportSaver:
    """Writes ``<output_dir>/metrics.json``, a :func:`monai_mil.metrics.classification_report`, when an evaluator ends.

    Reads ``pred`` (probabilities) and ``label`` of the decollated output and ``patient_id`` of the batch, whose cases
    the bootstrap keeps together. For one process; what is not defined is null.

    Args:
        output_dir: the run's folder.
        classes: names of the classes, in the order of the network's outputs.
        n: bootstrap resamples.
        seed: of the resampling.
    """

    def __init__(self, output_dir: str | Path, classes: Sequence[str], n: int = 1000, seed: int = 0) -> None:
        self.path = Path(output_dir, "metrics.json")
        self.classes = tuple(classes)
        self.n = n
        self.seed = seed
        self._preds: list[torch.Tensor] = []
        self._labels: list[torch.Tensor] = []
        self._patients: list[str] = []

    def attach(self, engine: Engine) -> None:
        """Collect at every iteration of ``engine`` and write at its end."""
        engine.add_event_handler(Events.STARTED, self._clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _clear(self, engine: Engine) -> None:
        self._preds.clear()
        self._labels.clear()
        self._patients.clear()

    def _collect(self, engine: Engine) -> None:
        output: Any = engine.state.output
        batch: Any = engine.state.batch
        pred, label = pred_and_label(output)
        self._preds.append(pred.detach().float().cpu())
        self._labels.append(label.float().cpu())
        first = sum(map(len, self._preds)) - len(pred)
        self._patients += [str(item.get("patient_id", first + index)) for index, item in enumerate(batch)]

    def _write(self, engine: Engine) -> None:
        label = torch.cat(self._labels)
        truth = label[:, 0] if label.shape[1] == 1 and len(self.classes) > 1 else label
        prob = torch.cat(self._preds).numpy()
        report = classification_report(prob, truth.numpy(), self.classes, self._patients, self.n, self.seed)
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps(_nulled(report), indent=4) + "\n")
        for name in ("auroc", "balanced_accuracy", "macro_f1"):
            figure = report[name]
            logger.info("%s %.4f (95 %% interval %.4f to %.4f)", name, figure["value"], figure["low"], figure["high"])


def _nulled(value: Any) -> Any:
    """JSON knows no NaN."""
    if isinstance(value, dict):
        return {key: _nulled(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value

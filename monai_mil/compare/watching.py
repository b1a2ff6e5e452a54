"""What a comparison notes of a training while it goes on: a row an epoch, with which a resumed run goes on."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from monai_mil.files import parse_json, write_json


class History:
    """Writes ``history.json``: loss of the training and figures of the validation of every epoch.

    Args:
        path: the file.
        further: gives more figures of an epoch, when its validation is done.
    """

    def __init__(self, path: Path, further: Callable[[], dict[str, float]] = dict) -> None:
        self.path = path
        self.further = further
        self.rows: list[dict[str, Any]] = read_history(path)
        self._losses: list[float] = []

    def attach(self, trainer: Engine, evaluator: Engine) -> None:
        """Watch a trainer and the evaluator that it runs each epoch."""
        trainer.add_event_handler(Events.EPOCH_STARTED, self._losses.clear)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        evaluator.add_event_handler(Events.COMPLETED, self._note)

    def _collect(self, trainer: Engine) -> None:
        output: Any = trainer.state.output
        self._losses.append(float(output[0]["loss"]))

    def _note(self, evaluator: Engine) -> None:
        epoch = int(evaluator.state.epoch)
        figures = {name: float(value) for name, value in evaluator.state.metrics.items() if _is_number(value)}
        loss = math.fsum(self._losses) / len(self._losses) if self._losses else math.nan
        row = {"epoch": epoch, "loss": loss, **figures, **self.further()}
        # A resumed run repeats the epoch that it was killed in.
        self.rows = [past for past in self.rows if past["epoch"] < epoch] + [row]
        write_json(self.rows, self.path)


def read_history(path: Path) -> list[dict[str, Any]]:
    """The rows of ``history.json``; none where it is not there."""
    try:
        return list(parse_json(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return []


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False

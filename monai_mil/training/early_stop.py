"""End training when validation no longer improves, on all processes at once."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events

from monai_mil.training.scores import Mode, key_score

logger = logging.getLogger(__name__)


class EarlyStop:
    """Stops a trainer after ``patience`` validations without improvement.

    With several processes every one must attach it: the score is averaged over them, so that all stop together. Pass
    the object to :class:`Checkpointer` too and a resumed run keeps counting where it was.

    Args:
        patience: validations without improvement that are endured.
        min_delta: what counts as improvement.
        mode: ``"max"`` if a high metric is good, ``"min"`` if a low one is.
    """

    def __init__(self, patience: int, min_delta: float = 0.0, mode: Mode = "max") -> None:
        if patience < 1:
            raise ValueError(f"patience must be at least 1, got {patience}")
        self.patience = patience
        self.min_delta = min_delta
        self.mode = mode
        self.best = -float("inf")
        self.waited = 0
        self._trainer: Engine | None = None

    def attach(self, evaluator: Engine, trainer: Engine) -> None:
        """Watch a MONAI evaluator and stop ``trainer``."""
        self._trainer = trainer
        evaluator.add_event_handler(Events.COMPLETED, self)

    def __call__(self, evaluator: Engine) -> None:
        """Count the validation that has just completed."""
        score = key_score(evaluator, self.mode)
        mean = float(idist.all_reduce(float("nan") if score is None else score)) / idist.get_world_size()
        if mean > self.best + self.min_delta:
            self.best, self.waited = mean, 0
        else:
            self.waited += 1
        self._stop_if_due()

    def _stop_if_due(self) -> None:
        if self.waited >= self.patience and self._trainer is not None:
            logger.info("training ends: no better %d validations in a row (patience %d)", self.waited, self.patience)
            self._trainer.terminate()

    def state_dict(self) -> dict[str, Any]:
        """Best score and validations waited since."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the count; a run that had stopped stops again before its first epoch."""
        self.best, self.waited = state["best"], state["waited"]
        self._stop_if_due()

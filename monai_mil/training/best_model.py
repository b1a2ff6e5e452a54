"""Keep the weights of the best validation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from torch import nn

from monai_mil.training.files import save_atomically, unwrap
from monai_mil.training.scores import Mode, key_score


class BestModel:
    """Writes a network's bare state dict whenever the evaluator's key metric is the best so far.

    Of equally good epochs the latest is kept: an AUROC of 1 is soon reached on a small validation split, long before
    the probabilities mean anything.

    Until a validation has given a finite metric the latest weights are kept, so that the file always exists. Pass the
    object to :class:`Checkpointer` too: a resumed run then never overwrites a better model.

    Args:
        network: what is saved; a DDP wrapper is taken off.
        path: the file, such as ``models/model.pt``.
        mode: ``"max"`` if a high metric is good, ``"min"`` if a low one is.

    Attributes:
        best: the best score so far (negated for ``"min"``), None before the first.
        best_epoch: its epoch.
    """

    def __init__(self, network: nn.Module, path: str | Path, mode: Mode = "max") -> None:
        self.network = network
        self.path = Path(path)
        self.mode = mode
        self.best: float | None = None
        self.best_epoch = -1
        self._evaluator: Engine | None = None

    def attach(self, evaluator: Engine) -> None:
        """Watch a MONAI evaluator; its epoch is the trainer's, as ``ValidationHandler`` sets it."""
        self._evaluator = evaluator
        evaluator.add_event_handler(Events.COMPLETED, self)

    def __call__(self, evaluator: Engine) -> None:
        """Save if the validation that has just completed is the best one."""
        score = key_score(evaluator, self.mode)
        if self.best is not None and (score is None or score < self.best):
            return
        if score is not None:
            self.best, self.best_epoch = score, evaluator.state.epoch
        if idist.get_rank() == 0:
            save_atomically(unwrap(self.network).state_dict(), self.path)

    def state_dict(self) -> dict[str, Any]:
        """The bookkeeping, without the weights."""
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the bookkeeping, also what the evaluator itself reports as best."""
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        if self._evaluator is not None and self.best is not None:
            reported: Any = self._evaluator.state
            reported.best_metric = self.best if self.mode == "max" else -self.best
            reported.best_metric_epoch = self.best_epoch

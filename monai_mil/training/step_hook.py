"""Base of handlers that act just before an optimiser's step, when the gradient is complete."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from ignite.engine import Engine, Events


class StepHook(ABC):
    """Calls :meth:`before_step` before every step of a MONAI trainer's optimiser while the trainer runs.

    There accumulated gradients are complete (``accumulation_steps``) and AMP's scale has been taken off, or is named by
    the optimiser that does so itself (the fused ones).
    """

    _hook: Any = None

    def attach(self, trainer: Engine) -> None:
        """Act in every step of a MONAI trainer."""
        trainer.add_event_handler(Events.STARTED, self._begin)
        trainer.add_event_handler(Events.COMPLETED, self._end)

    @abstractmethod
    def before_step(self, optimizer: Any) -> None:
        """Look at the gradient, or change it."""

    def _begin(self, trainer: Any) -> None:
        self._end(trainer)
        self._hook = trainer.optimizer.register_step_pre_hook(
            lambda optimizer, args, kwargs: self.before_step(optimizer)
        )

    def _end(self, trainer: Any) -> None:
        if self._hook is not None:
            self._hook.remove()

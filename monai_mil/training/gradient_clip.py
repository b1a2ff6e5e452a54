"""Bound the gradient before the optimiser uses it."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events
from torch import nn
from torch.nn.utils import clip_grad_norm_


class GradientClip:
    """Scales the gradient of all parameters together down to a norm of ``max_norm`` where it is longer.

    It acts inside the optimiser's step: there the gradient is complete (``accumulation_steps``) and AMP's scale has
    been taken off, or is named by the optimiser that does so itself (the fused ones).

    Args:
        network: whose gradient.
        max_norm: largest Euclidean norm.

    Raises:
        ValueError: ``max_norm`` is not above 0.
    """

    def __init__(self, network: nn.Module, max_norm: float) -> None:
        if max_norm <= 0:
            raise ValueError(f"max_norm must be above 0, got {max_norm}")
        self.network = network
        self.max_norm = max_norm
        self._hook: Any = None

    def attach(self, trainer: Engine) -> None:
        """Clip every step of a MONAI trainer's optimiser while the trainer runs."""
        trainer.add_event_handler(Events.STARTED, self._begin)
        trainer.add_event_handler(Events.COMPLETED, self._end)

    def _begin(self, trainer: Any) -> None:
        self._end(trainer)
        self._hook = trainer.optimizer.register_step_pre_hook(self._clip)

    def _end(self, trainer: Any) -> None:
        if self._hook is not None:
            self._hook.remove()

    def _clip(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        scale = getattr(optimizer, "grad_scale", None)
        clip_grad_norm_(self.network.parameters(), self.max_norm * (1.0 if scale is None else float(scale)))

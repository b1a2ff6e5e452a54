"""Bound the gradient before the optimiser uses it."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils import clip_grad_norm_

from monai_mil.training.step_hook import StepHook


class GradientClip(StepHook):
    """Scales the gradient of all parameters together down to a norm of ``max_norm`` where it is longer.

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

    def before_step(self, optimizer: Any) -> None:
        """Clip."""
        scale = getattr(optimizer, "grad_scale", None)
        clip_grad_norm_(self.network.parameters(), self.max_norm * (1.0 if scale is None else float(scale)))

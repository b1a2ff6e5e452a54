"""Leave out steps that would spoil the weights."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn
from torch.nn.utils import get_total_norm

from monai_mil.training.step_hook import StepHook


class SkipNonFinite(StepHook):
    """Leaves out a step whose gradient is NaN or infinite, as that of a loss is which is no number, and warns.

    The weights, the optimiser's averages and an :class:`Anchor` stay as they are. A bag that does this now and then
    costs its own steps; a run that does nothing else any more is ended. What AMP's scaler leaves out does not count.

    Args:
        network: whose gradient.
        patience: so many steps left out in a row end training.

    Attributes:
        skipped: steps left out since the handler was made.

    Raises:
        ValueError: ``patience`` is below 1.
    """

    def __init__(self, network: nn.Module, patience: int = 10) -> None:
        if patience < 1:
            raise ValueError(f"patience must be at least 1, got {patience}")
        self.network = network
        self.patience = patience
        self.skipped = 0
        self._in_a_row = 0

    def before_step(self, optimizer: Any) -> None:
        """Take the gradient away if it is not finite.

        Raises:
            FloatingPointError: that has happened ``patience`` times in a row.
        """
        gradients = [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]
        if getattr(optimizer, "found_inf", None) is not None or bool(get_total_norm(gradients).isfinite()):
            self._in_a_row = 0
            return
        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row >= self.patience:
            raise FloatingPointError(
                f"the gradient was not finite in {self._in_a_row} steps in a row; lower the learning rate, and look at "
                "the features and labels of the bags"
            )
        warnings.warn(
            f"a gradient is not finite: its step is left out ({self.skipped} so far); see whether a bag is to blame",
            stacklevel=2,
        )
        for parameter in self.network.parameters():
            parameter.grad = None

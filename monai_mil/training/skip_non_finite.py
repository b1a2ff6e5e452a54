"""Leave out optimiser steps whose gradient is NaN or infinite."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from torch import nn
from torch.nn.utils import get_total_norm

from monai_mil.training.step_hook import StepHook


class SkipNonFinite(StepHook):
    """Leaves out a step whose gradient is NaN or infinite, as that of a loss which is no number, and warns.

    The weights, the optimiser's averages and an :class:`Anchor` stay as they are. A bag that does this now and then
    costs its own steps; a run that does nothing else any more is ended.

    AMP's scaler leaves such steps out itself. Those of a loss that is no number count here too, in any process, and the
    scale stays what it was; a finite loss whose scaled gradient overflows is the scaler's own business.

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
        self._loss_is_no_number = False
        self._scaler_before: dict[str, Any] = {}
        self._bags = ""

    def attach(self, trainer: Engine) -> None:
        """Act in every step of a MONAI trainer."""
        super().attach(trainer)
        trainer.add_event_handler(Events.ITERATION_STARTED, self._remember)
        # Here the loss is read without a wait: the scaler's step, which follows, waits for the device anyway.
        trainer.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._before_scaler)
        trainer.add_event_handler(IterationEvents.MODEL_COMPLETED, self._after_scaler)

    def before_step(self, optimizer: Any) -> None:
        """Take the gradient away if it is not finite.

        Raises:
            FloatingPointError: that has happened ``patience`` times in a row.
        """
        overflow = getattr(optimizer, "found_inf", None)
        if overflow is not None and bool(overflow):  # a fused optimiser leaves this step out, as the scaler does
            return
        gradients = [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]
        if overflow is not None or bool(get_total_norm(gradients).isfinite()):
            self._in_a_row = 0
            self._loss_is_no_number = False
            return
        self._leave_out()
        for parameter in self.network.parameters():
            parameter.grad = None

    def _before_scaler(self, trainer: Any) -> None:
        if not _scales(trainer):
            return
        self._scaler_before = trainer.scaler.state_dict()
        # Of accumulated gradients one such loss spoils the sum.
        self._loss_is_no_number |= not bool(torch.isfinite(trainer.state.output["loss"]))

    def _after_scaler(self, trainer: Any) -> None:
        """Undo what the scaler made of a loss that is no number: it takes it for an overflow and lowers the scale."""
        if not _scales(trainer) or trainer.scaler.get_scale() >= self._scaler_before["scale"]:
            return
        # All processes have the same gradient, so all are here; but only one may have had the loss.
        to_blame = idist.all_reduce(float(self._loss_is_no_number), op="MAX")
        self._loss_is_no_number = False
        if to_blame:
            trainer.scaler.load_state_dict(self._scaler_before)
            self._leave_out()

    def _leave_out(self) -> None:
        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row >= self.patience:
            raise FloatingPointError(
                f"the gradient was not finite in {self._in_a_row} steps in a row{self._bags}; lower the learning rate, "
                "and look at the features and labels of the bags"
            )
        warnings.warn(
            f"a gradient is not finite: its step is left out ({self.skipped} so far){self._bags}; see whether a bag is "
            "to blame",
            stacklevel=2,
        )

    def _remember(self, trainer: Engine) -> None:
        batch: Mapping[str, Any] = trainer.state.batch if isinstance(trainer.state.batch, Mapping) else {}
        names = next((batch[key] for key in ("scan_id", "slide_id", "patient_id") if batch.get(key)), ())
        self._bags = f", the last of {', '.join(map(str, names))}" if names else ""


def _scales(trainer: Any) -> bool:
    """Whether AMP scales the loss."""
    scaler = getattr(trainer, "scaler", None)
    return scaler is not None and scaler.is_enabled()

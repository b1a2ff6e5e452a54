"""Guards that end a training run which cannot succeed, and say why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine
from monai.engines.utils import IterationEvents
from torch import Tensor

from monai_mil.errors import CohortError


def require_steps(engine: Any) -> None:
    """Check that an epoch of a MONAI engine has a batch; without one MONAI warns and ends as if it had trained.

    For a config's ``run``, so that nothing is trained or written before.

    Raises:
        CohortError: there is none; says whether the cases are too few for a whole batch.
    """
    if engine.state.epoch_length != 0:
        return
    loader = engine.data_loader
    cases = len(getattr(loader, "dataset", ()))
    if cases == 0:
        raise CohortError("0 batches: the data list is empty; check the cohort's column 'split'")
    if getattr(loader, "drop_last", False):
        raise CohortError(
            f"0 batches: {cases} cases are fewer than the batch_size {loader.batch_size} with drop_last; "
            f"set drop_last to false or batch_size to at most {cases}"
        )
    raise CohortError(f"0 batches of {cases} cases; check the data loader's sampler and the engine's epoch_length")


class StopOnNaN:
    """Ends training with an error when the loss is no longer a finite number, before it spoils the weights."""

    def attach(self, trainer: Engine) -> None:
        """Watch the loss of every iteration of a MONAI trainer."""
        trainer.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def __call__(self, trainer: Any) -> None:
        """Check the loss that has just been computed.

        Raises:
            FloatingPointError: it is NaN or infinite; names epoch, iteration and the loss's terms.
        """
        loss = trainer.state.output["loss"]
        if torch.isfinite(loss).all():
            return
        terms: Mapping[str, Tensor] = getattr(trainer.loss_function, "last", {})
        told = "".join(f", {name} {float(value):g}" for name, value in terms.items())
        raise FloatingPointError(
            f"epoch {trainer.state.epoch}, iteration {trainer.state.iteration}: the loss is {float(loss.detach()):g}"
            f"{told}; lower the learning rate or clip the gradient"
        )

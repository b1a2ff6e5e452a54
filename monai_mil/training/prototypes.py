"""Prototypes of PSMIL follow the bags of a training."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Engine
from monai.engines import IterationEvents
from torch import nn
from torch.nn import functional as F

from monai_mil.networks import PSMIL
from monai_mil.training.distributed import unwrap


class FollowPrototypes:
    """After each loss, draws the prototype of a bag's class to the instance that is most like it; see :class:`PSMIL`.

    With labels that do not exclude each other the prototypes of all that are 1 move.

    Args:
        network: a ``PSMIL``; a DDP wrapper is taken off.
        momentum: ``m``, what remains of a prototype.

    Raises:
        ValueError: the network has no prototypes, or ``momentum`` is out of range.
    """

    def __init__(self, network: nn.Module, momentum: float = 0.99) -> None:
        inner = unwrap(network)
        if not isinstance(inner, PSMIL):
            raise ValueError(f"{type(inner).__name__} has no prototypes; this is for PSMIL")
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be at least 0 and at most 1, got {momentum}")
        self.network = inner
        self.momentum = momentum

    def attach(self, trainer: Engine) -> None:
        """Watch a MONAI trainer whose inferer gives the network's whole output."""
        trainer.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def __call__(self, trainer: Any) -> None:
        """One step of the prototypes."""
        rows, label = trainer.state.output["pred"]["class_rows"], trainer.state.output["label"]
        label = torch.as_tensor(label).to(rows.device)
        present = label == 1 if label.dim() == 2 else F.one_hot(label.long(), rows.shape[1]).bool()
        self.network.follow(rows, present, self.momentum)

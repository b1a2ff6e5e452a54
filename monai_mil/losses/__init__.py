"""Bag losses and regularisers; each takes ``(output dict, label)`` and returns a scalar."""

from __future__ import annotations

from monai_mil.losses.bag import BagBCE, BagCrossEntropy
from monai_mil.losses.mil_loss import MILLoss

__all__ = ["BagBCE", "BagCrossEntropy", "MILLoss"]

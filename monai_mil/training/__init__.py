"""What MONAI's and ignite's engines lack for bags: inferers, batches, resume, seeding, early stopping."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "BestModel": "best_model",
    "Checkpointer": "checkpointer",
    "EarlyStop": "early_stop",
    "EpochSeeder": "seeding",
    "FullOutputInferer": "inferers",
    "finish_distributed": "distributed",
    "prepare_bag_batch": "batches",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")

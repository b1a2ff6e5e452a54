"""Metrics with confidence intervals, curves for reports, and the AUROC that engines use."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "AUROC": "handlers",
    "Calibration": "curves",
    "Interval": "bootstrap",
    "RocCurve": "curves",
    "accuracy": "classification",
    "auroc": "classification",
    "balanced_accuracy": "classification",
    "bootstrap_ci": "bootstrap",
    "calibration": "curves",
    "classification_report": "report",
    "instance_auroc": "instances",
    "macro_f1": "classification",
    "roc_curve": "curves",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")

"""Bags: features of a slide's tiles on disk, the cohorts they belong to, and the way into a network."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {
    "BagFile": "file",
    "export_clam": "file",
    "BagInfo": "info",
    "Cohort": "cohort",
    "CohortSlide": "cohort",
    "split_cohort": "cohort",
    "read_cohort": "cohort_reader",
    "make_bag_cohort": "synthetic",
    "make_slide_cohort": "synthetic",
    "tile_truth": "synthetic",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)

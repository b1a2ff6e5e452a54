"""Bags: features of a slide's tiles on disk, the cohorts they belong to, and the way into a network."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {
    "BagFile": "file",
    "BagInfo": "info",
    "Cohort": "cohort",
    "CohortSlide": "cohort",
    "EmbedReport": "embed_run",
    "EmbedSettings": "embed",
    "EmbedSlided": "transforms",
    "LoadBagd": "transforms",
    "ResilientDataset": "dataset",
    "SampleInstancesd": "transforms",
    "SlideResult": "embed_job",
    "bag_datalist": "find",
    "collate_bags": "collate",
    "embed_cohort": "embed_run",
    "embed_slide": "embed",
    "export_clam": "file",
    "find_slides": "find",
    "make_bag_cohort": "synthetic",
    "make_mnist_bags": "mnist_bags",
    "make_slide_cohort": "synthetic",
    "read_cohort": "cohort_reader",
    "slide_datalist": "find",
    "split_cohort": "cohort",
    "tile_slide": "embed",
    "tile_truth": "synthetic",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)

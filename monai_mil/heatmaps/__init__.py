"""Instance scores back on the slide: heatmaps, their exports and the cohort report."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {
    "Colouring": "colours",
    "Heatmap": "heatmap",
    "SlideFrame": "heatmap",
    "assemble": "heatmap",
    "colour_table": "colours",
    "percentile_ranks": "heatmap",
    "export_geojson": "geojson",
    "export_png": "png",
    "export_tiff": "tiff",
    "HeatmapSaver": "savers",
    "PredictionSaver": "savers",
    "write_report": "report",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)

"""Whether the finding that a heatmap is drawn of was called, and what figures say and do where it was not."""

from __future__ import annotations

import math

import numpy as np

from monai_mil.heatmaps.heatmap import Heatmap
from monai_mil.heatmaps.scan_heatmap import ScanHeatmap

_GREY, _KEPT = 190, 0.22


def is_muted(heatmap: Heatmap | ScanHeatmap) -> bool:
    """Whether the slide or scan is below its operating point: its attribute ``called`` is False, or its threshold is
    infinite."""
    return heatmap.attributes.get("called") is False or heatmap.threshold == math.inf


def mute(table: np.ndarray) -> np.ndarray:
    """Colours uint8 ``[..., 3]`` of a slide below its operating point: pale, most of their colour and contrast gone."""
    return (_KEPT * table + (1 - _KEPT) * _GREY).astype(np.uint8)


def muted_text(heatmap: Heatmap | ScanHeatmap) -> str:
    """Why the colours are muted, in words; empty where they are not.

    The attributes ``finding``, ``finding_probability`` and ``operating_point``, where there are any, say what was not
    called.
    """
    if not is_muted(heatmap):
        return ""
    said, foreground = heatmap.attributes, "no foreground, " if heatmap.threshold == math.inf else ""
    if "finding_probability" not in said:
        return f"below the operating point: {foreground}drawn muted"
    finding, probability = said["finding"], _probability(float(said["finding_probability"]))
    point = said.get("operating_point")
    if point is None:
        return f"{finding} not predicted ({probability}): {foreground}drawn muted"
    return f"below the operating point: {foreground}drawn muted ({finding} {probability}, point {float(point):.3g})"


def _probability(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"

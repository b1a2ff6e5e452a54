"""The same with two short windows in every positive scan, apart from each other: what a single bell cannot cover."""

from __future__ import annotations

from pathlib import Path

from experiments.normal_guidance import WIDTH, compare
from monai_mil.synthetic import ShiftedMean


def run(folder: Path) -> str:
    """Train every method on every seed; a Markdown table of scan AUROC, slice AUROC and slice AUPRC."""
    return compare(folder, ShiftedMean(window=6, windows=2, gap=8, width=WIDTH, delta=1.0))

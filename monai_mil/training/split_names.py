"""Figures are called by the split they are of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

Metric = TypeVar("Metric")


def named_by_split(metrics: Mapping[str, Metric], split: str | None) -> dict[str, Metric]:
    """The metrics of validation under the name of the split that is evaluated.

    Args:
        metrics: by name, such as ``val_auroc``; other names stay.
        split: ``train``, ``val`` or ``test``; None, all cases, is called ``all``.

    Examples:
        >>> from monai_mil.training import named_by_split
        >>> named_by_split({"val_auroc": 0.9}, "test")
        {'test_auroc': 0.9}
    """
    own = f"{split or 'all'}_"
    return {own + name.removeprefix("val_") if name.startswith("val_") else name: metrics[name] for name in metrics}

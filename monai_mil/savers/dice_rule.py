"""Above which score a map predicts its finding, where it is compared with a ground truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from monai_mil.errors import CohortError, SettingsError
from monai_mil.files import parse_json
from monai_mil.heatmaps import Heatmap, otsu
from monai_mil.metrics import DiceCounts

SHARES = np.unique(np.concatenate([np.logspace(-4, -1, 31), np.linspace(0.1, 0.99, 90)]))
"""Thresholds that are tried, as shares of the case's highest score: attention leaves most of it to few instances."""


@dataclass(frozen=True)
class DiceRule:
    """How the threshold of a slide or scan is found, the number that this takes, and what it is at least."""

    source: str
    level: float
    minimum: float

    @classmethod
    def read(cls, threshold: str | float, minimum: float) -> DiceRule:
        """The rule that an argument of :class:`DiceSaver` names.

        Raises:
            SettingsError: it is no number and names no file that holds one.
        """
        if not isinstance(threshold, str):
            return cls("number", float(threshold), minimum)
        if threshold in ("otsu", "best"):
            return cls(threshold, math.nan, minimum)
        try:
            kept = parse_json(Path(threshold).read_text(encoding="utf-8"))["threshold"]
            level = float(kept["share_of_highest_score"])
            return cls("share", level, max(minimum, float(kept.get("minimum", 0.0))))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SettingsError(
                f'threshold \'{threshold}\': neither "otsu", "best" nor a number, and no dice.json of a validation '
                f'run with threshold "best" ({error!r})'
            ) from error

    def threshold(self, scores: Heatmap | np.ndarray, highest: float) -> float:
        """That of one case: of its scores, of which ``highest`` is the highest."""
        if self.source == "share":
            return self.of_share(highest)
        return max(otsu(scores) if self.source == "otsu" else self.level, self.minimum)

    def of_share(self, highest: float) -> float:
        """The threshold that is a share of a case's highest score."""
        return max(self.level * highest, self.minimum)

    def of_best(self, share: int) -> DiceRule:
        """The rule once the best of :data:`SHARES` is known."""
        return replace(self, level=float(SHARES[share]))

    def record(self) -> dict[str, Any]:
        """As ``dice.json`` holds it, which :meth:`read` reads."""
        return {
            "rule": self.source,
            "share_of_highest_score": self.level if self.source in ("best", "share") else None,
            "number": self.level if self.source == "number" else None,
            "minimum": self.minimum,
        }


def best_share(counts: Sequence[Sequence[DiceCounts]]) -> int:
    """The share of the highest mean Dice over cases, each with its counts for every share; of equal ones the middle.

    Raises:
        CohortError: there is no case.
    """
    if not counts:
        raise CohortError("no threshold can be chosen: no positive case could be compared; see the errors above")
    means = np.mean([[each.dice for each in case] for case in counts], axis=0)
    equal = np.flatnonzero(means >= means.max() - 1e-12)
    return int(equal[len(equal) // 2])

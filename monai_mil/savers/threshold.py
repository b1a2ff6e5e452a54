"""Where a slide's foreground begins: Otsu's threshold or another, never below a floor; nowhere on a negative slide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from monai_mil.errors import SettingsError
from monai_mil.heatmaps import Heatmap, otsu
from monai_mil.savers.case import Case
from monai_mil.savers.finding import is_called
from monai_mil.savers.scores import read_threshold

_OF_FOREGROUND = ("mask", "seg")


def require_threshold(formats: Sequence[str], threshold: object, saver: str) -> None:
    """Refuse formats that show foreground where nothing says what that is.

    Args:
        formats: of a saver.
        threshold: its threshold, or None.
        saver: what bundles call it.

    Raises:
        SettingsError: there is such a format and no threshold.
    """
    for form in formats:
        if form in _OF_FOREGROUND and threshold is None:
            raise SettingsError(
                f'the format "{form}" needs a threshold, and there is none: "otsu", "network" or a number, in a bundle '
                f"--set {saver}::threshold=otsu"
            )


@dataclass(frozen=True)
class ThresholdRule:
    """How the threshold of every slide is found.

    Attributes:
        source: ``"otsu"`` over the slide's tokens, ``"network"`` for the network's own, a number, or None for none.
        minimum: the threshold is never lower; what keeps Otsu from splitting the background of a slide with a tiny
            lesion or none.
        operating_points: the probability from which on a case is called positive, one for each of the network's
            outputs or one for the second of two exclusive classes. A slide for which the class drawn is not called (of
            two exclusive ones the second) has no foreground: its threshold is infinite. None asks for no probability.
        key: the tensor that is drawn, where it is named; the network's own threshold is that of its ``heatmap``.
    """

    source: Literal["otsu", "network"] | float | None
    minimum: float = 0.0
    operating_points: Sequence[float] | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.source, str) and self.source not in ("otsu", "network"):
            raise ValueError(f'unknown threshold \'{self.source}\'; choose "otsu", "network" or a number')
        if self.source == "network" and self.key not in (None, "heatmap"):
            raise ValueError(f"the network's threshold is that of its 'heatmap', not of '{self.key}'; choose \"otsu\"")

    def threshold(
        self, scores: Heatmap | np.ndarray, case: Case, class_index: int | None, multi_label: bool
    ) -> float | None:
        """The threshold of one slide or scan.

        Args:
            scores: the slide's, or those the network gave for the layers of a scan.
            case: the case, which holds the network's answer.
            class_index: the class drawn; None as in :func:`monai_mil.savers.scores.drawn_class`.
            multi_label: classes do not exclude each other.

        Raises:
            CohortError: the network gives no threshold, or there are more operating points than outputs or fewer.
        """
        if self.source is None:
            return None
        if self.operating_points is not None and not is_called(case, class_index, multi_label, self.operating_points):
            return math.inf
        if self.source == "otsu":
            found = otsu(scores)
        elif self.source == "network":
            found = read_threshold(case, class_index, multi_label)
        else:
            found = float(self.source)
        return max(found, self.minimum)

"""What scores are measured against when they are coloured, so that a colour means the same on every slide."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from monai_mil.heatmaps.figure import TICKS, score_text
from monai_mil.heatmaps.heatmap import percentile_ranks

_TOPS = (1.25, 1.5, 2.0, 4.0, 8.0, 16.0, 32.0)
_TO_ONE = 1e-4
_TIMES = "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class Scale:
    """How scores become colours; make one with :func:`colour_scale`.

    Attributes:
        measure: what is coloured. ``"score"``: the score itself. ``"attention"``: how many times its even share an
            instance has, on a logarithmic scale that begins at 1. ``"percentile"``: the percentile within the slide.
        limits: of :meth:`values`, at the two ends of the colours.
        uniform: the score of every instance if the network weighed all alike; of attention only.
    """

    measure: Literal["score", "attention", "percentile"]
    limits: tuple[float, float]
    uniform: float = math.nan

    @property
    def ends(self) -> tuple[float, float]:
        """What the two ends of the colours stand for, in units of ``basis``."""
        low, high = self.limits
        return (2**low, 2**high) if self.measure == "attention" else (low, high)

    @property
    def is_unit(self) -> bool:
        """Whether scores run from 0 to 1 on every slide or scan."""
        return self.measure == "score" and self.limits == (0, 1)

    @property
    def basis(self) -> str:
        """What is coloured, in words."""
        return {"attention": "multiples of an even share", "percentile": "percentile within the slide"}.get(
            self.measure, "score"
        )

    @property
    def meaning(self) -> str:
        """What the ends of the colour bar mean, in words."""
        if self.measure == "attention":
            return "as multiples of an even share"
        if self.measure == "percentile":
            return "percentile within the slide"
        return "on a fixed scale of 0 to 1" if self.is_unit else f"from {self._ends[0]} to {self._ends[1]}"

    @property
    def explanation(self) -> str:
        """As ``meaning``, for a page that has room."""
        if self.measure == "attention":
            return f"1{_TIMES} is an even share: what each would have if the network weighed all alike"
        return self.meaning

    def values(self, scores: np.ndarray) -> np.ndarray:
        """What is coloured, same shape as ``scores``: scores, percentiles, or the binary logarithm of multiples of an
        even share, those below 1 brought to 1."""
        if self.measure == "percentile":
            return percentile_ranks(scores)
        if self.measure == "attention":
            return np.log2(np.maximum(scores / np.float32(self.uniform), 1))
        return scores

    def ticks(self, scores: np.ndarray) -> list[tuple[str, str]]:
        """Labels at equal steps of the colour bar, lowest first, and a detail of each."""
        if self.measure == "percentile":
            percents = np.linspace(0, 100, TICKS)
            own = np.percentile(scores, percents)
            return [(f"{percent:g} %", score_text(score)) for percent, score in zip(percents, own, strict=True)]
        if self.measure == "score":
            return [(score_text(value), "") for value in np.linspace(*self.limits, TICKS)]
        steps = round(self.limits[1]) if self.limits[1] >= 2 else TICKS - 1
        texts = [f"{2**value:.3g}{_TIMES}" for value in np.linspace(*self.limits, steps + 1)]
        return [(f"≤ {texts[0]}", ""), *((text, "") for text in texts[1:-1]), (self._ends[1], "")]

    def end_texts(self, scores: np.ndarray) -> tuple[str, str]:
        """What the two ends stand for, of percentiles the scores that have them."""
        if self.measure == "percentile":
            return score_text(float(scores.min())), score_text(float(scores.max()))
        return self._ends

    @property
    def _ends(self) -> tuple[str, str]:
        low, high = self.ends
        if self.measure == "attention":
            return f"≤ 1{_TIMES}", f"{'≥ ' if high == _TOPS[-1] else ''}{high:g}{_TIMES}"
        return score_text(low), score_text(high)


def colour_scale(
    scores: np.ndarray,
    attributes: Mapping[str, Any],
    *,
    percentile: bool = False,
    limits: tuple[float, float] | None = None,
) -> Scale:
    """The scale asked for, and the one that scores have by themselves where nothing was.

    Attention is measured against its even share. Its scale ends at the first of 1.25, 1.5, 2, 4, 8, 16 and 32 times
    that holds the slide's highest, so that a slide which the network weighs evenly stays dark. Other scores run from 0
    to 1 where all lie between, else from the lowest to the highest of the slide.

    Args:
        scores: of any shape.
        attributes: of their heatmap. ``uniform``, the even share, says that they are attention; ``limits`` are the
            ends of a scale of their own. Without either, scores ``[n]`` that sum to 1 are taken for attention.
        percentile: by percentile within the slide.
        limits: scores at the ends.
    """
    if percentile:
        return Scale("percentile", (0.0, 100.0))
    if limits is not None:
        return Scale("score", limits)
    if "uniform" in attributes:
        return _relative(scores, float(attributes["uniform"]))
    if "limits" in attributes:
        low, high = attributes["limits"]
        return Scale("score", (float(low), float(high)))
    if _is_distribution(scores):
        return _relative(scores, 1 / len(scores))
    low, high = float(scores.min()), float(scores.max())
    return Scale("score", (0.0, 1.0) if low >= 0 and high <= 1 else (low, high))


def _relative(scores: np.ndarray, uniform: float) -> Scale:
    highest = float(scores.max()) / uniform * (1 - 1e-6)
    top = next((top for top in _TOPS if top >= highest), _TOPS[-1])
    return Scale("attention", (0.0, math.log2(top)), uniform)


def _is_distribution(scores: np.ndarray) -> bool:
    return scores.ndim == 1 and len(scores) > 1 and scores.min() >= 0 and abs(scores.sum(dtype=float) - 1) < _TO_ONE

"""Values to colours: perceptually uniform maps as tables of 256 entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

ColourMap = Literal["viridis", "cividis", "inferno", "magma", "plasma"]


@dataclass(frozen=True, eq=False)
class Colouring:
    """Scores to colours.

    Attributes:
        table: colour of each of 256 steps, uint8 ``[256, k]`` (see :func:`colour_table`).
        limits: scores at the two ends of the table; what lies beyond takes an end.
        outside: colour where there is no score.
    """

    table: np.ndarray
    limits: tuple[float, float]
    outside: tuple[int, ...] = (255, 255, 255)

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Colours uint8 ``[..., k]`` of scores ``[...]``, NaN meaning none."""
        colours = self.table[colour_index(scores, self.limits)]
        colours[np.isnan(scores)] = self.outside
        return colours


def colour_table(name: ColourMap) -> np.ndarray:
    """The map as RGB, uint8 ``[256, 3]``."""
    import cv2

    if name not in get_args(ColourMap):
        raise ValueError(f"unknown colour map '{name}'; choose one of {', '.join(get_args(ColourMap))}")
    ramp = np.arange(256, dtype=np.uint8)[:, None]
    return cv2.applyColorMap(ramp, getattr(cv2, f"COLORMAP_{name.upper()}"))[:, 0, ::-1].copy()


def colour_index(values: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Position of every value in a colour table, uint8, same shape; what lies outside ``limits`` takes an end."""
    low, high = limits
    scaled = (np.asarray(values, np.float64) - low) * (256 / (high - low) if high > low else 0.0)
    return np.nan_to_num(scaled).clip(0, 255).astype(np.uint8)

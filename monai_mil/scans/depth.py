"""A scan's slices as a given number of layers, and layers back as slices."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import numpy as np

from monai_mil.errors import SettingsError

DepthMode = Literal["resize", "middle"]

_CERTAINTY = np.array([0, -1, 1])
"""Slice labels in the order in which one of several stands for all: a finding, the unknown, nothing."""


@dataclass(frozen=True)
class Depth:
    """The number of layers that every scan is brought to.

    ``resize`` (INSIGHT's paper) interpolates linearly between two slices, without smoothing: of ``n`` slices layer
    ``j`` is what lies at slice ``(j + 0.5) n / layers - 0.5``, as in MONAI's ``Resize`` and torch's trilinear mode.
    ``middle`` (INSIGHT's code) keeps the slices in the middle, and all of a scan that has no more.

    Attributes:
        layers: how many, at least 1.
        mode: how they are made.

    Raises:
        SettingsError: no layers, or an unknown mode.

    Examples:
        >>> import numpy as np
        >>> from monai_mil.scans import Depth
        >>> depth = Depth(4)
        >>> depth.places(8)
        array([0.5, 2.5, 4.5, 6.5])
        >>> depth.restore(np.array([0.0, 1.0, 2.0, 3.0]), 8).shape
        (8,)
    """

    layers: int
    mode: DepthMode = "resize"

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise SettingsError(f"depth {self.layers}: must be at least 1 slice")
        if self.mode not in get_args(DepthMode):
            raise SettingsError(f"depth mode '{self.mode}': is none of {', '.join(get_args(DepthMode))}")

    def count(self, n: int) -> int:
        """Layers of a scan of ``n`` slices."""
        return self.layers if self.mode == "resize" else min(self.layers, n)

    def indices(self, n: int) -> np.ndarray:
        """The layers' numbers, int64 ``[m]``: in mode ``middle`` those of their slices, else 0, 1, ..."""
        return np.arange(self.count(n)) + (0 if self.mode == "resize" else self._first(n))

    def places(self, n: int) -> np.ndarray:
        """Where the layers lie, counted in slices from 0, float64 ``[m]``."""
        if self.mode == "middle":
            return self.indices(n).astype(float)
        return np.clip((np.arange(self.layers) + 0.5) * n / self.layers - 0.5, 0, n - 1)

    def at_places(self, values: np.ndarray) -> np.ndarray:
        """Values of the slices ``[n, ...]``, such as their positions, at the layers: float64 ``[m, ...]``."""
        places = self.places(len(values))
        low = places.astype(int)
        high = np.minimum(low + 1, len(values) - 1)
        share = (places - low).reshape(-1, *(1,) * (values.ndim - 1))
        return values[low] * (1 - share) + values[high] * share

    def restore(self, layers: np.ndarray, n: int) -> np.ndarray:
        """Bring values of the layers back to the ``n`` slices: the inverse of what made the layers.

        Args:
            layers: float ``[m, ...]``.
            n: slices of the scan.

        Returns:
            float32 ``[n, ...]``. Resized layers are interpolated linearly, and averaged where they are more than the
            slices, so that none is lost. Slices that no layer was made of take 0, or the lowest value if that is
            less.
        """
        if self.mode == "middle":
            slices = np.full((n, *layers.shape[1:]), min(0.0, float(layers.min())), np.float32)
            slices[self.indices(n)] = layers
            return slices
        at = np.clip((np.arange(n) + 0.5) * self.layers / n - 0.5, 0, self.layers - 1)
        distance = np.abs(at[:, None] - np.arange(self.layers))
        weights = (1 - distance / max(1.0, self.layers / n)).clip(0)
        return np.tensordot(weights / weights.sum(axis=1, keepdims=True), layers, axes=1).astype(np.float32)

    def restore_labels(self, layers: np.ndarray, n: int) -> np.ndarray:
        """Labels of the layers at the ``n`` slices: of the nearest layer, -1 (unknown) where there is none."""
        nearest = self._nearest(n)
        return np.where(nearest < 0, -1, layers[nearest])

    def layer_labels(self, slices: np.ndarray) -> np.ndarray:
        """Slice labels (1, 0, -1 unknown) ``[n]`` as the layers'.

        A layer is positive if a slice nearest to it is, unknown if one of them is and none is positive; where no slice
        is nearest to it, it has the label of the slice it is nearest to.
        """
        nearest, n = self._nearest(len(slices)), len(slices)
        rank = _CERTAINTY.argsort()[slices + 1]
        layers = rank[self.places(n).round().astype(int)]
        taken = np.unique(nearest[nearest >= 0])
        layers[taken] = 0
        np.maximum.at(layers, nearest[nearest >= 0], rank[nearest >= 0])
        return _CERTAINTY[layers]

    def to_json(self) -> str:
        """Layers and mode as one JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Depth:
        """The inverse of :meth:`to_json`."""
        return cls(**json.loads(text))

    def _nearest(self, n: int) -> np.ndarray:
        """The layer nearest to each slice, int ``[n]``, -1 where it was left out."""
        if self.mode == "middle":
            found = np.full(n, -1)
            found[self.indices(n)] = np.arange(self.count(n))
            return found
        return (np.arange(n) * 2 + 1) * self.layers // (2 * n)

    def _first(self, n: int) -> int:
        return max(0, (n - self.layers) // 2)

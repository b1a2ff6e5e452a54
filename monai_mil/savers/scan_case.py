"""The instances of a case that is a scan, and the slices they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from monai_mil.savers.case import read_depth, read_lungs, read_scan_frame, slice_order
from monai_mil.scans import Depth, LungField, ScanFrame


@dataclass(frozen=True, eq=False)
class ScanCase:
    """How values of a case's ``m`` instances become values of the ``n`` slices of its scan.

    Attributes:
        frame: the scan.
        order: the instance of each slice, or of each layer, int ``[m]``.
        depth: how slices became layers; None where each instance is a slice.
        lungs: outside of them the network saw nothing; None where it saw all.
    """

    frame: ScanFrame
    order: np.ndarray
    depth: Depth | None
    lungs: LungField | None

    @classmethod
    def of(cls, item: Mapping[str, Any]) -> ScanCase:
        """The scan of a case.

        Raises:
            CohortError: there is no frame, or the instances are not the slices or layers of the scan, each once.
        """
        frame, depth = read_scan_frame(item), read_depth(item)
        expected = np.arange(len(frame)) if depth is None else depth.indices(len(frame))
        return cls(frame, slice_order(item, expected), depth, read_lungs(item))

    def scores(self, values: np.ndarray) -> np.ndarray:
        """Scores ``[m, ...]`` as the slices', ``[n, ...]``; see :meth:`Depth.restore`."""
        ordered = values[self.order]
        return ordered if self.depth is None else self.depth.restore(ordered, len(self.frame))

    def attention(self, values: np.ndarray) -> np.ndarray:
        """Distributions ``[h, m]`` as distributions over the slices, ``[h, n]``."""
        if self.depth is None:
            return values[:, self.order]
        slices = self.scores(values.T).T
        return slices / slices.sum(axis=1, keepdims=True)

    def labels(self, values: np.ndarray) -> np.ndarray:
        """Labels ``[m]`` as the slices', ``[n]``; -1 for a slice that the network did not see."""
        ordered = values[self.order]
        return ordered if self.depth is None else self.depth.restore_labels(ordered, len(self.frame))

"""The instances of a case that is a scan, and the slices they stand for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from monai_mil.errors import CohortError
from monai_mil.savers.case import Case
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
    def of(cls, case: Case) -> ScanCase:
        """The scan of a case.

        Raises:
            CohortError: there is no frame, or the instances are not the slices or layers of the scan, each once.
        """
        frame, depth = case.scan_frame, case.depth
        expected = np.arange(len(frame)) if depth is None else depth.indices(len(frame))
        return cls(frame, _order(case, expected), depth, case.lungs)

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


def _order(case: Case, expected: np.ndarray) -> np.ndarray:
    """Which instance of the case is each of the ``expected`` slices of its scan, int ``[m]``, from its ``coords``.

    Raises:
        CohortError: the instances are not the slices of the scan, each once.
    """
    coords = case.values("coords")
    slices = np.empty(0) if coords is None else coords[:, 0]
    order = np.argsort(slices, kind="stable")
    if not np.array_equal(slices[order], expected):
        raise CohortError(
            f"{case.text}: its {len(slices)} instances are not the {len(expected)} slices of its scan; give the "
            "network the whole bag"
        )
    return order

"""The map of one class, which is compared with a ground truth."""

from __future__ import annotations

import numpy as np

from monai_mil.errors import CohortError
from monai_mil.heatmaps import Heatmap, ScanHeatmap, assemble
from monai_mil.savers.case import Case
from monai_mil.savers.scan_case import ScanCase
from monai_mil.savers.scores import read_score_rows


def class_heatmap(case: Case, key: str | None, class_index: int | None) -> Heatmap:
    """The scores of one class of a slide.

    Args:
        case: the case.
        key: which of its tensors, see :func:`monai_mil.savers.scores.read_scores`.
        class_index: the class; None for the last, the positive one of two.

    Raises:
        CohortError: there are no scores, no coordinates, no frame or no such class.
    """
    key, scores, coords = _class_scores(case, key, class_index)
    return assemble(scores, coords, case.frame, name=key)


def class_scan_heatmap(case: Case, key: str | None, class_index: int | None) -> tuple[ScanHeatmap, np.ndarray]:
    """The scores of one class of a scan: on its slices, and as the network gave them for its instances.

    Args:
        case: the case.
        key: see :func:`class_heatmap`.
        class_index: likewise.

    Raises:
        CohortError: there are no scores, no such class or no frame, or the instances are not the scan's slices.
    """
    key, scores, _ = _class_scores(case, key, class_index)
    scan = ScanCase.of(case)
    return ScanHeatmap(scan.frame, scan.scores(scores), name=key, lungs=scan.lungs), scores


def _class_scores(case: Case, key: str | None, class_index: int | None) -> tuple[str, np.ndarray, np.ndarray]:
    """The tensor's name, and the scores of the class with their coordinates."""
    key, rows, coords = read_score_rows(case, key)
    index = len(rows) - 1 if class_index is None or len(rows) == 1 else class_index
    if not 0 <= index < len(rows):
        raise CohortError(f"{case.text}: no class {index} among the {len(rows)} rows of '{key}'")
    return key, rows[index], coords

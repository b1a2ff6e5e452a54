"""The map of one class, which is compared with a ground truth."""

from __future__ import annotations

from monai_mil.errors import CohortError
from monai_mil.heatmaps import Heatmap, assemble
from monai_mil.savers.case import Case
from monai_mil.savers.scores import read_score_rows


def class_heatmap(case: Case, key: str | None, class_index: int | None) -> Heatmap:
    """The scores of one class of a case.

    Args:
        case: the case.
        key: which of its tensors, see :func:`monai_mil.savers.scores.read_scores`.
        class_index: the class; None for the last, the positive one of two.

    Raises:
        CohortError: there are no scores, no coordinates, no frame or no such class.
    """
    key, rows, coords = read_score_rows(case, key)
    index = len(rows) - 1 if class_index is None or len(rows) == 1 else class_index
    if not 0 <= index < len(rows):
        raise CohortError(f"{case.text}: no class {index} among the {len(rows)} rows of '{key}'")
    return assemble(rows[index], coords, case.frame, name=key)

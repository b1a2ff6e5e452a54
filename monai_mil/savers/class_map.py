"""A case as it is compared with a ground truth: the map and the label of one class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from monai_mil.errors import CohortError
from monai_mil.heatmaps import Heatmap, as_array, assemble
from monai_mil.savers.case import case_text, read_frame
from monai_mil.savers.prediction import output_count
from monai_mil.savers.scores import read_score_rows


def class_heatmap(item: Mapping[str, Any], key: str | None, class_index: int | None) -> Heatmap:
    """The scores of one class of a case.

    Args:
        item: the case.
        key: which of its tensors, see :func:`monai_mil.savers.scores.read_scores`.
        class_index: the class; None for the last, the positive one of two.

    Raises:
        CohortError: there are no scores, no coordinates, no frame or no such class.
    """
    key, rows, coords = read_score_rows(item, key)
    index = len(rows) - 1 if class_index is None or len(rows) == 1 else class_index
    if not 0 <= index < len(rows):
        raise CohortError(f"{case_text(item)}: no class {index} among the {len(rows)} rows of '{key}'")
    return assemble(rows[index], coords, read_frame(item), name=key)


def is_positive(item: Mapping[str, Any], class_index: int | None) -> bool | None:
    """Whether a case is labelled with a class, None where that is not known.

    Args:
        item: has ``label``: a class index, or one value (0, 1; NaN or -1 for unknown) a label.
        class_index: the class; None for the last label, or for any class but the first. A network with one single
            output has one class, the second of two.
    """
    if item.get("label") is None:
        return None
    values = np.ravel(as_array(item["label"])).astype(float)
    value = values[-1 if values.size == 1 or class_index is None else class_index]
    if np.isnan(value) or value < 0:
        return None
    if values.size > 1 or class_index is None or output_count(item) == 1:
        return bool(value > 0)
    return bool(value == class_index)

"""Scores, labels and attention of the slices of a scan, or of the tiles of a slide, as slice metrics take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from monai_mil.savers.case import Case


@dataclass(frozen=True, eq=False)
class SliceCase:
    """One scan: its names, and scores, labels (-1 where unknown) and head-mean attention of its slices, ``[s]`` each.

    ``attention`` is None where the network has none.
    """

    case_id: str
    patient_id: str
    scores: np.ndarray
    labels: np.ndarray
    attention: np.ndarray | None

    @classmethod
    def of(cls, case: Case, keys: Sequence[str]) -> SliceCase:
        """The scan, or the slide of tiles, that a case is.

        Args:
            case: as :class:`monai_mil.training.UnpackOutputd` leaves it; may have ``instance_labels``.
            keys: of tensors ``[c, s]`` whose last row, the positive class, are the scores; the first there is.

        Raises:
            ValueError: the case has no scores.
        """
        rows = next((values for values in map(case.values, keys) if values is not None), None)
        if rows is None:
            missing = " and ".join(f"'{key}'" for key in keys)
            raise ValueError(f"{case.text} has no {missing}; use FullOutputInferer and UnpackOutputd")
        scores = (rows[-1] if rows.ndim == 2 else rows).astype(float)
        labels, attention = case.values("instance_labels"), case.values("attention")
        return cls(
            case.name,
            case.patient_id,
            scores,
            np.full(len(scores), -1) if labels is None else labels,
            None if attention is None else attention.astype(float).mean(axis=0),
        )

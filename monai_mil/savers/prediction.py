"""A network's answer for one case, in words and as a row of the predictions table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from monai_mil.cells import text_cell
from monai_mil.errors import CohortError
from monai_mil.metrics import decisions
from monai_mil.savers.case import Case, row_beginning


@dataclass(frozen=True, eq=False)
class Prediction:
    """A network's answer for one slide or scan.

    Attributes:
        slide_id: the slide or scan.
        patient_id: whose it is; the slide's id where the cohort does not say.
        prob: probability of every class, float64 ``[c]``.
        classes: their names.
        multi_label: classes do not exclude each other.
        label: class index, or one value for every class (NaN: unknown), or None.
        id_column: what tables call the first: ``slide_id``, ``scan_id`` for a scan, or ``patient_id`` for a patient.
        operating_points: the probability from which on each class is called, see
            :func:`monai_mil.metrics.thresholds.decisions`; None calls the most probable class, or all of at least
            0.5.
        remarks: what the reader assumed, repaired or left out.
        slides: the slides or scans that it is the answer for, where it is a patient's.
        slide_column: what tables call one of them.
    """

    slide_id: str
    patient_id: str
    prob: np.ndarray
    classes: tuple[str, ...]
    multi_label: bool
    label: int | tuple[float, ...] | None
    id_column: str = "slide_id"
    operating_points: tuple[float, ...] | None = None
    remarks: str = ""
    slides: tuple[str, ...] = ()
    slide_column: str = "slide_id"

    @property
    def called(self) -> np.ndarray:
        """True for the class, or classes, that the answer names, bool ``[c]``."""
        points = self.operating_points or (0.5,) * len(self.classes)
        return decisions(self.prob[None], points, exclusive=not self.multi_label)[0] > 0

    @property
    def text(self) -> str:
        """The answer in words: the class, or all called ones joined by ``;``."""
        return ";".join(name for name, called in zip(self.classes, self.called, strict=True) if called)

    @property
    def label_text(self) -> str:
        """The label in the words of ``text``; empty where it is not known."""
        if isinstance(self.label, tuple):
            return ";".join(name for name, value in zip(self.classes, self.label, strict=True) if value >= 0.5)
        return self.classes[self.label] if self.label is not None and self.label >= 0 else ""

    def row(self) -> dict[str, str]:
        """The row of ``predictions.csv``; its patient is empty where the cohort does not say whose the case is."""
        row = row_beginning(self.slide_id, self.id_column, self.patient_id, self.slides, self.slide_column)
        if self.id_column != "patient_id" and self.patient_id == self.slide_id:
            row["patient_id"] = ""
        row |= {"label": self.label_text, "pred": self.text}
        row |= {f"prob_{name}": probability_text(prob) for name, prob in zip(self.classes, self.prob, strict=True)}
        if self.multi_label:
            known = self.label if isinstance(self.label, tuple) else (np.nan,) * len(self.classes)
            row |= {
                f"label_{name}": "" if np.isnan(value) else f"{value:g}"
                for name, value in zip(self.classes, known, strict=True)
            }
        if self.operating_points is not None:
            row |= {
                f"operating_point_{name}": f"{point:.6g}"
                for name, point in zip(self.classes, self.operating_points, strict=True)
            }
        return row | {"remarks": text_cell(self.remarks)}

    def attributes(self) -> dict[str, Any]:
        """What a heatmap keeps of it, for titles."""
        return {
            "prediction": self.text or "none",
            "probability": round(float((self.prob[self.called] if self.called.any() else self.prob).max()), 6),
            "label": self.label_text,
        }


def read_prediction(
    case: Case,
    classes: Sequence[str],
    multi_label: bool,
    operating_points: Sequence[float] | None = None,
) -> Prediction:
    """The prediction of one case.

    One single probability with two classes is that of the second.

    Args:
        case: the case.
        classes: their names.
        multi_label: classes do not exclude each other.
        operating_points: one a class, or that of the second of two exclusive classes; see :class:`Prediction`.

    Raises:
        CohortError: ``pred`` fits neither the classes nor [0, 1], or the operating points do not fit the classes.
    """
    prob = case.probabilities(multi_label)
    if prob.shape == (1,) and len(classes) == 2 and not multi_label:
        prob = np.array([1 - prob[0], prob[0]])
    if prob.shape != (len(classes),):
        raise CohortError(f"{case.text}: {prob.size} predictions for the {len(classes)} classes {list(classes)}")
    label: int | tuple[float, ...] | None = None
    if case.label is not None:
        values = case.label
        label = tuple(values.tolist()) if multi_label else int(values[0] if values.size == 1 else values.argmax())
    points = None
    if operating_points is not None:
        points = fitting_points(case, operating_points, len(classes), multi_label)
    return Prediction(
        case.name,
        case.patient_id,
        prob,
        tuple(map(str, classes)),
        multi_label,
        label,
        case.id_column,
        points,
        case.remarks,
        case.slide_names,
        case.slide_column,
    )


def probability_text(prob: float) -> str:
    """A probability with six digits of it or of what it lacks to 1, whichever are more, so that none become equal.

    Examples:
        >>> from monai_mil.savers.prediction import probability_text
        >>> probability_text(0.1234567), probability_text(0.9999999875), probability_text(1.25e-9)
        ('0.123457', '0.9999999875', '1.25e-09')
    """
    lacking = 1 - float(prob)
    digits = 6 if lacking <= 0 else 6 + max(0, math.ceil(-math.log10(lacking)) - 1)
    return f"{prob:.{min(digits, 17)}g}"


def answer_attributes(
    case: Case,
    classes: Sequence[str],
    multi_label: bool,
    operating_points: Sequence[float] | None = None,
) -> dict[str, Any]:
    """What a heatmap keeps of a case's answer: its :class:`Prediction`, or the risk of a survival network.

    Raises:
        CohortError: as :func:`read_prediction`.
    """
    if case.risk is not None:
        return {"prediction": f"risk {case.risk:.3g}"}
    return read_prediction(case, classes, multi_label, operating_points).attributes()


def fitting_points(case: Case, operating_points: Sequence[float], count: int, multi_label: bool) -> tuple[float, ...]:
    """One operating point for each of ``count`` probabilities; a single one is that of the second of two classes.

    Raises:
        CohortError: there are more or fewer.
    """
    points = tuple(float(point) for point in operating_points)
    if len(points) == 1 and count == 2 and not multi_label:
        points = (1 - points[0], points[0])
    if len(points) != count:
        raise CohortError(
            f"{case.text}: {len(points)} operating points for {count} predictions; choose them on validation "
            "data of this network"
        )
    return points

"""What the slides or scans of a patient say together: one answer, and the label they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar, get_args

import numpy as np

from monai_mil.errors import CohortError, SettingsError

PatientLevel = Literal["mean", "max"]

Entry = TypeVar("Entry")


def check_level(level: str | None) -> None:
    """Raise a SettingsError unless it is one of these, or None."""
    if level is not None and level not in get_args(PatientLevel):
        raise SettingsError(f"patient_level '{level}': give mean or max, or leave it out")


def grouped(entries: Mapping[str, Entry], patients: Sequence[str]) -> dict[str, dict[str, Entry]]:
    """The entries of every patient, patients and entries in the order of their names.

    Args:
        entries: by the names of the slides or scans.
        patients: whose each is, in the same order.
    """
    found: dict[str, dict[str, Entry]] = {}
    for patient, name, entry in sorted(
        zip(patients, entries, entries.values(), strict=True), key=lambda each: each[:2]
    ):
        found.setdefault(patient, {})[name] = entry
    return found


def patient_probabilities(prob: np.ndarray, level: PatientLevel, exclusive: bool) -> np.ndarray:
    """Probabilities of a patient.

    Args:
        prob: of the slides, ``[s, c]``.
        level: ``"mean"`` of the slides; or ``"max"``: of labels that do not exclude each other each one's highest, of
            two exclusive classes the highest of the second and what it lacks to 1, of more each one's highest, divided
            by their sum.
        exclusive: whether the classes exclude each other.

    Returns:
        Float64 ``[c]``.

    Examples:
        >>> import numpy as np
        >>> from monai_mil.savers.patient import patient_probabilities
        >>> slides = np.array([[0.9, 0.1], [0.5, 0.5]])
        >>> patient_probabilities(slides, "mean", exclusive=True), patient_probabilities(slides, "max", exclusive=True)
        (array([0.7, 0.3]), array([0.5, 0.5]))
    """
    if level == "mean":
        return prob.mean(axis=0, dtype=np.float64)
    highest = prob.max(axis=0).astype(np.float64)
    if not exclusive or len(highest) == 1:
        return highest
    if len(highest) == 2:
        return np.array([1 - highest[1], highest[1]])
    return highest / highest.sum()


def patient_label(patient: str, labels: Mapping[str, np.ndarray], classes: Sequence[str]) -> np.ndarray:
    """The label that a patient's slides share: what is unknown of one is taken from the others.

    Args:
        patient: whose they are.
        labels: of the slides by their names, ``[1]`` (class index, below 0: unknown) or ``[c]`` (NaN: unknown).
        classes: their names.

    Raises:
        CohortError: slides contradict each other; which rule makes a patient's label of theirs is not guessed.
    """
    rows = np.stack(list(labels.values())).astype(float)
    unknown = np.isnan(rows) | (rows < 0)
    shared = rows[0].copy()
    for column, (values, missing) in enumerate(zip(rows.T, unknown.T, strict=True)):
        known = values[~missing]
        if len(set(known.tolist())) > 1:
            listed = ", ".join(f"{name} {_label_text(label, column, classes)}" for name, label in labels.items())
            raise CohortError(
                f"patient '{patient}': its slides have different labels ({listed}); give all slides of a patient one "
                "label, by whichever rule holds in this cohort, or leave patient_level out"
            )
        if len(known):
            shared[column] = known[0]
    return shared


def _label_text(label: np.ndarray, column: int, classes: Sequence[str]) -> str:
    value = label[column]
    if np.isnan(value) or value < 0:
        return "unknown"
    return classes[int(value)] if len(label) == 1 and len(classes) > 1 else f"{classes[column]} {value:g}"

"""Patients with several slides or scans: the label that these share, and all of them as one case."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from monai_mil.errors import CohortError, SettingsError

if TYPE_CHECKING:
    from monai_mil.cohorts.cohort import Cohort, CohortSlide

_BAGS = ("slide", "scan", "patient")


def check_bag_of(bag_of: str) -> None:
    """Raise a SettingsError unless bags can be of that."""
    if bag_of not in _BAGS:
        raise SettingsError(f"bag_of '{bag_of}': give slide (or scan), or patient")


def check_patients(cohort: Cohort | None, split: str | None, bag_of: str, patient_level: str | None) -> None:
    """Refuse results of patients, or bags of them, where nobody says whose the slides are or the labels contradict.

    Args:
        cohort: the run's; None where it takes a folder without a table.
        split: of which it takes the cases; None for all.
        bag_of: what a bag is of.
        patient_level: how results of slides become the patient's, or None.

    Raises:
        CohortError: there is no table, or slides of one patient have different labels.
    """
    if bag_of != "patient" and patient_level is None:
        return
    if cohort is None:
        setting = "bag_of patient" if bag_of == "patient" else f"patient_level {patient_level}"
        raise CohortError(
            f"{setting}: a folder does not say whose its slides or scans are; give a table with --cohort_file, whose "
            "column patient_id says it"
        )
    for patient, slides in by_patient(cohort, split).items():
        patient_label(cohort, patient, slides)


def by_patient(cohort: Cohort, split: str | None = None) -> dict[str, list[CohortSlide]]:
    """The slides of every patient of a split, or of all, in the table's order."""
    patients: dict[str, list[CohortSlide]] = {}
    for slide in cohort.slides:
        if split is None or slide.split == split:
            patients.setdefault(slide.patient_id, []).append(slide)
    return patients


def patient_label(cohort: Cohort, patient: str, slides: Sequence[CohortSlide]) -> int | tuple[float, ...] | None:
    """The label that a patient's slides share: what is unknown of one is taken from the others.

    Raises:
        CohortError: slides contradict each other; which rule makes a patient's label of theirs is not guessed.
    """
    labels = [slide.label for slide in slides]
    columns = [label if isinstance(label, tuple) else (math.nan if label in (None, -1) else label,) for label in labels]
    shared = []
    for values in zip(*columns, strict=True):
        known = {value for value in values if not math.isnan(value)}
        if len(known) > 1:
            raise CohortError(
                f"cohort '{cohort.source}': patient '{patient}' has {cohort.case}s of different labels "
                f"({_listed(cohort, slides)}); give all of a patient one label, by whichever rule holds in this "
                "cohort, or leave bag_of and patient_level out"
            )
        shared.append(known.pop() if known else math.nan)
    if isinstance(labels[0], tuple):
        return tuple(shared)
    return labels[0] if math.isnan(shared[0]) else int(shared[0])


def patient_items(cohort: Cohort, items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The data list of patients: ``image`` holds the items of the slides that become one bag (``bags.join_bags``).

    Args:
        cohort: whose they are.
        items: of its slides, as its data list has them.

    Raises:
        CohortError: slides of a patient have different labels, or several and the network takes the instances of one
            in their order.
    """
    of_patient: dict[str, list[Mapping[str, Any]]] = {}
    for item in items:
        of_patient.setdefault(item["patient_id"], []).append(item)
    slides = {slide.slide_id: slide for slide in cohort.slides}
    joined = []
    for patient, own in of_patient.items():
        names = [item[cohort.id_column] for item in own]
        if cohort.ordered and len(names) > 1:
            raise CohortError(
                f"cohort '{cohort.source}': patient '{patient}' has {len(names)} {cohort.case}s ({', '.join(names)}), "
                "and this network takes the slices of one scan in their order, which two have not in common; leave "
                "--bag_of patient out, and put their results together with --patient_level mean or max"
            )
        label = patient_label(cohort, patient, [slides[name] for name in names])
        labelled = {} if label is None else {"label": list(label) if isinstance(label, tuple) else label}
        joined.append({"image": [dict(item) for item in own], **labelled, "patient_id": patient})
    return joined


def _listed(cohort: Cohort, slides: Sequence[CohortSlide]) -> str:
    return ", ".join(f"{slide.slide_id} {cohort.label_text(slide)}" for slide in slides)

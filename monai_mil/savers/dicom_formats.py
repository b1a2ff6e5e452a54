"""The DICOM objects that a saver writes of a case, and what it must know for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from monai_mil.dicom import (
    Algorithm,
    DicomSource,
    Finding,
    check_highdicom,
    write_annotations,
    write_overlay,
    write_parametric_map,
    write_report,
    write_segmentation,
)
from monai_mil.errors import DicomError
from monai_mil.heatmaps import Heatmap, ScanHeatmap
from monai_mil.model_card import note_on
from monai_mil.names import says_nothing_there
from monai_mil.savers.case import Case
from monai_mil.savers.prediction import read_prediction

REPORT = "sr"
OF_SCANS = ("seg", "fractional", "pm", "sr", "sc")
OF_SLIDES = (*OF_SCANS, "ann")


@dataclass(frozen=True)
class DicomCase:
    """A case whose maps and answer are written as DICOM.

    Attributes:
        source: the series or slide.
        algorithm: what made them.
        options: further arguments of an object's writer, by format.
    """

    source: DicomSource
    algorithm: Algorithm
    options: Mapping[str, Mapping[str, Any]]

    def write_map(self, form: str, heatmap: Heatmap | ScanHeatmap, path: Path) -> None:
        """Write one of the objects that show a map; nothing where it has nothing to show."""
        options = self.options.get(form, {})
        if form == "seg" and heatmap.threshold is None:
            return
        if form in ("seg", "fractional"):
            write_segmentation(path, self.source, heatmap, self.algorithm, fractional=form == "fractional", **options)
        elif form == "pm":
            write_parametric_map(path, self.source, heatmap, self.algorithm, **options)
        elif form == "sc":
            write_overlay(path, self.source, heatmap, self.algorithm, **options)
        else:
            assert isinstance(heatmap, Heatmap)
            write_annotations(path, self.source, heatmap, self.algorithm, **options)

    def write_answer(self, findings: Sequence[Finding], heatmap: Heatmap | ScanHeatmap | None, path: Path) -> None:
        """Write the report."""
        write_report(path, self.source, findings, self.algorithm, heatmap=heatmap, **self.options.get(REPORT, {}))


def check_dicom_formats(formats: Sequence[str]) -> None:
    """Whether objects of these formats can be written at all.

    Raises:
        SettingsError: highdicom is not installed.
    """
    if set(formats) & set(OF_SLIDES):
        check_highdicom()


def dicom_path(folder: Path, stem: str, form: str) -> Path:
    """The file of an object."""
    return folder / f"{stem}_{form}.dcm"


def remove_dicom(folder: Path, stem: str) -> None:
    """Remove what an earlier run wrote of a map: a negative case leaves no segmentation of another model's."""
    for form in OF_SLIDES:
        with suppress(OSError):  # none, or one that cannot be replaced either, which is told then
            dicom_path(folder, stem, form).unlink()


def named_algorithm(algorithm: Algorithm | None, digest: str | None, settings: Mapping[str, Any]) -> Algorithm:
    """The algorithm as objects name it.

    Args:
        algorithm: what a config says of it.
        digest: of the weights that the network really has.
        settings: the saver's, which the answer depends on too.
    """
    known = algorithm or Algorithm()
    return replace(
        known,
        weights=digest or known.weights,
        settings={**known.settings, "saver": dict(settings)},
        note=known.note or note_on(digest),
    )


def dicom_findings(
    case: Case, classes: Sequence[str] | None, multi_label: bool, operating_points: Sequence[float] | None
) -> list[Finding]:
    """What a report says of a case: of classes that exclude each other all but the one that says nothing is there.

    Whether a class is called is decided where ``predictions.csv`` has it from.

    Raises:
        CohortError: as :func:`monai_mil.savers.read_prediction`.
        DicomError: the answer is a risk, or is for several slides or scans together, or classes have no names.
    """
    if case.risk is not None:
        raise DicomError("no report of a survival network's risk: it calls nothing")
    if classes is None:
        raise DicomError("no report without the names of the classes")
    if case.shares_its_answer:
        raise DicomError("no report of one slide or scan: the answer is for all of the patient's together")
    prediction = read_prediction(case, classes, multi_label, operating_points)
    shown = [index for index, name in enumerate(prediction.classes) if multi_label or not says_nothing_there(name)]
    points = prediction.operating_points
    return [
        Finding(
            prediction.classes[index],
            float(prediction.prob[index]),
            bool(prediction.called[index]),
            None if points is None else points[index],
        )
        for index in shown or range(len(prediction.classes))
    ]

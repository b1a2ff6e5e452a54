"""A picture for viewers that show nothing else: the heatmap over the slide or the slices as Secondary Capture."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from monai_mil.dicom.algorithm import RESEARCH, Algorithm
from monai_mil.dicom.instance import constructor_arguments, write_instance
from monai_mil.dicom.source import DicomSource, lenient
from monai_mil.heatmaps import Heatmap, ScanHeatmap, export_montage, export_png

_TITLE = f"AI heatmap, {RESEARCH}"


def write_overlay(
    path: str | Path,
    source: DicomSource,
    heatmap: Heatmap | ScanHeatmap,
    algorithm: Algorithm,
    **options: Any,
) -> Path:
    """Write the picture of ``export_png`` (of a slide) or ``export_montage`` (of a scan) as Secondary Capture, RGB.

    Nothing that identifies the patient is drawn into it.

    Args:
        path: the file.
        source: the series or slide the heatmap is of.
        heatmap: the scores.
        algorithm: what made them.
        options: further arguments of that export, as ``window`` of a scan.

    Raises:
        ScanReadError: the scan cannot be read again.
        SlideReadError: the slide cannot be read again.
        OutputError: the file cannot be written.
    """
    pixels = _picture(heatmap, options)
    with lenient():
        made = _capture(pixels, source, algorithm)
    return write_instance(Path(path), made, source, algorithm, "SC")


def _picture(heatmap: Heatmap | ScanHeatmap, options: dict[str, Any]) -> np.ndarray:
    from PIL import Image

    with TemporaryDirectory() as folder:
        place = Path(folder, "picture.png")
        if isinstance(heatmap, ScanHeatmap):
            export_montage(heatmap, None, place, title=_TITLE, **options)
        else:
            export_png(heatmap, place, title=_TITLE, **options)
        with Image.open(place) as image:
            return np.asarray(image.convert("RGB"))


def _capture(pixels: np.ndarray, source: DicomSource, algorithm: Algorithm) -> Any:
    from highdicom.sc import SCImage
    from pydicom.dataset import Dataset

    first = source.first
    place: dict[str, Any] = {"coordinate_system": "PATIENT", "patient_orientation": ("L", "P")}
    specimens = first.get("SpecimenDescriptionSequence")
    if source.is_slide and specimens:
        container = str(first.get("ContainerIdentifier") or "unknown")
        place = {"coordinate_system": "SLIDE", "container_identifier": container, "specimen_descriptions": specimens}
    made: Any = SCImage(
        pixels,
        "RGB",
        8,
        study_instance_uid=first.StudyInstanceUID,
        **place,
        **constructor_arguments(source, algorithm, "SC", "heatmap picture"),
    )
    made.PatientOrientation = None  # several slices, and words
    made.BurnedInAnnotation, made.RecognizableVisualFeatures = "NO", "NO"
    made.SourceImageSequence = []
    for header in source.headers:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
        made.SourceImageSequence.append(item)
    return made

"""Reports: the answer for a slide or scan as Comprehensive 3D SR by template 1500."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_mil.dicom.algorithm import MANUFACTURER, Algorithm
from monai_mil.dicom.finding import Finding
from monai_mil.dicom.instance import constructor_arguments, derived_uid, referenced_key, write_instance
from monai_mil.dicom.source import DicomSource, lenient
from monai_mil.dicom.terms import Terms, coded, private
from monai_mil.heatmaps import Heatmap, ScanHeatmap


def write_report(
    path: str | Path,
    source: DicomSource,
    findings: Sequence[Finding],
    algorithm: Algorithm,
    *,
    heatmap: Heatmap | ScanHeatmap | None = None,
    terms: Terms | None = None,
) -> Path:
    """Write a Comprehensive 3D SR (TID 1500): partial, unverified, preliminary, whatever the answer is.

    Every finding is a measurement group: what was looked for, the word Positive or Negative, the probability and the
    operating point, and which algorithm says so. All source instances are evidence; of a series the most suspicious
    one is named as the group's image.

    Args:
        path: the file.
        source: the series or slide the answer is for.
        findings: at least one.
        algorithm: what made it.
        heatmap: of a scan, which names the most suspicious slice.
        terms: the codes.

    Raises:
        OutputError: the file cannot be written.
    """
    from highdicom.sr import Comprehensive3DSR, MeasurementReport

    terms = terms or Terms()
    with lenient():
        key = referenced_key(source, algorithm)
        groups = [_group(finding, source, algorithm, heatmap, terms, key) for finding in findings]
        report = MeasurementReport(
            _context(algorithm), coded(terms.procedure or _procedure(source)), imaging_measurements=groups
        )
        facts = constructor_arguments(source, algorithm, "SR", "report")
        made = Comprehensive3DSR(list(source.headers), report[0], is_complete=False, is_final=False, **facts)
    return write_instance(Path(path), made, source, algorithm, "SR")


def _procedure(source: DicomSource) -> tuple[str, str, str]:
    if source.is_slide:
        return ("363679005", "SCT", "Imaging procedure")
    return ("25045-6", "LN", "CT unspecified body region")


def _context(algorithm: Algorithm) -> Any:
    from highdicom.sr import DeviceObserverIdentifyingAttributes, ObservationContext, ObserverContext
    from pydicom.sr.codedict import codes

    device = DeviceObserverIdentifyingAttributes(
        derived_uid("device", algorithm.name, algorithm.weights, algorithm.configuration),
        name=algorithm.name,
        manufacturer_name=MANUFACTURER,
        model_name=algorithm.name,
        serial_number=algorithm.weights or None,
    )
    return ObservationContext(observer_device_context=ObserverContext(codes.DCM.Device, device))


def _group(
    finding: Finding,
    source: DicomSource,
    algorithm: Algorithm,
    heatmap: Heatmap | ScanHeatmap | None,
    terms: Terms,
    key: list[Any],
) -> Any:
    from highdicom.sr import (
        Measurement,
        MeasurementsAndQualitativeEvaluations,
        QualitativeEvaluation,
        TrackingIdentifier,
    )
    from pydicom.sr.codedict import codes

    word = codes.SCT.Positive if finding.called else codes.SCT.Negative
    numbers = [Measurement(codes.DCM.Probability, float(finding.probability), codes.UCUM.NoUnits)]
    if finding.operating_point is not None:
        point = coded(private("operating point"))
        numbers.append(Measurement(point, float(finding.operating_point), codes.UCUM.NoUnits))
    return MeasurementsAndQualitativeEvaluations(
        TrackingIdentifier(derived_uid("finding", *key, finding.name), finding.name),
        finding_type=terms.finding(finding.name),
        algorithm_id=algorithm.content_items(),
        measurements=numbers,
        qualitative_evaluations=[QualitativeEvaluation(coded(private("decision")), word)],
        source_images=[_image(source, heatmap)],
    )


def _image(source: DicomSource, heatmap: Heatmap | ScanHeatmap | None) -> Any:
    """The most suspicious slice, where a scan's heatmap tells, else the source's first instance."""
    from highdicom.sr import SourceImageForMeasurementGroup

    if not isinstance(heatmap, ScanHeatmap):
        return SourceImageForMeasurementGroup.from_source_image(source.first)
    instances, peak = heatmap.frame.instances, int(heatmap.instance_scores.argmax())
    header = next(each for each in source.headers if each.SOPInstanceUID == instances.sop_uids[peak])
    frames = [instances.frame_numbers[peak]] if int(header.get("NumberOfFrames") or 1) > 1 else None
    return SourceImageForMeasurementGroup.from_source_image(header, frames)

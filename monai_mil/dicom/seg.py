"""Segmentations: where the map of a called finding lies above its threshold, or the map itself as fractions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from monai_mil.dicom.algorithm import MANUFACTURER, RESEARCH, Algorithm
from monai_mil.dicom.grid import scan_grid, slide_grid
from monai_mil.dicom.instance import constructor_arguments, derived_uid, referenced_key, write_instance
from monai_mil.dicom.source import DicomSource, lenient
from monai_mil.dicom.terms import Terms, coded, region_of
from monai_mil.errors import DicomError
from monai_mil.heatmaps import OUTLINE_COLOUR, Heatmap, ScanHeatmap


def write_segmentation(
    path: str | Path,
    source: DicomSource,
    heatmap: Heatmap | ScanHeatmap,
    algorithm: Algorithm,
    *,
    fractional: bool = False,
    terms: Terms | None = None,
) -> Path | None:
    """Write a DICOM Segmentation of one segment, on the source's own grid.

    A segment is where the smooth map lies above the heatmap's threshold: what ``export_nifti_mask`` and ``export_mask``
    write. With ``fractional`` every pixel holds the map itself in steps of 1/255. Empty frames are left out. Nothing is
    written where there is nothing to show: the finding was not called (``called`` among the attributes is False, or
    the threshold is infinite), or no pixel is above the threshold.

    Args:
        path: the file.
        source: the series or slide the heatmap is of.
        heatmap: the scores.
        algorithm: what made them.
        fractional: write the scores, which are to lie between 0 and 1, in place of the foreground.
        terms: the codes; default those of a lesion.

    Returns:
        The path, or None where nothing was written.

    Raises:
        DicomError: the source does not say where it lies, or scores are no fractions.
        ValueError: the heatmap has no threshold.
        OutputError: the file cannot be written.
    """
    if not fractional and heatmap.threshold is None:
        raise ValueError(f"heatmap of '{source.name}': no segmentation without a threshold")
    if heatmap.attributes.get("called") is False or heatmap.threshold == math.inf:
        return None
    if fractional:
        _check_fractions(heatmap, source.name)
    with lenient():
        arguments = _pixels(source, heatmap, fractional)
        if not arguments["pixel_array"].any():
            return None
        made = _segmentation(source, heatmap, algorithm, arguments, fractional, terms or Terms())
    return write_instance(Path(path), made, source, algorithm, "FRACTIONAL" if fractional else "SEG")


def _check_fractions(heatmap: Heatmap | ScanHeatmap, name: str) -> None:
    is_share = "uniform" in heatmap.attributes
    if is_share or heatmap.scores.min() < 0 or heatmap.scores.max() > 1:
        what = "shares of attention" if is_share else f"from {heatmap.scores.min():.3g} to {heatmap.scores.max():.3g}"
        raise DicomError(
            f"'{name}': no fractional segmentation, for its scores are {what}, no fractions; write a parametric map"
        )


def _pixels(source: DicomSource, heatmap: Heatmap | ScanHeatmap, fractional: bool) -> dict[str, Any]:
    if isinstance(heatmap, ScanHeatmap):
        if fractional:
            return scan_grid(source, heatmap, lambda index: heatmap.slice_map(index, smooth=True), np.float32)
        return scan_grid(source, heatmap, heatmap.foreground, np.uint8)
    arguments, scores = slide_grid(source, heatmap, smooth=True)
    pixels = np.nan_to_num(scores) if fractional else (scores > heatmap.threshold).astype(np.uint8)
    return arguments | {"pixel_array": pixels}


def _segmentation(
    source: DicomSource,
    heatmap: Heatmap | ScanHeatmap,
    algorithm: Algorithm,
    arguments: dict[str, Any],
    fractional: bool,
    terms: Terms,
) -> Any:
    from highdicom.color import CIELabColor
    from highdicom.seg import Segmentation, SegmentDescription

    finding = str(heatmap.attributes.get("finding", heatmap.name))
    region = terms.region or region_of(str(source.first.get("BodyPartExamined") or ""))
    segment = SegmentDescription(
        1,
        finding[:64],
        coded(terms.category),
        coded(terms.kind),
        "AUTOMATIC",
        algorithm.identification(),
        tracking_uid=derived_uid("segment", *referenced_key(source, algorithm), finding),
        tracking_id=finding[:64],
        anatomic_regions=None if source.is_slide else [coded(region)],
        display_color=CIELabColor.from_rgb(*OUTLINE_COLOUR),
    )
    what = "fractional segmentation" if fractional else "segmentation"
    made = Segmentation(
        segmentation_type="FRACTIONAL" if fractional else "BINARY",
        segment_descriptions=[segment],
        content_label="AI_SEGMENTATION",
        content_description=f"{heatmap.name}, {RESEARCH}"[:64],
        content_creator_name=f"{MANUFACTURER}^",
        **arguments,
        **constructor_arguments(source, algorithm, "FRACTIONAL" if fractional else "SEG", f"{what} {finding}"),
    )
    if source.is_slide:
        made.PatientOrientation = None
    return made

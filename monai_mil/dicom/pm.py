"""Parametric maps: the scores themselves, float32, on the source's own grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from monai_mil.dicom.algorithm import MANUFACTURER, RESEARCH, Algorithm
from monai_mil.dicom.grid import PADDING, scan_grid, slide_grid
from monai_mil.dicom.instance import constructor_arguments, write_instance
from monai_mil.dicom.source import DicomSource, lenient
from monai_mil.dicom.terms import Term, Terms, coded, private, region_of
from monai_mil.heatmaps import Heatmap, ScanHeatmap

_PROBABILITY: Term = ("122157", "DCM", "Probability")


def write_parametric_map(
    path: str | Path,
    source: DicomSource,
    heatmap: Heatmap | ScanHeatmap,
    algorithm: Algorithm,
    *,
    terms: Terms | None = None,
) -> Path:
    """Write the scores as a DICOM Parametric Map; of cells the smooth map, no score rounded.

    Of a series it has every slice, with the position it has there. Of a slide it has the pixels of ``export_tiff``;
    where no tile lies they hold FloatPixelPaddingValue.

    Args:
        path: the file.
        source: the series or slide the heatmap is of.
        heatmap: the scores.
        algorithm: what made them.
        terms: the codes.

    Raises:
        DicomError: the source does not say where it lies.
        OutputError: the file cannot be written.
    """
    terms = terms or Terms()
    with lenient():
        made = _map(source, heatmap, algorithm)
        if isinstance(heatmap, ScanHeatmap):
            _add_anatomy(made, terms.region or region_of(str(source.first.get("BodyPartExamined") or "")))
    return write_instance(Path(path), made, source, algorithm, "PM")


def _map(source: DicomSource, heatmap: Heatmap | ScanHeatmap, algorithm: Algorithm) -> Any:
    from highdicom import VOILUTTransformation
    from highdicom.pm import ParametricMap, RealWorldValueMapping
    from pydicom.sr.codedict import codes

    low, high = float(heatmap.scores.min()), float(heatmap.scores.max())
    padding = min(PADDING, low - 1)
    if isinstance(heatmap, ScanHeatmap):
        arguments = scan_grid(source, heatmap, lambda index: heatmap.slice_map(index, smooth=True), np.float32)
        low = min(low, 0.0) if heatmap.lungs is not None else low
    else:
        arguments, scores = slide_grid(source, heatmap, smooth=heatmap.scores.ndim == 3)
        arguments["pixel_array"] = np.where(np.isnan(scores), np.float32(padding), scores)
    is_share = "uniform" in heatmap.attributes
    ends = (low, high) if is_share or low < 0 or high > 1 else (0.0, 1.0)
    finding = str(heatmap.attributes.get("finding", heatmap.name))
    quantity = private("attention") if is_share else _PROBABILITY if ends == (0.0, 1.0) else private("score")
    mapped = (padding, ends[1]) if source.is_slide else ends  # readers refuse pixels of which nothing is said
    mapping = RealWorldValueMapping(
        "SCORE",
        f"{heatmap.name} of {finding}"[:64],
        codes.UCUM.NoUnits,
        mapped,
        slope=1.0,
        intercept=0.0,
        quantity_definition=coded(quantity),
    )
    width = max(ends[1] - ends[0], 1e-6)
    made = ParametricMap(
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[VOILUTTransformation(ends[0] + width / 2, width, voi_lut_function="LINEAR_EXACT")],
        content_label="AI_SCORES",
        content_description=f"{heatmap.name}, {RESEARCH}"[:64],
        content_creator_name=f"{MANUFACTURER}^",
        **arguments,
        **constructor_arguments(source, algorithm, "PM", f"map {finding}"),
    )
    if source.is_slide:
        made.FloatPixelPaddingValue = made.FloatPixelPaddingRangeLimit = padding
    return made


def _add_anatomy(made: Any, region: Term) -> None:
    from pydicom.dataset import Dataset

    anatomy = Dataset()
    anatomy.FrameLaterality = "U"
    anatomy.AnatomicRegionSequence = [coded(region)]
    made.SharedFunctionalGroupsSequence[0].FrameAnatomySequence = [anatomy]

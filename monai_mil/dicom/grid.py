"""Values of a heatmap on the grid of its DICOM source, index for index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from monai_mil.dicom.source import DicomSource
from monai_mil.errors import DicomError
from monai_mil.heatmaps import Heatmap, ScanHeatmap, canvas_geometry, default_downsample, stitch
from monai_mil.scans import as_uid

PADDING = -1.0
"""Of a map of a slide where no tile lies; scores below 0 have one below all of them."""


@dataclass(frozen=True, eq=False)
class _Plane:
    """One slice of a series: where it is stored, where it lies, and its values."""

    header: Any
    origin: np.ndarray
    values: np.ndarray


def scan_grid(
    source: DicomSource, heatmap: ScanHeatmap, values_of: Callable[[int], np.ndarray], kind: Any
) -> dict[str, Any]:
    """The arguments of highdicom's constructors for values on the slices of a series, each with its own position.

    Args:
        source: the series.
        heatmap: whose values they are.
        values_of: values ``[rows, columns]`` of each of the heatmap's slices.
        kind: their type.

    Raises:
        DicomError: the source does not say where its slices lie.
    """
    _check_placed(source)
    planes = _planes(source, heatmap, values_of, kind)
    pixels = {"pixel_array": np.stack([plane.values for plane in planes])}
    for header in source.headers:  # de-identification may have given every slice one of its own
        header.FrameOfReferenceUID = source.first.FrameOfReferenceUID
    if not _is_multi_frame(source.first):
        return pixels | {"source_images": [_placed(plane, heatmap) for plane in planes]}
    from highdicom import CoordinateSystemNames, PlanePositionSequence

    first, *others = source.headers
    positions = [PlanePositionSequence(CoordinateSystemNames.PATIENT, plane.origin.tolist()) for plane in planes]
    _share_geometry(first, heatmap)
    return pixels | {"source_images": [first], "further_source_images": others or None, "plane_positions": positions}


def _planes(
    source: DicomSource, heatmap: ScanHeatmap, values_of: Callable[[int], np.ndarray], kind: Any
) -> list[_Plane]:
    """The source's slices in the order of its frame."""
    headers = {as_uid(header.SOPInstanceUID): header for header in source.headers}
    frame = heatmap.frame.source
    volume = np.empty(heatmap.frame.shape, kind)
    for index in range(len(heatmap)):
        volume[index] = values_of(index)
    volume = heatmap.frame.to_source(volume)
    return [_Plane(headers[frame.sop_uids[i]], frame.origins[i], volume[i]) for i in range(len(frame))]


def _check_placed(source: DicomSource) -> None:
    for header in source.headers:
        if not header.get("FrameOfReferenceUID"):
            lacking = "FrameOfReferenceUID"
        elif not _is_multi_frame(header) and not header.get("ImagePositionPatient"):
            lacking = "ImagePositionPatient"
        elif not _is_multi_frame(header) and not header.get("ImageOrientationPatient"):
            lacking = "ImageOrientationPatient"
        else:
            continue
        raise DicomError(
            f"scan '{source.name}': no segmentation or map, for its header has no {lacking}, which would place it; "
            "export the series again"
        )


def _check_slide_placed(source: DicomSource) -> None:
    needed = ("FrameOfReferenceUID", "ImageOrientationSlide", "TotalPixelMatrixOriginSequence")
    lacking = [keyword for keyword in needed if not source.first.get(keyword)]
    shared = source.first.get("SharedFunctionalGroupsSequence")
    if not shared or not shared[0].get("PixelMeasuresSequence"):
        lacking.append("PixelMeasuresSequence")
    if lacking:
        raise DicomError(
            f"slide '{source.name}': no segmentation or map, for its header lacks {', '.join(lacking)}, which would "
            "place it; convert the slide anew"
        )


def _is_multi_frame(header: Any) -> bool:
    from highdicom.spatial import is_multiframe_image

    return bool(is_multiframe_image(header))


def _placed(plane: _Plane, heatmap: ScanHeatmap) -> Any:
    """A slice's header with the geometry that was read from it, as the standard writes it."""
    frame, header = heatmap.frame.source, plane.header
    header.ImagePositionPatient = _decimals(plane.origin)
    header.ImageOrientationPatient = _decimals(frame.orientation.ravel())
    header.PixelSpacing = _decimals(frame.spacing)
    header.Rows, header.Columns = frame.size
    if not header.get("SliceThickness"):
        header.SliceThickness = _decimals([_usual_distance(heatmap)])[0]
    return header


def _share_geometry(header: Any, heatmap: ScanHeatmap) -> None:
    """Say for all frames of a multi-frame image what the series' frame says."""
    from pydicom.dataset import Dataset

    if not header.get("SharedFunctionalGroupsSequence"):
        header.SharedFunctionalGroupsSequence = [Dataset()]
    frame, shared = heatmap.frame.source, header.SharedFunctionalGroupsSequence[0]
    orientation, measures = Dataset(), Dataset()
    orientation.ImageOrientationPatient = _decimals(frame.orientation.ravel())
    measures.PixelSpacing = _decimals(frame.spacing)
    measures.SliceThickness = _decimals([abs(frame.thickness) or _usual_distance(heatmap)])[0]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    for frame_item in header.get("PerFrameFunctionalGroupsSequence") or []:
        for keyword in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
            frame_item.pop(keyword, None)


def _usual_distance(heatmap: ScanHeatmap) -> float:
    positions = heatmap.frame.source.positions_mm
    return float(np.median(np.diff(positions))) if len(positions) > 1 else 1.0


def _decimals(values: Any) -> list[Any]:
    from pydicom.valuerep import DSfloat

    return [DSfloat(float(value), auto_format=True) for value in values]


def slide_grid(source: DicomSource, heatmap: Heatmap, smooth: bool) -> tuple[dict[str, Any], np.ndarray]:
    """The arguments of highdicom's constructors for values on a slide, but for the pixels, and its scores.

    The grid begins where the slide does; a pixel of it is a whole number of the finest level's wide and high, the same
    as in :func:`monai_mil.heatmaps.export_mask` and :func:`monai_mil.heatmaps.export_tiff`.

    Returns:
        The arguments, and float32 ``[rows, columns]``, NaN where no tile lies.

    Raises:
        DicomError: the source does not say where it lies.
    """
    from highdicom import PixelMeasuresSequence

    _check_slide_placed(source)
    downsample = default_downsample(heatmap, smooth=smooth)
    shape, _ = canvas_geometry(heatmap.frame.level0_size, downsample=downsample)
    if smooth:
        window = (0, 0, shape[1] * downsample, shape[0] * downsample)
        scores = stitch(heatmap).upsample(window, shape)
    else:
        scores = heatmap.raster(downsample=downsample)
    first = source.first
    measures = first.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    spacing = [float(value) * downsample for value in measures.PixelSpacing]
    thickness = float(measures.get("SliceThickness") or 0.001)
    return {
        "source_images": [first],
        "pixel_measures": PixelMeasuresSequence(spacing, thickness),
        "tile_pixel_array": True,
        "tile_size": (min(int(first.Rows), 512), min(int(first.Columns), 512)),
        "dimension_organization_type": "TILED_SPARSE",
    }, scores

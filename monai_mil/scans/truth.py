"""Where a scan has the finding: masks in volume files and DICOM segmentations, on the scan's own voxels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_mil.errors import AnnotationError
from monai_mil.scans.frame import ScanFrame
from monai_mil.scans.volume import ITK_SUFFIXES, NIFTI, read_itk, read_nifti, reason, volume_suffix

if TYPE_CHECKING:
    import pydicom

SUFFIXES = (*NIFTI, *ITK_SUFFIXES, ".dcm", ".npz")
_SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_PARALLEL = 1e-3
_OFF_PIXELS = 0.01


def find_scan_truth(folder: str | Path, scan_id: str) -> Path:
    """The file ``<scan_id>``, ``<scan_id>_mask`` or ``<scan_id>_seg`` of a known kind in a folder.

    Volumes come before DICOM segmentations; ``<scan_id>`` may also be a folder that holds one DICOM file.

    Raises:
        AnnotationError: there is none, or a folder holds several files.
    """
    for suffix in SUFFIXES:
        for stem in (scan_id, f"{scan_id}_mask", f"{scan_id}_seg"):
            path = Path(folder, f"{stem}{suffix}")
            if path.is_file():
                return path
    inner = Path(folder, scan_id)
    if inner.is_dir():
        files = sorted(path for path in inner.iterdir() if path.is_file())
        if len(files) == 1:
            return files[0]
        raise AnnotationError(f"scan '{scan_id}': '{inner}' holds {len(files)} files; keep one segmentation there")
    raise AnnotationError(
        f"scan '{scan_id}': no ground truth in '{folder}'; name it '{scan_id}', '{scan_id}_mask' or '{scan_id}_seg' "
        f"and one of {', '.join(SUFFIXES)}"
    )


def read_scan_truth(path: str | Path, frame: ScanFrame, value: int | str | None = None) -> np.ndarray:
    """Which voxels of a scan have the finding.

    A volume may have any grid: every voxel of the scan takes the label of the volume's voxel that holds its centre,
    and none outside of it. The frames of a DICOM segmentation must lie on the scan's slices as its source has them; in
    the plane their grid may differ.

    Args:
        path: NIfTI, MHA, MHD, NRRD, a DICOM segmentation (binary, fractional, or a label map; fractions count from one
            half), or an ``.npz`` of :func:`monai_mil.synthetic.make_scan_cohort`.
        frame: the scan.
        value: the finding's label in a volume; the number or name of its segment in a DICOM segmentation. None takes
            whatever is not 0, or every segment.

    Returns:
        bool ``[n, rows, columns]``, the slices of ``frame``.

    Raises:
        AnnotationError: the file cannot be read, holds no labels or not this finding, or most of it lies outside the
            scan; names the file.
    """
    path = Path(path)
    if path.suffix == ".npz":
        return _voxels(path, frame)
    if volume_suffix(path) is not None:
        return _volume(path, frame, value)
    return _segmentation(path, frame, value)


def _voxels(path: Path, frame: ScanFrame) -> np.ndarray:
    truth = np.zeros(frame.shape, bool)
    try:
        with np.load(path) as stored:
            places, shape = stored["voxels"], tuple(stored["shape"].tolist())
            fits = shape == frame.shape
            if fits:
                truth[tuple(places.T)] = True
    except Exception as error:  # zip and numpy raise many kinds of errors for damaged files
        raise AnnotationError(f"ground truth '{path}': cannot be read ({error}); make it again") from error
    if not fits:
        raise AnnotationError(f"ground truth '{path}': it is of {shape} voxels, the scan has {frame.shape}")
    return truth


def _volume(path: Path, frame: ScanFrame, value: int | str | None) -> np.ndarray:
    from scipy.ndimage import affine_transform

    if isinstance(value, str):
        raise AnnotationError(f"ground truth '{path}': labels of a volume are numbers; give one in place of '{value}'")
    try:
        stored, slope, intercept, affine, _ = read_nifti(path) if volume_suffix(path) in NIFTI else read_itk(path)
    except Exception as error:  # the libraries raise whatever their parsers meet
        raise AnnotationError(f"ground truth '{path}': cannot be read ({reason(error)}); export it again") from None
    while stored.ndim > 3 and stored.shape[-1] == 1:
        stored = stored[..., 0]
    labels = stored if slope in (1.0, 0.0) or np.isnan(slope) else stored * slope + intercept
    if labels.ndim != 3 or not (np.isfinite(labels).all() and (labels == np.rint(labels)).all()):
        raise AnnotationError(f"ground truth '{path}': {list(labels.shape)} is no volume of labels; export a label map")
    finding = labels != 0 if value is None else labels == value
    if value is not None and not finding.any() and labels.any():
        known = ", ".join(str(int(label)) for label in np.unique(labels[labels != 0])[:20])
        raise AnnotationError(f"ground truth '{path}': no label {value}; it has {known}")
    _check_place(path, np.argwhere(finding), affine, frame)
    masks, to_volume, (rows, columns) = finding.astype(np.uint8), np.linalg.inv(affine), frame.size
    truth = np.empty(frame.shape, bool)
    for index in range(len(frame)):
        place = to_volume @ frame.slice_affine(index)
        # beyond the outer voxels' centres "constant" has nothing, "grid-constant" their outer halves
        found = affine_transform(
            masks, place[:3, :3], place[:3, 3], (columns, rows, 1), np.uint8, order=0, mode="grid-constant"
        )
        truth[index] = found[:, :, 0].T
    return truth


def _check_place(path: Path, voxels: np.ndarray, affine: np.ndarray, frame: ScanFrame) -> None:
    """Refuse a truth most of which lies outside of the scan: it is another scan's."""
    if not len(voxels):
        return
    places = np.linalg.inv(frame.even_affine) @ affine @ np.c_[voxels, np.ones(len(voxels))].T
    size = np.array([frame.size[1], frame.size[0], len(frame)])
    inside = ((places[:3].T >= -0.5) & (size - 0.5 > places[:3].T)).all(axis=1).mean()
    if inside < 0.5:
        raise AnnotationError(
            f"ground truth '{path}': {100 * (1 - inside):.0f} % of it lies outside the scan; is it this scan's, and "
            "are its axes right?"
        )


@dataclass(frozen=True, eq=False)
class _Plane:
    """One frame of a segmentation: LPS, mm."""

    mask: np.ndarray
    origin: np.ndarray
    orientation: np.ndarray
    spacing: np.ndarray


def _segmentation(path: Path, frame: ScanFrame, value: int | str | None) -> np.ndarray:
    source = frame.source
    truth = np.zeros(source.shape, bool)
    positions = source.positions_mm
    reach = np.diff(np.sort(positions)).min() / 2 if len(positions) > 1 else max(abs(source.thickness), 1.0) / 2
    for number, plane in enumerate(_planes(path, value), 1):
        normal = np.cross(*plane.orientation)
        if abs(abs(normal @ source.normal) - 1) > _PARALLEL:
            raise AnnotationError(
                f"ground truth '{path}': frame {number} is not parallel to the scan's slices; resample it to them"
            )
        off = np.abs(positions - plane.origin @ source.normal)
        if off.min() > reach:
            raise AnnotationError(
                f"ground truth '{path}': frame {number} lies {off.min():.1f} mm beside the nearest slice of the scan; "
                "is it this scan's?"
            )
        index = int(off.argmin())
        truth[index] |= _in_plane(plane, source, index)
    return truth if frame.turn is None else np.ascontiguousarray(frame.turn.apply(truth))


def _in_plane(plane: _Plane, source: ScanFrame, index: int) -> np.ndarray:
    """A segmentation's frame on the pixels of a slice of the scan, bool ``[rows, columns]``."""
    from scipy.ndimage import affine_transform

    axes = plane.orientation[::-1] / plane.spacing[:, None]  # from mm to rows and columns of the frame
    steps = source.orientation[::-1] * np.array(source.spacing)[:, None]  # rows and columns of the slice in mm
    matrix, offset = axes @ steps.T, axes @ (source.origins[index] - plane.origin)
    same = np.abs(matrix - np.eye(2)).max() * max(source.size) < _OFF_PIXELS and np.abs(offset).max() < _OFF_PIXELS
    if same and plane.mask.shape == source.size:
        return plane.mask
    mask = plane.mask.astype(np.uint8)
    return affine_transform(mask, matrix, offset, source.size, order=0, mode="grid-constant").astype(bool)


def _planes(path: Path, value: int | str | None) -> Iterator[_Plane]:
    """The frames of the segments asked for."""
    import pydicom

    try:
        dataset = pydicom.dcmread(path)
    except Exception as error:  # pydicom raises whatever its parser meets
        raise AnnotationError(
            f"ground truth '{path}': cannot be read as DICOM ({reason(error)}); export it again"
        ) from None
    if dataset.get("SOPClassUID") not in _SEGMENTATIONS:
        raise AnnotationError(f"ground truth '{path}': no DICOM segmentation but {dataset.get('Modality', 'unknown')}")
    segments = _segments(path, dataset, value)
    try:
        pixels = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
        groups = dataset.PerFrameFunctionalGroupsSequence
        shared = dataset.SharedFunctionalGroupsSequence[0] if "SharedFunctionalGroupsSequence" in dataset else None
        labels = dataset.SegmentationType == "LABELMAP"
        half = dataset.MaximumFractionalValue / 2 if dataset.SegmentationType == "FRACTIONAL" else 0
        for image, own in zip(pixels, groups, strict=True):
            if (
                not labels
                and _group(own, shared, "SegmentIdentificationSequence").ReferencedSegmentNumber not in segments
            ):
                continue
            measures = _group(own, shared, "PixelMeasuresSequence")
            yield _Plane(
                np.isin(image, list(segments)) if labels else (image >= half if half else image > 0),
                np.array(_group(own, shared, "PlanePositionSequence").ImagePositionPatient, float),
                np.array(_group(own, shared, "PlaneOrientationSequence").ImageOrientationPatient, float).reshape(2, 3),
                np.array(measures.PixelSpacing, float),
            )
    except (AttributeError, KeyError, IndexError, ValueError, NotImplementedError, RuntimeError) as error:
        raise AnnotationError(
            f"ground truth '{path}': its frames cannot be read ({reason(error)}); export the segmentation again"
        ) from None


def _segments(path: Path, dataset: pydicom.Dataset, value: int | str | None) -> set[int]:
    """Numbers of the segments asked for."""
    segments = dataset.get("SegmentSequence", [])
    known = {int(segment.SegmentNumber): str(segment.get("SegmentLabel", "")) for segment in segments}
    if value is None:
        return set(known)
    found = {number for number, label in known.items() if value == number or str(value).lower() == label.lower()}
    if not found:
        listed = ", ".join(f"{number} '{label}'" for number, label in known.items())
        raise AnnotationError(f"ground truth '{path}': no segment '{value}'; it has {listed or 'none'}")
    return found


def _group(own: Any, shared: Any, name: str) -> Any:
    """The item of a functional group, a frame's own or that of all."""
    holder = own if name in own or shared is None else shared
    return holder[name].value[0]

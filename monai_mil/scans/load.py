"""One door for every kind of CT scan."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from monai_mil.errors import ScanReadError
from monai_mil.names import is_there
from monai_mil.scans.concatenation import with_other_parts
from monai_mil.scans.dicom import DicomSlice, read_file, shown_uid
from monai_mil.scans.frame import ScanFrame, describe_spacings
from monai_mil.scans.kinds import advice_on
from monai_mil.scans.orientation import orientation_remarks, oriented
from monai_mil.scans.pixels import read_hu, same_pixels
from monai_mil.scans.remarks import gravest_first
from monai_mil.scans.scan import Scan
from monai_mil.scans.series import choose_series, kind_of, one_acquisition
from monai_mil.scans.stack import Stack, stack_slices
from monai_mil.scans.volume import load_volume, volume_suffix

_UNITS = ("US", "OD", "HU_MOD", "PCT", "Z_EFF", "ED", "EDW", "MGML")
"""RescaleTypes that messages show: in a damaged header anything may stand in their place."""


def load_scan(
    path: str | Path, *, series_uid: str | None = None, acquisition: str | None = None, allow_gaps: bool = False
) -> Scan:
    """Read a CT scan in Hounsfield units, every slice with its exact place.

    Every scan comes in one orientation: columns run to the patient's left, rows to the back, slices to the head. It is
    brought there by permuting and mirroring axes, never by resampling; ``frame.source`` and ``frame.to_source`` lead
    back to the source's own slices. Values below -1024 HU (padding) become -1024 HU. Whatever was repaired, left out or
    assumed stands in ``remarks``, the gravest first.

    Args:
        path: a folder with a DICOM series (files of any name, other objects beside them are left out), an Enhanced CT
            file (one part stands for all of a concatenation), a NIfTI file (``.nii``, ``.nii.gz``) or an ITK volume
            (``.mha``, ``.mhd``, ``.nrrd``).
        series_uid: the series to read where the folder has several.
        acquisition: the acquisition, phase or pass to read where a series has several that overlap: an
            AcquisitionNumber, or what the error that lists them calls it.
        allow_gaps: accept a series with missing slices.

    Raises:
        ScanReadError: no CT, several series, acquisitions or orientations, missing or contradictory slices,
            damaged pixels; the message lists what was found and what to do.

    Examples:
        >>> import nibabel
        >>> import numpy as np
        >>> from monai_mil.scans import load_scan
        >>> voxels = np.full((64, 48, 6), 40, np.int16)  # columns, rows, slices
        >>> nibabel.save(nibabel.Nifti1Image(voxels, np.diag([0.8, 0.8, 2.5, 1.0])), folder / "S-1.nii.gz")
        >>> scan = load_scan(folder / "S-1.nii.gz")
        >>> scan.hu.shape, scan.frame.spacings()  # five steps of 2.5 mm
        ((6, 48, 64), ((5, 2.5),))
    """
    path = Path(path)
    if not is_there(path) and _is_link(path):
        raise ScanReadError(f"scan '{path}': a link to '{path.readlink()}', which is not there; mend or remove it")
    if not is_there(path):
        raise ScanReadError(f"scan '{path}': no such file or folder")
    if path.is_file() and volume_suffix(path) is not None:
        return load_volume(path)
    name = path.resolve().name
    if path.is_dir():
        chosen = choose_series(path, series_uid, acquisition)
        slices, remarks = chosen.slices, chosen.remarks
        name = f"{name}_{slices[0].file.series_uid}" if chosen.has_others else name
    else:
        slices, remarks = _slices_of_file(path, acquisition)
        name = path.stem if path.suffix.lower() in (".dcm", ".dicom", ".ima") else name
    patient_id = _one_patient(path, slices)
    _check_one_frame_of_reference(path, slices)
    stack = stack_slices(str(path), slices, same_pixels, allow_gaps)
    frame = _frame(name, path, stack, acquisition)
    hu, repairs = read_hu(stack.slices)
    scan = oriented(Scan(frame, hu, patient_id))
    geometry = [*_geometry_remarks(frame, stack), *orientation_remarks(scan.frame)]
    return replace(scan, remarks=gravest_first([*remarks, *stack.remarks, *geometry, *repairs]))


def _is_link(path: Path) -> bool:
    try:
        return path.is_symlink()
    except OSError:  # too long a name
        return False


def _slices_of_file(path: Path, acquisition: str | None) -> tuple[list[DicomSlice], list[str]]:
    file = read_file(path)
    if file is None:
        advice = advice_on(path)
        if advice is not None:
            raise ScanReadError(f"scan '{path}': {advice}")
        raise ScanReadError(
            f"scan '{path}': not a DICOM, NIfTI, MHA or NRRD file; give the folder of a CT series or such a file"
        )
    if not file.slices:
        raise ScanReadError(f"scan '{path}': a DICOM file, but {kind_of(file)}, not CT; give a CT series")
    parts = with_other_parts(file)
    slices, remarks = one_acquisition(str(path), [piece for part in parts for piece in part.slices], acquisition)
    if len(parts) > 1:
        remarks.append(f"stored in {len(parts)} files, the parts of a concatenation")
    elif file.frames == 1:
        remarks.append("one single-frame file read: give its folder for the whole series")
    return slices, remarks


def _one_patient(path: Path, slices: list[DicomSlice]) -> str:
    patients = {piece.file.patient_id for piece in slices}
    if len(patients) > 1:
        raise ScanReadError(
            f"scan '{path}': slices of {len(patients)} patients under one series UID; put each into its own folder"
        )
    return next(iter(patients))


def _check_one_frame_of_reference(path: Path, slices: list[DicomSlice]) -> None:
    frames = Counter(piece.file.frame_of_reference_uid for piece in slices if piece.file.frame_of_reference_uid)
    # some de-identification gives every file a UID of its own, which says nothing of where the patient lay
    if 1 < len(frames) < len({piece.file.path for piece in slices}):
        found = ", ".join(f"{count} of {shown_uid(uid)}" for uid, count in frames.most_common(4))
        raise ScanReadError(
            f"scan '{path}': slices of {len(frames)} frames of reference in one series ({found}): their positions "
            "cannot be compared; put the files of one into a folder of its own"
        )


def _frame(name: str, path: Path, stack: Stack, acquisition: str | None) -> ScanFrame:
    first = stack.slices[0]
    return ScanFrame(
        scan_id=name,
        path=str(path),
        size=stack.size,
        spacing=stack.spacing,
        orientation=stack.orientation,
        origins=stack.origins,
        sop_uids=tuple(piece.file.sop_uid for piece in stack.slices),
        frame_numbers=tuple(piece.frame for piece in stack.slices),
        study_uid=first.file.study_uid,
        series_uid=first.file.series_uid,
        frame_of_reference_uid=first.file.frame_of_reference_uid,
        thickness=first.thickness or 0.0,
        acquisition=acquisition or "",
    )


def _geometry_remarks(frame: ScanFrame, stack: Stack) -> list[str]:
    remarks = _identity_remarks(stack)
    if not frame.is_straight:
        remarks.append(f"the slices lie up to {frame.off_line_mm:.1f} mm beside one straight line: no even grid")
    elif frame.tilt_degrees > 0.1:
        remarks.append(
            f"the slices step at {frame.tilt_degrees:.1f} degrees to their normal (gantry tilt): a sheared grid"
        )
    if not frame.is_regular and frame.is_nearly_even:
        off = np.linalg.norm(frame.origins - frame.even_origins, axis=1).max()
        step = np.linalg.norm(frame.even_origins[1] - frame.even_origins[0])
        remarks.append(
            f"slice positions lie up to {off:.2g} mm off even steps of {step:.4g} mm, as rounded ones do: a grid "
            "that is written has even ones"
        )
    elif len(frame.spacings()) > 1:
        remarks.append(f"slice distances differ: {describe_spacings(frame.spacings())}; the grid is uneven")
    thickness = Counter(piece.thickness for piece in stack.slices if piece.thickness)
    if len(thickness) > 1:
        remarks.append("slice thickness differs: " + ", ".join(f"{n} x {mm:g} mm" for mm, n in thickness.items()))
    elif thickness and len(frame) > 1:
        thin, distance = next(iter(thickness)), min(mm for _, mm in frame.spacings())
        if distance > 1.5 * thin:
            remarks.append(
                f"slices of {thin:g} mm lie {distance:g} mm apart: the tissue between them is not in the scan"
            )
    if any(piece.is_captured for piece in stack.slices):
        remarks.append("stored as Secondary Capture, with the place and rescaling of CT slices: read as CT")
    if any(piece.file.photometric == "MONOCHROME1" for piece in stack.slices):
        remarks.append("MONOCHROME1: shown inverted by viewers; Hounsfield units are as stored")
    if any(piece.file.is_lossy for piece in stack.slices):
        remarks.append("compressed with losses (LossyImageCompression): Hounsfield units are approximate")
    units = {piece.unit for piece in stack.slices} - {"", "HU"}
    if units:
        shown = "/".join(sorted({unit if unit in _UNITS else "of no known kind" for unit in units}))
        remarks.append(f"RescaleType {shown} rather than HU: the values may be no Hounsfield units")
    return remarks


def _identity_remarks(stack: Stack) -> list[str]:
    remarks = []
    shared = len(stack.slices) - len({(piece.file.sop_uid, piece.frame) for piece in stack.slices})
    if shared:
        remarks.append(f"{shared} slices have the SOPInstanceUID of another one, or none: it does not tell them apart")
    return remarks

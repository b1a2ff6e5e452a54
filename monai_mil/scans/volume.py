"""Volume files: NIfTI through nibabel; MHA, MHD and NRRD through ITK."""

from __future__ import annotations

import gzip
import logging
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from monai_mil.errors import ScanReadError
from monai_mil.scans.frame import LPS_TO_RAS, ScanFrame
from monai_mil.scans.pixels import rescale
from monai_mil.scans.remarks import gravest_first
from monai_mil.scans.repairs import Repairs, clip_air, remarks_on
from monai_mil.scans.scan import Scan

NIFTI = (".nii.gz", ".nii")
ITK_SUFFIXES = (".mha", ".mhd", ".nrrd", ".nhdr")
_PLAINLY_THICKER = 1.5
_FORMS_AGREE_MM = 1.0
NIFTI_2 = (b"\x1c\x02\0\0", b"\0\0\x02\x1c")  # the header's length, 540, in either byte order
_NO_VOLUME = 1e-9
_NRRD = (".nrrd", ".nhdr")
_SPACE = re.compile(rb"^space:[ \t]*([\w-]+)", re.MULTILINE | re.IGNORECASE)
_SPACES = {
    *(b"right-anterior-superior", b"left-anterior-superior", b"left-posterior-superior"),
    *(b"ras", b"las", b"lps"),
}
_UNIT_MM = {"meter": 1000.0, "micron": 0.001}


def volume_suffix(path: Path) -> str | None:
    """The ending that makes ``path`` a volume file, or None."""
    return next((suffix for suffix in (*NIFTI, *ITK_SUFFIXES) if path.name.lower().endswith(suffix)), None)


def load_volume(path: Path) -> Scan:
    """Read a volume file; slices lie across its third axis, or across another one that is plainly coarser.

    Rows and columns are turned and mirrored (never resampled) to the way DICOM stores a slice, so that a scan gives
    the same images in every format: axial rows run to the patient's left and columns to the back.

    Raises:
        ScanReadError: not a three-dimensional volume of numbers, or its affine has no right angles within a slice.
    """
    suffix = volume_suffix(path)
    assert suffix is not None
    try:
        array, slope, intercept, affine, remarks = _nifti(path) if suffix in NIFTI else read_itk(path)
    except ScanReadError:
        raise
    except Exception as error:  # the libraries raise whatever their parsers meet
        raise ScanReadError(
            f"scan '{path}' cannot be read as {suffix} ({_reason(error)}); export or copy it again"
        ) from None
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3 or array.dtype.kind not in "iuf" or 0 in array.shape:
        raise ScanReadError(
            f"scan '{path}': {array.dtype} of shape {array.shape} is no volume of three axes; extract one CT volume"
        )
    if not (np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-9):
        raise ScanReadError(f"scan '{path}': its affine is not invertible; write the volume with its geometry")
    stack, frame = _as_slices(path, path.name[: -len(suffix)], array, LPS_TO_RAS @ affine)
    hu, more = _volume_hu(stack, slope, intercept)
    return Scan(frame, hu, "", gravest_first([*remarks, *more]))


def _reason(error: Exception) -> str:
    """What a library met, in words of ours: its own may quote the header, and so a patient's name."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError):
        return "too large for the memory"
    if isinstance(error, EOFError | zlib.error | gzip.BadGzipFile):
        return "its compressed data are damaged or cut off"
    return f"its header is damaged or the file is cut off, {type(error).__name__}"


def _nifti(path: Path) -> tuple[np.ndarray, float, float, np.ndarray, list[str]]:
    with _quiet_nibabel() as faults:
        image, array, behind = _nifti_image(path)
        affine, remarks = _nifti_affine(image)
    if any("pixdim[1,2,3]" in fault for fault in faults):
        remarks.append("a voxel size in the NIfTI header is zero or negative: read as 1 mm, or as positive")
    return array, float(image.dataobj.slope), float(image.dataobj.inter), affine, [*behind, *remarks]


@contextmanager
def _quiet_nibabel() -> Iterator[list[str]]:
    """Catch what nibabel says of a header, into the list: it prints it, and quotes the header's bytes."""
    from nibabel.imageglobals import logger

    said: list[str] = []

    def catch(record: logging.LogRecord) -> bool:
        said.append(record.getMessage())
        return False

    logger.addFilter(catch)
    try:
        yield said
    finally:
        logger.removeFilter(catch)


def _nifti_image(path: Path) -> tuple[Any, np.ndarray, list[str]]:
    """The image, its numbers as stored, and remarks."""
    import nibabel

    if not is_gzip(path):
        image: Any = nibabel.load(path)
        return image, np.asarray(image.dataobj.get_unscaled()), []
    with gzip.open(path) as stream:
        kind: Any = nibabel.Nifti2Image if stream.read(4) in NIFTI_2 else nibabel.Nifti1Image
        stream.seek(0)
        image = kind.from_file_map({"image": nibabel.FileHolder(fileobj=stream)})
        return image, np.asarray(image.dataobj.get_unscaled()), _read_to_its_end(stream)


def _read_to_its_end(stream: gzip.GzipFile) -> list[str]:
    """Read the rest: only at its end does the checksum tell whether a file is whole. A remark on what stands behind."""
    try:
        while stream.read(1 << 20):
            pass
    except gzip.BadGzipFile as error:
        if not str(error).startswith("Not a gzipped file"):
            raise
        return ["bytes behind the end of the compressed data were ignored"]
    return []


def is_gzip(path: Path) -> bool:
    """By its content: some programs write compressed files without the suffix."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _nifti_affine(image: Any) -> tuple[np.ndarray, list[str]]:
    """The affine in mm, sform before qform, and what is to be said of it."""
    header, affine, remarks = image.header, image.affine, []
    if header["sform_code"] and abs(np.linalg.det(header.get_sform()[:3, :3])) < _NO_VOLUME:
        remarks.append("the sform of the NIfTI header maps everything to a plane: it was not taken")
        header["sform_code"] = 0
        affine = header.get_best_affine()
    if not (header["sform_code"] or header["qform_code"]):
        remarks.append("the NIfTI header has no orientation: left/right and position in the patient are unknown")
    if header["sform_code"] and header["qform_code"]:
        corners = np.array([[*corner, 1] for corner in np.ndindex(2, 2, 2)]) * [*np.array(image.shape[:3]) - 1, 1]
        apart = float(np.linalg.norm(corners @ (header.get_sform() - header.get_qform()).T, axis=1).max())
        if apart > _FORMS_AGREE_MM:
            remarks.append(f"sform and qform of the NIfTI header differ by up to {apart:.3g} mm: the sform was taken")
    unit = header.get_xyzt_units()[0]
    if unit in _UNIT_MM:
        affine = np.diag([_UNIT_MM[unit]] * 3 + [1.0]) @ affine
        remarks.append(f"the NIfTI header counts in {unit}s: turned to mm")
    return affine, remarks


def read_itk(path: Path) -> tuple[np.ndarray, float, float, np.ndarray, list[str]]:
    """The numbers of an ITK file in NIfTI's order of axes, slope and intercept, its affine and remarks."""
    try:
        import itk
    except ImportError as error:
        raise ScanReadError(f"scan '{path}': this format needs ITK; pip install 'monai-mil[itk]'") from error
    image: Any = itk.imread(str(path))
    direction, spacing = itk.array_from_matrix(image.GetDirection()), np.array(image.GetSpacing())
    if direction.shape != (3, 3):
        raise ScanReadError(f"scan '{path}': {len(spacing)} axes; a CT volume has three")
    remarks = _nrrd_remarks(path) if path.suffix.lower() in _NRRD else []
    affine = np.eye(4)
    affine[:3, :3] = direction * spacing
    affine[:3, 3] = np.array(image.GetOrigin())
    return itk.array_from_image(image).T, 1.0, 0.0, LPS_TO_RAS @ affine, remarks


def _nrrd_remarks(path: Path) -> list[str]:
    """ITK knows the spaces of patients; any other, or none, it takes for LPS."""
    with path.open("rb") as file:
        found = _SPACE.search(file.read(1 << 16).partition(b"\n\n")[0])
    if found is None:
        return ["the NRRD header names no space: axes taken as LPS, left/right and position may be wrong"]
    if found[1].lower() not in _SPACES:
        return ["the space of the NRRD header is none of a patient: axes taken as LPS, left/right may be wrong"]
    return []


def _as_slices(path: Path, name: str, array: np.ndarray, lps: np.ndarray) -> tuple[np.ndarray, ScanFrame]:
    """The volume as ``[slice, row, column]`` in DICOM's directions, and its frame; ``lps`` maps array indices to mm."""
    across = _slice_axis(lps)
    column, row = _in_plane_axes(lps, across)
    array, lps = array.transpose(across, row, column), lps[:, [across, row, column, 3]]
    directions = lps[:3, :3] / np.linalg.norm(lps[:3, :3], axis=0)
    if abs(directions[:, 1] @ directions[:, 2]) > 0.01:
        raise ScanReadError(f"scan '{path}': its affine is sheared within the slices; resample it to right angles")
    for axis, target in ((2, _display(directions[:, 2])), (1, _display(directions[:, 1]))):
        if directions[:, axis] @ target < 0:
            array, lps = _flipped(array, lps, axis)
    if np.cross(lps[:3, 2], lps[:3, 1]) @ lps[:3, 0] < 0:
        array, lps = _flipped(array, lps, 0)
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    n, rows, columns = array.shape
    frame = ScanFrame(
        scan_id=name,
        path=str(path),
        size=(rows, columns),
        spacing=(float(spacing[1]), float(spacing[2])),
        orientation=np.stack([lps[:3, 2] / spacing[2], lps[:3, 1] / spacing[1]]),
        origins=lps[:3, 3] + np.arange(n)[:, None] * lps[:3, 0],
        sop_uids=("",) * n,
        frame_numbers=tuple(range(1, n + 1)),
        thickness=float(spacing[0]),
    )
    return array, frame


def _slice_axis(lps: np.ndarray) -> int:
    sizes = np.linalg.norm(lps[:3, :3], axis=0)
    coarsest = int(sizes.argmax())
    others = np.delete(sizes, coarsest)
    return coarsest if sizes[coarsest] >= _PLAINLY_THICKER * others.max() else 2


def _in_plane_axes(lps: np.ndarray, across: int) -> tuple[int, int]:
    """Array axes that become columns and rows: columns go along the patient's left or, in sagittal slices, back."""
    first, second = (axis for axis in range(3) if axis != across)
    world = np.abs(lps[:3, :3] / np.linalg.norm(lps[:3, :3], axis=0))
    first_is_column = world[:, first].argmax() <= world[:, second].argmax()
    return (first, second) if first_is_column else (second, first)


def _display(direction: np.ndarray) -> np.ndarray:
    """The sense in which DICOM images run along a direction: to the left, to the back, to the feet."""
    axis = int(np.abs(direction).argmax())
    target = np.zeros(3)
    target[axis] = -1.0 if axis == 2 else 1.0
    return target


def _flipped(array: np.ndarray, lps: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    lps = lps.copy()
    lps[:3, 3] += lps[:3, axis] * (array.shape[axis] - 1)
    lps[:3, axis] *= -1
    return np.flip(array, axis), lps


def _volume_hu(
    stack: np.ndarray, slope: float, intercept: float, *, may_be_int16: bool = True
) -> tuple[np.ndarray, list[str]]:
    """HU as for DICOM, slice by slice; floats that are all whole numbers become int16 where they fit."""
    stack = stack.astype(stack.dtype.newbyteorder("="), copy=False)
    whole = may_be_int16 and slope.is_integer() and intercept.is_integer() and _is_whole(stack)
    hu = np.empty(stack.shape, np.int16 if whole else np.float32)
    repairs = []
    for index in range(len(stack)):
        if not rescale(np.ascontiguousarray(stack[index]), slope, intercept, hu[index]):
            return _volume_hu(stack.astype(np.float32), slope, intercept, may_be_int16=False)
        clipped, lowest = clip_air(hu[index])
        repairs.append(Repairs(clipped=clipped, lowest=lowest, highest=float(hu[index].max())))
    return hu, remarks_on(repairs, hu[0].size)


def _is_whole(stack: np.ndarray) -> bool:
    if stack.dtype.kind != "f":
        return True
    return all(
        bool(np.isfinite(piece).all() and (piece == np.rint(piece)).all() and np.abs(piece).max() < 2**15)
        for piece in stack
    )

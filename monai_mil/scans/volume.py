"""Volume files: NIfTI through nibabel; MHA, MHD and NRRD through ITK."""

from __future__ import annotations

import gzip
import logging
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from monai_mil.errors import ScanReadError
from monai_mil.scans.frame import LPS_TO_RAS, ScanFrame
from monai_mil.scans.orientation import orientation_remarks, turned
from monai_mil.scans.pixels import rescale
from monai_mil.scans.remarks import gravest_first
from monai_mil.scans.repairs import Repairs, clip_air, remarks_on
from monai_mil.scans.scan import Scan

NIFTI = (".nii.gz", ".nii")
ITK_SUFFIXES = (".mha", ".mhd", ".nrrd", ".nhdr")
_FORMS_AGREE_MM = 1.0
NIFTI_2 = (b"\x1c\x02\0\0", b"\0\0\x02\x1c")  # the header's length, 540, in either byte order
_MOST_BEHIND = 1 << 24
_MOST_PACKED = 1100  # deflate makes 1,032 bytes of one
_UNITS = {0: "", 1: "meter", 2: "", 3: "micron"}
_UNIT_MM = {"meter": 1000.0, "micron": 0.001}


def volume_suffix(path: Path) -> str | None:
    """The ending that makes ``path`` a volume file, or None."""
    return next((suffix for suffix in (*NIFTI, *ITK_SUFFIXES) if path.name.lower().endswith(suffix)), None)


def load_volume(path: Path) -> Scan:
    """Read a volume file, in the orientation of all scans (see :func:`oriented`) whatever way its axes run.

    Raises:
        ScanReadError: not a three-dimensional volume of numbers, or its affine has no right angles within a slice.
    """
    suffix = volume_suffix(path)
    assert suffix is not None
    try:
        array, slope, intercept, affine, remarks = read_nifti(path) if suffix in NIFTI else read_itk(path)
    except ScanReadError:
        raise
    except Exception as error:  # the libraries raise whatever their parsers meet
        raise ScanReadError(
            f"scan '{path}' cannot be read as {suffix} ({reason(error)}); export or copy it again"
        ) from None
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    return _scan(f"scan '{path}'", path.name[: -len(suffix)], str(path), array, affine, slope, intercept, remarks)


def volume_scan(voxels: np.ndarray, affine: np.ndarray, scan_id: str, path: str | None = None) -> Scan:
    """A volume in memory as a scan, in the orientation of all scans.

    Args:
        voxels: Hounsfield units, ``[i, j, k]`` in any order of axes.
        affine: ``[4, 4]`` from the indices to RAS+ mm.
        scan_id: its name in tables and files.
        path: the file it was read from.

    Raises:
        ScanReadError: no three-dimensional volume of numbers, or an affine that is not invertible or has no right
            angles within the axial slices.

    Examples:
        >>> import numpy as np
        >>> from monai_mil.scans import volume_scan
        >>> volume_scan(np.zeros((64, 48, 6), np.int16), np.diag([0.8, 0.8, 2.5, 1.0]), "S-1")
        Scan('S-1', 6 slices of 48 x 64, int16)
    """
    return _scan(f"scan '{scan_id}'", scan_id, path, voxels, np.asarray(affine, np.float64), 1.0, 0.0, [])


def _scan(
    what: str,
    scan_id: str,
    path: str | None,
    voxels: np.ndarray,
    affine: np.ndarray,
    slope: float,
    intercept: float,
    remarks: list[str],
) -> Scan:
    if voxels.ndim != 3 or voxels.dtype.kind not in "iuf" or 0 in voxels.shape:
        raise ScanReadError(
            f"{what}: {voxels.dtype} of shape {voxels.shape} is no volume of three axes; extract one CT volume"
        )
    if not (np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-9):
        raise ScanReadError(f"{what}: its affine is not invertible; write the volume with its geometry")
    frame = _frame(scan_id, path, voxels.shape, LPS_TO_RAS @ affine)
    turn = frame.lps_turn()
    frame = turned(frame, turn)
    hu, more = _volume_hu(turn.apply(voxels.T), slope, intercept)
    return Scan(frame, hu, "", gravest_first([*remarks, *orientation_remarks(frame), *more]))


def reason(error: Exception) -> str:
    """What a library met, in words of ours: its own may quote the header, and so a patient's name."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError):
        return "too large for the memory"
    if isinstance(error, EOFError | zlib.error | gzip.BadGzipFile):
        return "its compressed data are damaged or cut off"
    return f"its header is damaged or the file is cut off, {type(error).__name__}"


def read_nifti(path: Path) -> tuple[np.ndarray, float, float, np.ndarray, list[str]]:
    """The numbers of a NIfTI file as stored, slope and intercept, its affine in mm and remarks."""
    with quiet_nibabel() as faults:
        image, array, behind = _nifti_image(path)
        affine, remarks = _nifti_affine(image)
    if any("pixdim[1,2,3]" in fault for fault in faults):
        remarks.append("a voxel size in the NIfTI header is zero or negative: read as 1 mm, or as positive")
    return array, float(image.dataobj.slope), float(image.dataobj.inter), affine, [*behind, *remarks]


@contextmanager
def quiet_nibabel() -> Iterator[list[str]]:
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
        size = int(np.prod(image.shape, dtype=object)) * image.get_data_dtype().itemsize
        if size > _MOST_PACKED * path.stat().st_size:
            raise EOFError
        return image, np.asarray(image.dataobj.get_unscaled()), _read_to_its_end(stream)


def _read_to_its_end(stream: gzip.GzipFile) -> list[str]:
    """Read the rest: only at its end does the checksum tell whether a file is whole. A remark on what stands behind.

    Raises:
        ValueError: it goes on for long behind the volume.
    """
    left = _MOST_BEHIND
    try:
        while part := stream.read(1 << 20):
            left -= len(part)
            if left < 0:
                raise ValueError("goes on behind its volume")
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
    given = [name for name in ("sform", "qform") if header[f"{name}_code"]]
    forms = {name: form for name in given if (form := _form(header, name)) is not None}
    if not given:
        remarks.append("the NIfTI header has no orientation: left/right and position in the patient are unknown")
    elif len(forms) == 2:
        corners = np.array([[*corner, 1] for corner in np.ndindex(2, 2, 2)]) * [*np.array(image.shape[:3]) - 1, 1]
        apart = float(np.linalg.norm(corners @ (forms["sform"] - forms["qform"]).T, axis=1).max())
        if apart > _FORMS_AGREE_MM:
            remarks.append(f"sform and qform of the NIfTI header differ by up to {apart:.3g} mm: the sform was taken")
    elif len(given) == 2 and forms:
        (taken,) = forms
        affine, broken = forms[taken], next(name for name in given if name != taken)
        remarks.append(f"the {broken} of the NIfTI header is no invertible matrix: the {taken} was taken")
    unit = _UNITS.get(int(header["xyzt_units"]) & 7, "unknown unit")
    if unit in _UNIT_MM:
        affine = np.diag([_UNIT_MM[unit]] * 3 + [1.0]) @ affine
        remarks.append(f"the NIfTI header counts in {unit}s: turned to mm")
    elif unit:
        remarks.append("the NIfTI header counts in a unit that there is not: taken as mm")
    return affine, remarks


def _form(header: Any, name: str) -> np.ndarray | None:
    """One of the header's two affines; None where it is none."""
    try:
        affine = getattr(header, f"get_{name}")()
    except Exception:  # nibabel raises whatever its arithmetic meets
        return None
    return affine if np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-9 else None


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
    affine = np.eye(4)
    affine[:3, :3] = direction * spacing
    affine[:3, 3] = np.array(image.GetOrigin())
    remarks = []
    if volume_suffix(path) in (".nrrd", ".nhdr") and _nrrd_space(image) != "left-posterior-superior":
        remarks.append("the NRRD header names no space of the patient: left/right are unknown, taken as LPS")
    return itk.array_from_image(image).T, 1.0, 0.0, LPS_TO_RAS @ affine, remarks


def _nrrd_space(image: Any) -> str:
    """As ITK says it, which turns every space of the patient into LPS."""
    known = image.GetMetaDataDictionary()
    return str(known["NRRD_space"]) if known.HasKey("NRRD_space") else ""


def _frame(scan_id: str, path: str | None, shape: tuple[int, ...], lps: np.ndarray) -> ScanFrame:
    """The volume's own grid: columns, rows and slices are its three axes; ``lps`` maps their indices to mm."""
    columns, rows, n = shape
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    handed = 1.0 if np.linalg.det(lps[:3, :3]) > 0 else -1.0
    return ScanFrame(
        scan_id=scan_id,
        path=path,
        size=(rows, columns),
        spacing=(float(spacing[1]), float(spacing[0])),
        orientation=(lps[:3, :2] / spacing[:2]).T,
        origins=lps[:3, 3] + np.arange(n)[:, None] * lps[:3, 2],
        sop_uids=("",) * n,
        frame_numbers=tuple(range(1, n + 1)),
        thickness=handed * float(spacing[2]),
    )


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

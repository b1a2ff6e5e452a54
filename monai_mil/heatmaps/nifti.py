"""The scores of a scan, and their foreground, as NIfTI volumes on the scan's own grid."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from monai_mil.errors import ScanReadError
from monai_mil.files import replacing
from monai_mil.heatmaps.scan_heatmap import ScanHeatmap
from monai_mil.scans import ScanFrame

_MOST_SLICES = 32767


def export_nifti(heatmap: ScanHeatmap, path: str | Path, *, smooth: bool = False) -> Path:
    """Write the scores as float32 voxels on the grid of the scan: columns, rows, slices, with the scan's affine.

    Every voxel of a slice has the slice's score, or that of the cell it lies in; outside the lungs, where they are
    known, cells are 0. Slices are written one by one, so memory does not grow with their number, and no score is
    rounded. Unevenly spaced slices go on a regular grid with the smallest of their spacings, in which each layer has
    the scores of the nearest slice; the header's ``descrip`` says so. The file is the same for the same heatmap, byte
    for byte.

    Args:
        heatmap: the scores.
        path: the file, ``.nii.gz`` or, not compressed, ``.nii``.
        smooth: interpolate between the cells of a slice (see :meth:`ScanHeatmap.slice_map`).

    Raises:
        ScanReadError: the slices do not lie on one straight line, or are too many for NIfTI's grid.
    """
    limits = (float(heatmap.scores.min()), float(heatmap.scores.max()))
    return _write(heatmap, Path(path), "<f4", limits, lambda index: heatmap.slice_map(index, smooth=smooth))


def export_nifti_mask(heatmap: ScanHeatmap, path: str | Path) -> Path:
    """Write where the smooth map lies above the heatmap's threshold as uint8 voxels: 1 there, 0 elsewhere.

    The grid is :func:`export_nifti`'s.

    Args:
        heatmap: the scores, with a threshold.
        path: the file, ``.nii.gz`` or, not compressed, ``.nii``.

    Raises:
        ScanReadError: as :func:`export_nifti`.
        ValueError: the heatmap has no threshold.
    """
    return _write(heatmap, Path(path), "|u1", (0, 1), heatmap.foreground)


def _write(
    heatmap: ScanHeatmap,
    path: Path,
    kind: str,
    limits: tuple[float, float],
    voxels_of: Callable[[int], np.ndarray],
) -> Path:
    """Write voxels of one type, ``[rows, columns]`` a slice, between ``limits``."""
    import nibabel

    frame = heatmap.frame
    layers, affine = _layers(frame)
    if len(layers) > _MOST_SLICES:
        raise ScanReadError(
            f"scan '{frame.scan_id}': a regular grid of its slices has {len(layers)} layers, NIfTI holds at most "
            f"{_MOST_SLICES}; resample the scan"
        )
    rows, columns = frame.size
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.dtype(kind))
    header.set_data_shape((columns, rows, len(layers)))
    header.set_xyzt_units("mm")
    header.set_sform(affine, code="scanner")
    if abs(frame.tilt_degrees) < 0.01:  # a qform cannot hold the shear of a tilted gantry
        header.set_qform(affine, code="scanner")
    header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
    header["cal_min"], header["cal_max"] = limits
    header["vox_offset"] = header.single_vox_offset
    header["descrip"] = _description(heatmap, regular=frame.is_regular).encode("ascii", "replace")[:79]
    with replacing(path) as temporary, _opened(temporary, compress=path.suffix == ".gz") as file:
        file.write(header.binaryblock + bytes(header.single_vox_offset - len(header.binaryblock)))
        written, voxels = -1, b""
        for index in layers.tolist():
            if index != written:
                written, voxels = index, np.ascontiguousarray(voxels_of(index), kind).tobytes()
            file.write(voxels)
    return path


def _layers(frame: ScanFrame) -> tuple[np.ndarray, np.ndarray]:
    """The slice of every layer of the volume, int ``[m]``, and the volume's affine (RAS+ mm)."""
    if frame.is_regular:
        return np.arange(len(frame)), frame.affine
    positions = frame.positions_mm
    step = float(np.diff(positions).min())
    at = positions[0] + step * np.arange(round((positions[-1] - positions[0]) / step) + 1)
    nearest = np.searchsorted((positions[1:] + positions[:-1]) / 2, at)
    # along the line from slice to slice, not along the normal: with a tilted gantry each slice keeps its own place
    drift = (frame.origins[-1] - frame.origins[0]) / (positions[-1] - positions[0])
    if not frame.is_straight:
        raise ScanReadError(
            f"scan '{frame.scan_id}': its slices lie up to {frame.off_line_mm:.1f} mm beside one straight line, so no "
            "grid holds them; resample the scan"
        )
    affine = frame.slice_affine(0)
    affine[:3, 2] = drift * step * (-1, -1, 1)
    return nearest, affine


def _description(heatmap: ScanHeatmap, *, regular: bool) -> str:
    return heatmap.name if regular else f"nearest slice of uneven spacing; {heatmap.name}"


@contextmanager
def _opened(path: Path, *, compress: bool) -> Iterator[IO[bytes]]:
    with path.open("wb") as raw:
        if not compress:
            yield raw
            return
        with gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=raw, mtime=0) as file:
            yield file  # type: ignore[misc]

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
from monai_mil.heatmaps.nifti_grid import NiftiGrid
from monai_mil.heatmaps.scan_heatmap import ScanHeatmap
from monai_mil.scans import ScanFrame

_MOST_SLICES = 32767


def export_nifti(heatmap: ScanHeatmap, path: str | Path, *, smooth: bool = False) -> Path:
    """Write the scores as float32 voxels on the source's own grid: its columns, rows and slices, with its affine.

    Every voxel of a slice has the slice's score, or that of the cell it lies in; outside the lungs, where they are
    known, cells are 0. Slices are written one by one, so memory does not grow with their number unless the source's
    slices are none of the patient's axial ones, and no score is rounded. The file is the same for the same heatmap,
    byte for byte.

    The sform is exact; the qform, by which ITK's programs go, places no voxel 0.1 mm or a tenth of a pixel beside it.
    Where no qform can, as with a tilted gantry, the volume is resampled, within each slice, to a grid with right
    angles. Unevenly spaced slices go on a regular grid: of as many layers where they lie off it as rounded positions
    do, else with the smallest of their spacings, in which each layer has the scores of the nearest slice. The header's
    ``descrip`` says so.

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
    grid = NiftiGrid.of(heatmap.frame)
    if len(grid.slices) > _MOST_SLICES:
        raise ScanReadError(
            f"scan '{heatmap.frame.scan_id}': a regular grid of its slices has {len(grid.slices)} layers, NIfTI holds "
            f"at most {_MOST_SLICES}; resample the scan"
        )
    header = _header(grid, kind, limits, heatmap.name)
    slice_of = voxels_of if grid.frame is heatmap.frame else _source_slices(heatmap.frame, kind, voxels_of)
    with replacing(path) as temporary, _opened(temporary, compress=path.suffix == ".gz") as file:
        file.write(header)
        written, voxels = -1, np.empty(0)
        for layer, index in enumerate(grid.slices.tolist()):
            if index != written:
                written, voxels = index, slice_of(index)
            values = grid.resampled(voxels, layer)
            values = values if kind == "<f4" else np.rint(values)
            file.write(np.ascontiguousarray(values, kind).tobytes())
    return path


def _header(grid: NiftiGrid, kind: str, limits: tuple[float, float], name: str) -> bytes:
    import nibabel

    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.dtype(kind))
    header.set_data_shape(grid.shape)
    header.set_xyzt_units("mm")
    header.set_qform(grid.orthogonal, code="scanner")
    header.set_sform(grid.affine, code="scanner")
    header["cal_min"], header["cal_max"] = limits
    header["vox_offset"] = header.single_vox_offset
    header["descrip"] = "; ".join([*grid.notes, name]).encode("ascii", "replace")[:79]
    return bytes(header.binaryblock) + bytes(header.single_vox_offset - len(header.binaryblock))


def _source_slices(frame: ScanFrame, kind: str, voxels_of: Callable[[int], np.ndarray]) -> Callable[[int], np.ndarray]:
    """What gives the source's slices ``[rows, columns]`` of the values of the patient's."""
    turn = frame.turn
    assert turn is not None
    if turn.keeps_slices:
        last = len(frame) - 1
        return lambda index: turn.undo(voxels_of(last - index if turn.flips[0] else index)[None])[0]
    volume = np.empty(frame.shape, kind)
    for index in range(len(frame)):
        volume[index] = voxels_of(index)
    return turn.undo(volume).__getitem__


@contextmanager
def _opened(path: Path, *, compress: bool) -> Iterator[IO[bytes]]:
    with path.open("wb") as raw:
        if not compress:
            yield raw
            return
        with gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=raw, mtime=0) as file:
            yield file  # type: ignore[misc]

"""Volumes that were made of a DICOM series which was found too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_mil.errors import ScanReadError
from monai_mil.scans.frame import LPS_TO_RAS
from monai_mil.scans.pixels import read_hu
from monai_mil.scans.series import choose_series
from monai_mil.scans.volume import load_volume, quiet_nibabel, volume_suffix

if TYPE_CHECKING:
    from monai_mil.scans.dicom import DicomSlice
    from monai_mil.scans.find import FoundScan
    from monai_mil.scans.scan import Scan

_SAME_SHARE = 0.99
_SAME_HU = 1.0


def without_twins(root: Path, scans: Sequence[FoundScan]) -> tuple[list[FoundScan], list[str]]:
    """The scans without the volumes that show the same as a series in their folder or one beside, above or below it.

    That they do is proven by the pixels of a slice. Folders directly below ``root`` lie beside each other in this sense
    only where there are no more than two of them: else they are a cohort's, each of somebody else.

    Returns:
        The scans that are left, and a sentence for each volume that is not.
    """
    volumes = [scan for scan in scans if volume_suffix(scan.path) is not None and scan.path.is_file()]
    others = [scan for scan in scans if scan not in volumes]
    tops = {scan.path.relative_to(root).parts[:1] for scan in scans if scan.path.is_relative_to(root)}
    look_at = cache(_look_at)
    twins: dict[FoundScan, str] = {}
    for volume in volumes:
        near = [
            series
            for series in others
            if _are_near(volume.path, series.path, root) or (len(tops) <= 2 and root in series.path.parents)
        ]
        shape = _shape(volume.path) if near else None
        known = {series: one for series in near if (one := look_at(series)) is not None}
        fitting = {series: piece for series, (size, piece) in known.items() if shape in (None, size)}
        twin = _twin_of(volume.path, fitting) if fitting else None
        if twin is not None:
            twins[volume] = f"scan '{volume.path}': made of the series in '{twin.path}', which is read in its place"
    return [scan for scan in scans if scan not in twins], list(twins.values())


def _are_near(volume: Path, series: Path, root: Path) -> bool:
    folder, place = (series if series.is_dir() else series.parent), volume.parent
    if folder in (place, *place.parents) or place in folder.parents:
        return True
    return folder.parent == place.parent != root


def _look_at(series: FoundScan) -> tuple[list[int], DicomSlice] | None:
    """The numbers of slices, rows and columns, ascending, and one slice; None of what cannot be read, told then."""
    if not series.path.is_dir():
        return None
    try:
        slices = choose_series(series.path, series.series_uid).slices
    except ScanReadError:
        return None
    piece = slices[len(slices) // 2]
    return sorted([len(slices), piece.file.rows, piece.file.columns]), piece


def _shape(path: Path) -> list[int] | None:
    """The lengths of a NIfTI file's axes, ascending; None where its header does not say."""
    import nibabel

    try:
        with quiet_nibabel():
            image: Any = nibabel.load(path)
            return sorted(map(int, image.shape[:3]))
    except Exception:  # nibabel raises whatever it meets; the file is told where it is read
        return None


def _twin_of(path: Path, series: Mapping[FoundScan, DicomSlice]) -> FoundScan | None:
    try:
        volume = load_volume(path)
        return next((one for one, piece in series.items() if _is_same(volume, piece)), None)
    except ScanReadError:  # told when it is read
        return None


def _is_same(volume: Scan, piece: DicomSlice) -> bool:
    """Whether the volume has the values of a slice where the slice lies."""
    if piece.origin is None or piece.orientation is None or piece.spacing is None:
        return False
    hu = read_hu([piece])[0][0]
    row, column = np.indices(hu.shape)
    points = (
        piece.origin
        + column[..., None] * piece.spacing[1] * piece.orientation[0]
        + row[..., None] * piece.spacing[0] * piece.orientation[1]
    )
    to_index = np.linalg.inv(volume.affine) @ LPS_TO_RAS
    c, r, s = np.moveaxis(np.rint(points @ to_index[:3, :3].T + to_index[:3, 3]).astype(int), -1, 0)
    n, rows, columns = volume.hu.shape
    inside = (s >= 0) & (s < n) & (r >= 0) & (r < rows) & (c >= 0) & (c < columns)
    if inside.mean() < _SAME_SHARE:
        return False
    same = np.abs(volume.hu[s[inside], r[inside], c[inside]].astype(float) - hu[inside]) <= _SAME_HU
    return bool(same.mean() >= _SAME_SHARE and np.ptp(hu) > _SAME_HU)

"""Slices become one ordered stack: orientation, order, duplicates, gaps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from monai_mil.errors import ScanReadError
from monai_mil.scans.dicom import DicomSlice

_AXIAL = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
_SAME_DIRECTION = 1e-3
_SAME_PLACE_MM = 0.01
_SAME_SPACING_MM = 5e-4
_GAP = 1.8


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices in ascending order along their normal; fields as in :class:`ScanFrame`."""

    slices: tuple[DicomSlice, ...]
    size: tuple[int, int]
    spacing: tuple[float, float]
    orientation: np.ndarray
    origins: np.ndarray
    remarks: tuple[str, ...]


def stack_slices(
    name: str, slices: list[DicomSlice], same_pixels: Callable[[DicomSlice, DicomSlice], bool], allow_gaps: bool
) -> Stack:
    """Order the slices of one series.

    Args:
        name: what errors call the scan.
        slices: at least one.
        same_pixels: whether two slices hold the same image.
        allow_gaps: accept missing slices, with a remark.

    Raises:
        ScanReadError: the slices are no single stack; the message lists what was found and what to do.
    """
    remarks: list[str] = []
    size = _one_size(name, slices)
    orientation = _one_orientation(name, slices, remarks)
    spacing = _one_spacing(name, slices, remarks)
    origins = _origins(name, slices, orientation, remarks)
    order = np.argsort(origins @ np.cross(*orientation), kind="stable")
    slices, origins = [slices[i] for i in order], origins[order]
    kept = _without_duplicates(name, slices, origins @ np.cross(*orientation), same_pixels, remarks)
    slices, origins = [slices[i] for i in kept], origins[kept]
    _check_gaps(name, slices, origins @ np.cross(*orientation), allow_gaps, remarks)
    return Stack(tuple(slices), size, spacing, orientation, origins, tuple(remarks))


def missing_slices(positions: np.ndarray) -> list[int]:
    """The distances that look like missing slices: ``i`` is the one between slices ``i`` and ``i + 1``.

    A distance is a gap when it is at least 1.8 times distances on both of its sides that are no rarer than it is, or
    when it stands alone at an end and others are that much smaller. So two zones of constant spacing have no gap.

    Args:
        positions: ascending, ``[n]``, mm.
    """
    distances = np.diff(positions)
    equal = np.abs(distances[:, None] - distances) <= 0.05 * np.maximum(distances[:, None], distances)
    counts = equal.sum(1)
    gaps = []
    for i, distance in enumerate(distances):
        smaller = (distances * _GAP <= distance) & (counts >= counts[i])
        before, after = smaller[:i].any(), smaller[i + 1 :].any()
        alone_first = i == 0 and after and not equal[0, 1]
        alone_last = i == len(distances) - 1 and before and not equal[i, i - 1]
        if (before and after) or alone_first or alone_last:
            gaps.append(i)
    return gaps


def _one_size(name: str, slices: list[DicomSlice]) -> tuple[int, int]:
    sizes = Counter((piece.file.rows, piece.file.columns) for piece in slices)
    if len(sizes) > 1:
        found = _counted((f"{rows} x {columns}", count) for (rows, columns), count in sizes.most_common())
        rare = [piece for piece in slices if (piece.file.rows, piece.file.columns) == sizes.most_common()[-1][0]]
        raise ScanReadError(
            f"scan '{name}': slices of several sizes: {found}; keep one kind in the folder (the rarest: {_names(rare)})"
        )
    return next(iter(sizes))


def _one_orientation(name: str, slices: list[DicomSlice], remarks: list[str]) -> np.ndarray:
    known = [piece for piece in slices if piece.orientation is not None]
    if not known:
        remarks.append("no ImageOrientationPatient: taken as axial, head first, supine")
        return _AXIAL
    if len(known) < len(slices):
        raise ScanReadError(
            f"scan '{name}': {len(slices) - len(known)} of {len(slices)} slices have no ImageOrientationPatient, "
            f"{_names(piece for piece in slices if piece.orientation is None)}; remove them from the folder"
        )
    groups: list[tuple[np.ndarray, list[DicomSlice]]] = []
    for piece in known:
        orientation = _checked_orientation(name, piece)
        for first, members in groups:
            if np.abs(first - orientation).max() <= _SAME_DIRECTION:
                members.append(piece)
                break
        else:
            groups.append((orientation, [piece]))
    if len(groups) > 1:
        found = _counted((_plane(first), len(members)) for first, members in groups)
        rare = min(groups, key=lambda group: len(group[1]))[1]
        raise ScanReadError(
            f"scan '{name}': slices of {len(groups)} orientations in one series: {found}; "
            f"keep one kind in the folder (the rarest: {_names(rare)})"
        )
    return groups[0][0]


def _checked_orientation(name: str, piece: DicomSlice) -> np.ndarray:
    orientation = piece.orientation
    assert orientation is not None
    lengths = np.linalg.norm(orientation, axis=1)
    if not (np.isfinite(orientation).all() and np.abs(lengths - 1).max() < 0.01):
        raise ScanReadError(f"scan '{name}': ImageOrientationPatient of {piece.name} is no pair of unit vectors")
    orientation = orientation / lengths[:, None]
    if abs(orientation[0] @ orientation[1]) > 0.01:
        raise ScanReadError(f"scan '{name}': rows and columns of {piece.name} are not perpendicular")
    return orientation


def _one_spacing(name: str, slices: list[DicomSlice], remarks: list[str]) -> tuple[float, float]:
    known = [piece.spacing for piece in slices if piece.spacing is not None]
    if not known:
        remarks.append("no PixelSpacing: pixels taken as 1 x 1 mm")
        return 1.0, 1.0
    for piece in slices:
        if piece.spacing is not None and not (np.isfinite(piece.spacing).all() and (piece.spacing > 0).all()):
            raise ScanReadError(f"scan '{name}': PixelSpacing of {piece.name} is not a pair of positive numbers")
    if len(known) < len(slices) or np.ptp(known, axis=0).max() > _SAME_SPACING_MM:
        spacings = Counter("none" if piece.spacing is None else _by(piece.spacing) for piece in slices)
        found = _counted((f"{spacing} mm", count) for spacing, count in spacings.most_common())
        raise ScanReadError(f"scan '{name}': several PixelSpacing in one series: {found}; keep one kind in the folder")
    return float(known[0][0]), float(known[0][1])


def _origins(name: str, slices: list[DicomSlice], orientation: np.ndarray, remarks: list[str]) -> np.ndarray:
    known = [piece for piece in slices if piece.origin is not None]
    if len(known) == len(slices):
        origins = np.stack([piece.origin for piece in known])  # type: ignore[misc]
        if not np.isfinite(origins).all():
            wrong = (piece for piece, origin in zip(slices, origins, strict=True) if not np.isfinite(origin).all())
            raise ScanReadError(f"scan '{name}': ImagePositionPatient is not finite in {_names(wrong)}")
        return origins
    if known:
        raise ScanReadError(
            f"scan '{name}': {len(slices) - len(known)} of {len(slices)} slices have no ImagePositionPatient, "
            f"{_names(piece for piece in slices if piece.origin is None)}; remove them from the folder"
        )
    return _positions_without_origin(name, slices, remarks)[:, None] * np.cross(*orientation)


def _positions_without_origin(name: str, slices: list[DicomSlice], remarks: list[str]) -> np.ndarray:
    locations = np.array([np.nan if piece.location is None else piece.location for piece in slices])
    if np.isfinite(locations).all() and len(set(locations)) == len(slices):
        remarks.append("no ImagePositionPatient: ordered by SliceLocation; in-plane position and direction unknown")
        return locations
    if len(slices) == 1:
        remarks.append("no ImagePositionPatient: the position in the patient is unknown")
        return np.zeros(1)
    numbers = [(piece.file.instance_number or 0, piece.frame) for piece in slices]
    if len(set(numbers)) < len(slices):
        raise ScanReadError(
            f"scan '{name}': its slices cannot be ordered: no ImagePositionPatient, and SliceLocation and "
            f"InstanceNumber are missing or repeated; export the series again"
        )
    step = next((mm for piece in slices for mm in (piece.distance, piece.thickness) if mm), None)
    remarks.append(
        "no ImagePositionPatient: ordered by InstanceNumber, "
        + (f"taken as {step:g} mm apart" if step else "distance unknown, taken as 1 mm")
        + "; position and direction unknown"
    )
    ranks = np.array([sorted(numbers).index(number) for number in numbers])
    return ranks * float(step or 1.0)


def _without_duplicates(
    name: str,
    slices: list[DicomSlice],
    positions: np.ndarray,
    same_pixels: Callable[[DicomSlice, DicomSlice], bool],
    remarks: list[str],
) -> list[int]:
    kept: list[int] = []
    different: list[int] = []
    for i, position in enumerate(positions):
        if kept and position - positions[kept[-1]] < _SAME_PLACE_MM:
            if not same_pixels(slices[kept[-1]], slices[i]):
                different.append(i)
        else:
            kept.append(i)
    if different:
        acquisitions = Counter(piece.acquisition for piece in slices)
        found = _counted((f"acquisition {'unnumbered' if a is None else a}", n) for a, n in acquisitions.most_common(8))
        shown = ", ".join(f"{positions[i]:g}" for i in different[:5])
        raise ScanReadError(
            f"scan '{name}': different images at the same place ({len(different)} times, first at {shown} mm along "
            f"the normal): several phases, times or reconstructions in one series; {found}; "
            f"put the files of one of them into a folder of its own"
        )
    if len(kept) < len(slices):
        remarks.append(f"{len(slices) - len(kept)} slices stored twice: the copies were left out")
    return kept


def _check_gaps(
    name: str, slices: list[DicomSlice], positions: np.ndarray, allow_gaps: bool, remarks: list[str]
) -> None:
    gaps = missing_slices(positions)
    if not gaps:
        return
    where = ", ".join(f"{positions[i]:g} to {positions[i + 1]:g} mm" for i in gaps[:5])
    where += f" and {len(gaps) - 5} more" if len(gaps) > 5 else ""
    if not allow_gaps:
        usual = float(np.median(np.diff(positions)))
        raise ScanReadError(
            f"scan '{name}': slices are missing at {len(gaps)} places: {where} along the normal "
            f"(after {_names(slices[i] for i in gaps)}; {usual:.3g} mm is usual); "
            f"fetch the missing files, or pass allow_gaps=True (--allow-gaps) to go on without them"
        )
    remarks.append(f"slices are missing at {len(gaps)} places: {where}")


def _by(spacing: np.ndarray) -> str:
    return f"{spacing[0]:g} x {spacing[1]:g}"


def _plane(orientation: np.ndarray) -> str:
    axis = int(np.abs(np.cross(*orientation)).argmax())
    return f"{('sagittal', 'coronal', 'axial')[axis]} ({'/'.join(f'{value:.3g}' for value in orientation.ravel())})"


def _counted(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{count} of {what}" for what, count in counts)


def _names(slices: Iterable[DicomSlice]) -> str:
    names = [piece.name for piece in slices]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

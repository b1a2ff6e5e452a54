"""Where the lungs are."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from monai_mil.errors import ScanReadError, SettingsError
from monai_mil.scans.scan import Scan

_AIR_HU = -320
"""Between the air-filled lung and soft tissue (Hu et al. 2001, IEEE TMI, find about this by iteration)."""
_LUNG_HU = (-950, -500)
_LUNG_SHARE = 0.5
"""At least so much of a lung's air is mixed with tissue; bowel gas, sinuses and a windpipe are purer or mostly edge."""
_SMALLEST_ML = 15.0
_SECOND_LUNG = 0.08
_CLOSING_MM = 8.0
_SAME_MM = 1e-5
"""Distances that differ by the rounding of spacings in a file are the same."""
_MOST_VOXELS = 1 << 25
"""Labels and distances take dozens of bytes a voxel: a thousand slices of 512 x 512 would need 10 GB."""

LungMethod = Literal["threshold", "lungmask"]


def lung_mask(scan: Scan, method: LungMethod = "threshold") -> np.ndarray:
    """The lungs of a scan, vessels and nodules in them included.

    Args:
        scan: any CT of the chest, or a part of it.
        method: ``threshold`` takes the air inside the body, drops what is connected to the air around it and gas in
            the bowel, keeps the two largest bodies and closes them over vessels and nodules. Of scans beyond
            33 million voxels it looks at every second voxel, or fewer, along their finest axes.
            ``lungmask`` is the network of Hofmanninger et al. 2020, which also finds diseased lung.

    Returns:
        bool ``[n, rows, columns]``, ``scan.frame.to_source`` of which lies on the source's own grid; all False where
        there is no lung. ``threshold`` does not find consolidated lung nor the worst emphysema, and keeps the windpipe
        with the lungs it leads to.

    Raises:
        ScanReadError: the package of ``lungmask`` is missing; says what to install.
        SettingsError: an unknown method.
    """
    if method == "threshold":
        return _threshold(scan)
    if method == "lungmask":
        return _network(scan)
    raise SettingsError(f"lung mask: method '{method}' is none of threshold, lungmask")


def _threshold(scan: Scan) -> np.ndarray:
    spacing = _spacing(scan)
    steps = _steps(scan.hu.shape, spacing)
    coarse = scan.hu[tuple(slice(None, None, step) for step in steps)]
    mask = _find(coarse, (spacing[0] * steps[0], spacing[1] * steps[1], spacing[2] * steps[2]))
    nearest = (
        np.minimum((np.arange(fine) + step // 2) // step, few - 1)
        for fine, step, few in zip(scan.hu.shape, steps, mask.shape, strict=True)
    )
    return mask if max(steps) == 1 else mask[np.ix_(*nearest)]


def _steps(shape: tuple[int, ...], spacing: tuple[float, float, float]) -> list[int]:
    """Every how many voxels are looked at along each axis, so that they are not too many; the finest axes first."""
    steps = [1, 1, 1]
    while math.prod(-(-length // step) for length, step in zip(shape, steps, strict=True)) > _MOST_VOXELS:
        steps[int(np.argmin(np.array(spacing) * steps))] += 1
    return steps


def _find(hu: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    from scipy.ndimage import find_objects
    from scipy.ndimage import label as connected

    labels, _ = connected(hu < _AIR_HU)
    boxes = find_objects(labels)
    outside = np.unique(np.concatenate([labels[:, edge].ravel() for edge in (0, -1)]))
    outside = np.union1d(outside, np.concatenate([labels[:, :, edge].ravel() for edge in (0, -1)]))
    voxel_ml = float(np.prod(spacing)) / 1000
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    sizes[outside] = 0
    lungs: list[int] = []
    for label in np.argsort(-sizes)[:12]:
        large = sizes[label] * voxel_ml >= _SMALLEST_ML and (not lungs or sizes[label] > _SECOND_LUNG * sizes[lungs[0]])
        if large and len(lungs) < 2 and _is_lung(hu[boxes[label - 1]][labels[boxes[label - 1]] == label]):
            lungs.append(int(label))
    mask = np.isin(labels, lungs)
    if lungs:
        box = _around(mask, spacing)
        mask[box] = _close(mask[box], spacing)
    return mask


def _is_lung(hu: np.ndarray) -> bool:
    low, high = _LUNG_HU
    return bool(((hu > low) & (hu < high)).mean() >= _LUNG_SHARE)


def _spacing(scan: Scan) -> tuple[float, float, float]:
    """Mm between slices, rows and columns; of uneven slices the middle value."""
    steps = np.diff(scan.frame.positions_mm)
    return (float(np.median(steps)) if len(steps) else 1.0, *scan.frame.spacing)


def _around(mask: np.ndarray, spacing: tuple[float, float, float]) -> tuple[slice, ...]:
    """The box that holds the mask and as much around it as closing may reach."""
    box = []
    for axis, mm in enumerate(spacing):
        margin = math.ceil(_CLOSING_MM / mm) + 1
        along = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
        box.append(slice(max(0, int(along[0]) - margin), int(along[-1]) + margin + 1))
    return tuple(box)


def _close(mask: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """Grow by ``_CLOSING_MM``, shrink by as much, fill what is enclosed; distances are in mm in every direction."""
    from scipy.ndimage import binary_fill_holes

    grown = _near(mask, spacing)
    return np.asarray(binary_fill_holes(mask | ~_near(~grown, spacing)))


def _near(mask: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """Which voxels have one of ``mask`` within ``_CLOSING_MM``: a dilation by a ball, slice by slice of the ball."""
    import cv2

    reach = _CLOSING_MM + _SAME_MM
    rows, columns = (np.arange(-int(reach / mm), int(reach / mm) + 1) * mm for mm in spacing[1:])
    in_plane = rows[:, None] ** 2 + columns**2
    near = np.zeros(mask.shape, np.uint8)
    for offset in range(int(reach / spacing[0]) + 1):
        disc = (in_plane <= reach**2 - (offset * spacing[0]) ** 2).astype(np.uint8)
        for index in np.flatnonzero(mask.any(axis=(1, 2))).tolist():
            grown = cv2.dilate(mask[index].astype(np.uint8), disc)
            for place in {index - offset, index + offset} & set(range(len(mask))):
                np.maximum(near[place], grown, out=near[place])
    return near.astype(bool)


def _network(scan: Scan) -> np.ndarray:
    try:
        from lungmask import LMInferer
    except ImportError as error:
        raise ScanReadError(
            f"scan '{scan.scan_id}': method 'lungmask' needs its package ({error}); install it with "
            "pip install lungmask, or take method 'threshold'"
        ) from error
    # The network expects slices from the feet to the head with the patient's back at the bottom.
    return np.asarray(LMInferer().apply(scan.hu)) > 0

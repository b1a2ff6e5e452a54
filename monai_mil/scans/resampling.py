"""A scan on another grid."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np

from monai_mil.errors import ScanReadError, SettingsError
from monai_mil.scans.scan import Scan


def import_itk(purpose: str) -> ModuleType:
    """ITK, or an error that says what to install.

    Raises:
        ScanReadError: it is absent.
    """
    try:
        import itk
    except ImportError as error:
        raise ScanReadError(f"{purpose} needs ITK ({error}); install it with pip install 'monai-mil[itk]'") from error
    return itk


def resample(scan: Scan, spacing_mm: float | tuple[float, float, float]) -> Scan:
    """The scan at another spacing, interpolated linearly along its own axes.

    The first voxel stays where it is, and so do the directions: the step of a scan with gantry tilt stays oblique to
    its slices. Unevenly spaced slices become even ones.

    Args:
        scan: any.
        spacing_mm: between slices (along their normal), rows and columns; one number for all three.

    Returns:
        Float32 HU on the new grid, without SOPInstanceUIDs, since no instance holds these slices.

    Raises:
        ScanReadError: ITK is missing, or the slices do not lie along a straight line.
        SettingsError: the spacing is not above 0.
    """
    itk = import_itk("resampling")
    target = np.broadcast_to(np.asarray(spacing_mm, float), 3)
    if not (np.isfinite(target).all() and (target > 0).all()):
        raise SettingsError(f"spacing {spacing_mm}: give mm above 0, one number or (slices, rows, columns)")
    even = scan if scan.frame.is_regular else _even(scan)
    steps = np.array([_slice_step(even), *even.frame.spacing])
    size = np.maximum(np.floor((np.array(even.hu.shape) - 1) * steps / target + 1e-6).astype(int) + 1, 1)
    hu = _interpolate(itk, even.hu, steps, target, size)
    along = (even.frame.origins[-1] - even.frame.origins[0]) / max(len(even) - 1, 1) / steps[0]
    frame = replace(
        even.frame,
        size=(int(size[1]), int(size[2])),
        spacing=(float(target[1]), float(target[2])),
        origins=even.frame.origins[0] + np.arange(size[0])[:, None] * along * target[0],
        sop_uids=("",) * int(size[0]),
        frame_numbers=tuple(range(1, int(size[0]) + 1)),
        turned_from=None,
        turn=None,
    )
    words = " x ".join(f"{value:g}" for value in target)
    return replace(
        scan, frame=frame, hu=hu, remarks=(*scan.remarks, f"resampled to {words} mm (slices, rows, columns)")
    )


def _slice_step(scan: Scan) -> float:
    """Mm from slice to slice along the normal."""
    positions = scan.frame.positions_mm
    return float((positions[-1] - positions[0]) / (len(scan) - 1)) if len(scan) > 1 else 1.0


def _even(scan: Scan) -> Scan:
    """Slices at the smallest distance that occurs, each between its two neighbours in the scan."""
    positions = scan.frame.positions_mm
    step = float(np.diff(positions).min())
    wanted = np.arange(positions[0], positions[-1] + step * 1e-3, step)
    below = np.clip(np.searchsorted(positions, wanted, side="right") - 1, 0, len(scan) - 2)
    share = ((wanted - positions[below]) / (positions[below + 1] - positions[below]))[:, None]
    origins = scan.frame.origins[below] * (1 - share) + scan.frame.origins[below + 1] * share
    n = len(wanted)
    frame = replace(
        scan.frame,
        origins=origins,
        sop_uids=("",) * n,
        frame_numbers=tuple(range(1, n + 1)),
        turned_from=None,
        turn=None,
    )
    if not frame.is_regular:
        raise ScanReadError(
            f"scan '{scan.scan_id}': its slices do not lie along a straight line, so they cannot be put on one grid"
        )
    hu = np.stack(
        [
            scan.hu[low] * np.float32(1 - part) + scan.hu[low + 1] * np.float32(part)
            for low, part in zip(below, share[:, 0], strict=True)
        ]
    )
    return replace(scan, frame=frame, hu=hu)


def _interpolate(itk: Any, hu: np.ndarray, steps: np.ndarray, target: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Linear interpolation of a volume whose axes ITK takes for orthogonal; along them a shear changes nothing."""
    image = itk.image_from_array(np.ascontiguousarray(hu, np.float32))
    image.SetSpacing([float(value) for value in steps[::-1]])
    resampled = itk.resample_image_filter(
        image,
        interpolator=itk.LinearInterpolateImageFunction.New(image),
        size=[int(value) for value in size[::-1]],
        output_spacing=[float(value) for value in target[::-1]],
        output_origin=image.GetOrigin(),
        output_direction=image.GetDirection(),
        default_pixel_value=-1024.0,
    )
    return np.array(itk.array_from_image(resampled), np.float32)

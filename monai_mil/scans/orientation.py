"""One orientation for every scan: columns run to the patient's left, rows to the back, slices to the head."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from monai_mil.errors import ScanReadError
from monai_mil.scans.frame import ScanFrame
from monai_mil.scans.scan import Scan
from monai_mil.scans.turn import Turn

ORIENTATION = "LPS"
"""Where columns, rows and slices of a scan run in the patient, by the nearest axis."""

_PLANES = ("axial", "coronal", "sagittal")
_PLAINLY_THICKER = 1.5
_STRONGLY_OBLIQUE = 30.0
_SQUARE = 1.01
_RIGHT_ANGLE = 0.01


def oriented(scan: Scan) -> Scan:
    """The scan with its axes permuted and mirrored to the nearest of the patient's, never resampled.

    A scan that lies so already is returned as it is. The frame of another one holds the source's, and the way back
    (see :meth:`ScanFrame.to_source`).

    Raises:
        ScanReadError: the axial slices would have no right angles.
    """
    turn = scan.frame.lps_turn()
    if turn.keeps_all:
        return scan
    return replace(scan, frame=turned(scan.frame, turn), hu=np.ascontiguousarray(turn.apply(scan.hu)))


def turned(frame: ScanFrame, turn: Turn) -> ScanFrame:
    """The frame of the turned slices; these name no instance where they are not the source's.

    Raises:
        ScanReadError: the turned slices have no right angles.
    """
    axes, reverse = list(turn.axes), slice(None, None, -1 if turn.flips[0] else 1)
    steps = frame.steps[axes] * np.where(turn.flips, -1.0, 1.0)[:, None]
    spacing = np.linalg.norm(steps, axis=1)
    directions = steps / spacing[:, None]
    if abs(directions[1] @ directions[2]) > _RIGHT_ANGLE:
        raise ScanReadError(
            f"scan '{frame.path or frame.scan_id}': its grid is sheared within the slices; resample it to right angles"
        )
    if turn.keeps_all:
        return frame
    n, rows, columns = (frame.shape[axis] for axis in axes)
    # the first pixel of each slice; which slice comes first is said last
    mirrored = [axis for axis, flip in zip(axes[1:], turn.flips[1:], strict=True) if flip]
    corner = sum((frame.steps[axis] * (frame.shape[axis] - 1) for axis in mirrored), np.zeros(3))
    if turn.keeps_slices:
        origins, uids, numbers = frame.origins + corner, frame.sop_uids, frame.frame_numbers
    else:
        origins = frame.origins[0] + corner + np.arange(n)[:, None] * frame.steps[axes[0]]
        uids, numbers = ("",) * n, tuple(range(1, n + 1))
    return replace(
        frame,
        size=(rows, columns),
        spacing=(float(spacing[1]), float(spacing[2])),
        orientation=directions[[2, 1]],
        origins=origins[reverse],
        sop_uids=uids[reverse],
        frame_numbers=numbers[reverse],
        thickness=abs(frame.thickness) if turn.keeps_slices else float(spacing[0]),
        turned_from=replace(frame, scan_id="", path=None),
        turn=turn,
    )


def orientation_remarks(frame: ScanFrame) -> list[str]:
    """What is to be said of the slices the network sees: of a frame in the patient's orientation."""
    remarks = []
    plane = _plane(frame)
    if plane:
        remarks.append(f"comes in {plane} slices: cut into {len(frame)} axial ones, without resampling")
    steps = frame.steps[::-1]
    off = math.degrees(math.acos(np.clip((np.diagonal(steps) / np.linalg.norm(steps, axis=1)).min(), -1, 1)))
    if off > _STRONGLY_OBLIQUE:
        remarks.append(f"strongly oblique: its axes lie up to {off:.0f} degrees beside the patient's")
    row, column = frame.spacing
    if max(row, column) > _SQUARE * min(row, column):
        remarks.append(
            f"pixels are not square ({row:.3g} mm between rows, {column:.3g} mm between columns): the network sees the "
            "slices stretched"
        )
    return remarks


def _plane(frame: ScanFrame) -> str:
    """Coronal or sagittal where the source's slices are, or the voxels of a volume file plainly thicker; else empty."""
    axis = 0 if frame.turn is None else frame.turn.axes.index(0)
    sizes = np.linalg.norm(frame.steps, axis=1)
    thickest = int(sizes.argmax())
    if not any(frame.source.sop_uids) and sizes[thickest] >= _PLAINLY_THICKER * np.delete(sizes, thickest).max():
        axis = thickest
    return _PLANES[axis] if axis else ""

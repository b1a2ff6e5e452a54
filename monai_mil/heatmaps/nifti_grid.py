"""The grid of a scan's volume as NIfTI holds it, so that every program finds the same place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from monai_mil.errors import ScanReadError
from monai_mil.scans import ScanFrame

_MOST_OFF_MM = 0.1
_MOST_OFF_PIXELS = 0.1


@dataclass(frozen=True, eq=False)
class NiftiGrid:
    """Which voxels a volume has, and where they lie.

    Attributes:
        frame: whose slices the layers are: the source's, or the patient's where the source's grid is too sheared.
        slices: the frame's slice of every layer, int ``[m]``.
        shape: columns, rows and layers.
        affine: float64 ``[4, 4]`` from (column, row, layer) to RAS+ mm; exact, for the header's sform.
        orthogonal: the same without shear, for the qform, which is what ITK goes by.
        resampling: float64 ``[4, 4]`` from the volume's indices to those of the slices; None where they are the same.
        notes: what the header's description says of it.
    """

    frame: ScanFrame
    slices: np.ndarray
    shape: tuple[int, int, int]
    affine: np.ndarray
    orthogonal: np.ndarray
    resampling: np.ndarray | None
    notes: tuple[str, ...]

    @classmethod
    def of(cls, frame: ScanFrame) -> NiftiGrid:
        """The source's own grid wherever it can be.

        Unevenly spaced slices go on a regular grid: of as many layers where each slice is nearest to its own place,
        else with the smallest of their spacings. A qform holds no shear, so that a grid whose voxels it would move by
        0.1 mm, or a tenth of a pixel, is replaced by one with right angles.

        Raises:
            ScanReadError: the slices do not lie on one straight line, or are uneven, sheared and not axial.
        """
        source = frame.source
        slices, affine, notes = _layers(source)
        rows, columns = source.size
        shape = (columns, rows, len(slices))
        orthogonal = _orthogonal(frame, affine, shape)
        most = min(_MOST_OFF_MM, _MOST_OFF_PIXELS * min(source.spacing))
        if _apart(affine, orthogonal, shape) <= most:
            return cls(source, slices, shape, affine, orthogonal, None, notes)
        if frame.turn is not None and not frame.turn.keeps_slices and not source.is_nearly_even:
            raise ScanReadError(
                f"scan '{frame.scan_id}': its slices are uneven, sheared and not axial, so no grid holds them; "
                "resample the scan"
            )
        return cls._resampled(frame)

    @classmethod
    def _resampled(cls, frame: ScanFrame) -> NiftiGrid:
        """A grid with right angles that holds all of the patient's slices, each in its own plane."""
        slices, affine, notes = _layers(frame)
        rows, columns = frame.size
        box = (columns, rows, len(slices))
        orthogonal = _without_shear(affine, box)
        corners = np.linalg.inv(orthogonal) @ affine @ _corners(box)
        first, last = np.floor(corners[:2].min(axis=1) + 1e-3), np.ceil(corners[:2].max(axis=1) - 1e-3)
        orthogonal[:3, 3] = (orthogonal @ [*first, 0, 1])[:3]
        width, height = (last - first + 1).astype(int).tolist()
        resampling = np.linalg.inv(affine) @ orthogonal
        notes = ("resampled to right angles", *notes)
        return cls(frame, slices, (width, height, len(slices)), orthogonal, orthogonal, resampling, notes)

    def resampled(self, values: np.ndarray, layer: int) -> np.ndarray:
        """A slice's pixels ``[rows, columns]`` on the pixels of its layer, float32; 0 beside the slice."""
        if self.resampling is None:
            return values
        from scipy.ndimage import affine_transform

        width, height, _ = self.shape
        matrix = self.resampling[:2, :2][::-1, ::-1]
        offset = (self.resampling[:2, 2] * layer + self.resampling[:2, 3])[::-1]
        pixels = np.asarray(values, np.float32)
        return np.asarray(affine_transform(pixels, matrix, offset, (height, width), order=1))


def _layers(frame: ScanFrame) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """The slice of every layer, int ``[m]``, their affine (RAS+ mm), and what is to be said of them."""
    if frame.is_regular:
        return np.arange(len(frame)), frame.affine, ()
    if frame.is_nearly_even:
        return np.arange(len(frame)), frame.even_affine, ("uneven slices as even ones",)
    if not frame.is_straight:
        raise ScanReadError(
            f"scan '{frame.scan_id}': its slices lie up to {frame.off_line_mm:.1f} mm beside one straight line, so no "
            "grid holds them; resample the scan"
        )
    positions = frame.positions_mm
    step = float(np.diff(positions).min())
    at = positions[0] + step * np.arange(round((positions[-1] - positions[0]) / step) + 1)
    nearest = np.searchsorted((positions[1:] + positions[:-1]) / 2, at)
    # along the line from slice to slice, not along the normal: with a tilted gantry each slice keeps its own place
    drift = (frame.origins[-1] - frame.origins[0]) / (positions[-1] - positions[0])
    affine = frame.slice_affine(0)
    affine[:3, 2] = drift * step * (-1, -1, 1)
    return nearest, affine, ("nearest slice of uneven spacing",)


def _orthogonal(frame: ScanFrame, affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """An affine of the source's indices without shear; it is the patient's slices that stay as they are."""
    if frame.turn is None:
        return _without_shear(affine, shape)
    columns, rows, layers = shape
    turned = [(layers, rows, columns)[axis] for axis in frame.turn.axes]
    to_turned = frame.turn.indices((turned[0], turned[1], turned[2]))
    return _without_shear(affine @ np.linalg.inv(to_turned), (turned[2], turned[1], turned[0])) @ to_turned


def _without_shear(affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """The affine with layers stepping along their normal, and the middle one where it was."""
    columns, rows, layers = affine[:3, 0], affine[:3, 1], affine[:3, 2]
    along = columns / np.linalg.norm(columns)
    down = rows - (rows @ along) * along
    down *= np.linalg.norm(rows) / np.linalg.norm(down)
    normal = np.cross(along, down / np.linalg.norm(down))
    straight = np.eye(4)
    straight[:3, :3] = np.stack([columns, down, (layers @ normal) * normal], axis=1)
    middle = np.array([(shape[0] - 1) / 2, (shape[1] - 1) / 2, shape[2] // 2])
    straight[:3, 3] = affine[:3, 3] + (affine[:3, :3] - straight[:3, :3]) @ middle
    return straight


def _apart(affine: np.ndarray, other: np.ndarray, shape: tuple[int, int, int]) -> float:
    """How far, at most, two affines place a voxel apart, mm."""
    return float(np.linalg.norm(((affine - other) @ _corners(shape))[:3], axis=0).max())


def _corners(shape: tuple[int, int, int]) -> np.ndarray:
    """Indices of the corner voxels, ``[4, 8]``."""
    far = np.array([[*corner, 1] for corner in np.ndindex(2, 2, 2)]).T
    return far * np.array([shape[0] - 1, shape[1] - 1, shape[2] - 1, 1])[:, None]

"""One drawn chest, asymmetric in every axis, as any scanner or program may store it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from tests.scans.conftest import AXIAL, write_series

SPACING, STEP = 3.0, 4.0
LESION = np.array([45.0, -12.0, 12.0])
RAS = np.array([[3.0, 0, 0, -94.5], [0, 3, 0, -94.5], [0, 0, 4, -46], [0, 0, 0, 1]])
"""Of a volume of 64 x 64 x 24 voxels."""


def hu(points: np.ndarray) -> np.ndarray:
    """Hounsfield units at points of the patient, LPS, mm, ``[..., 3]``."""
    x, y, z = np.moveaxis(points, -1, 0)
    values = np.full(x.shape, -1000.0)
    body = (x / 90) ** 2 + (y / 65) ** 2 < 1
    values[body] = (40 + z + x / 2 + y / 4)[body]
    for centre, radius in ((40, 28), (-38, 22)):
        lung = ((x - centre) / radius) ** 2 + ((y + 5) / 35) ** 2 + (z / 60) ** 2 < 1
        values[lung] = (-850 + z / 2 + x / 5)[lung]
    lesion = np.linalg.norm(points - LESION, axis=-1)
    values[lesion < 8] = 1200 - 20 * lesion[lesion < 8]
    return np.rint(values).astype(np.int16)


def slice_origins(iop=AXIAL, n=24, size=(64, 64), step=STEP, drift=(0, 0, 0)) -> np.ndarray:
    """First pixels of ``n`` slices around the middle of the chest; ``drift`` moves each by that share of its place."""
    along, down = np.reshape(iop, (2, 3))
    places = (np.arange(n) - (n - 1) / 2) * step
    corner = along * SPACING * (size[1] - 1) / 2 + down * SPACING * (size[0] - 1) / 2
    return places[:, None] * (np.cross(along, down) + np.array(drift)) - corner


def write_dicom(folder: Path, iop=AXIAL, size=(64, 64), *, origins=None, shuffle=True, **facts: Any) -> Path:
    """The chest as a series of slices of ``size`` rows and columns; ``facts`` are of ``slice_origins``."""
    origins = slice_origins(iop, size=size, **facts) if origins is None else origins
    along, down = np.reshape(iop, (2, 3))
    rows, columns = np.mgrid[: size[0], : size[1]][..., None] * SPACING
    slices = np.stack([hu(origin + columns * along + rows * down) for origin in origins])
    attributes = {"ImageOrientationPatient": [float(value) for value in iop], "PixelSpacing": [SPACING, SPACING]}
    return write_series(folder, slices, origins, shuffle=shuffle, SliceThickness=STEP, **attributes)


def write_volume(path: Path, axes=(0, 1, 2), flips=()) -> Path:
    """The chest as NIfTI, its array axes permuted and mirrored."""
    points = np.stack(np.meshgrid(*map(np.arange, (64, 64, 24)), indexing="ij"), axis=-1) @ RAS[:3, :3].T + RAS[:3, 3]
    voxels, affine = hu(points * (-1, -1, 1)).transpose(axes), RAS[:, [*axes, 3]].copy()
    for axis in flips:
        affine[:3, 3] += affine[:3, axis] * (voxels.shape[axis] - 1)
        affine[:3, axis] *= -1
        voxels = np.flip(voxels, axis)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(voxels), affine), path)
    return path

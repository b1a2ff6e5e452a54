"""Synthetic CT bags of token maps: noise, and in positive scans one ball of tokens whose features are shifted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from monai_mil.bags import BagFile, BagInfo
from monai_mil.cohorts import SPLITS, Cohort, CohortSlide
from monai_mil.embedding import scan_coords
from monai_mil.scans import Depth, ScanFrame

_SLICE_MM = 5.0


def make_token_scan_cohort(
    folder: str | os.PathLike[str],
    *,
    scans: Sequence[int] = (24, 8, 8),
    slices: tuple[int, int] = (12, 40),
    width: int = 42,
    grid: tuple[int, int] = (37, 37),
    shifted: int = 4,
    delta: float = 3.0,
    radius: float = 2.5,
    depth: int | None = None,
    seed: int = 0,
) -> Path:
    """Write spatial bags of scans ``[n, width, h, w]`` with their slice labels, and the cohort table.

    Every other scan is positive. The bags know the frame of their scan, and beside ``instance_labels`` they hold
    ``token_labels`` (uint8 ``[n, h, w]``), 1 for planted tokens.

    Args:
        folder: gets ``bags/<scan_id>.h5`` and ``cohort.csv``.
        scans: number of scans in train, val and test.
        slices: fewest and most slices of a scan.
        width: number of features.
        grid: tokens of a slice, rows and columns.
        shifted: how many features are shifted in planted tokens.
        delta: the shift, in standard deviations of the noise.
        radius: of the planted ball, in tokens and in instances.
        depth: layers every bag is resized to; None keeps one instance a slice.
        seed: of everything; the same seed gives the same bags.

    Returns:
        Path of ``cohort.csv``: scan_id, patient_id, path (empty), split and label (``negative`` or ``positive``).
    """
    folder, rng = Path(folder), np.random.default_rng(seed)
    cases = []
    for split, count in zip(SPLITS, scans, strict=True):
        for index in range(count):
            scan_id, label = f"{split}_{index:03d}", index % 2
            frame = _frame(scan_id, int(rng.integers(slices[0], slices[1] + 1)), grid)
            info = BagInfo(scan_id, encoder="synthetic", scan=frame, depth=None if depth is None else Depth(depth))
            coords = scan_coords(info)
            planted = _ball(rng, (len(coords), *grid), radius) if label else np.zeros((len(coords), *grid), bool)
            features = rng.standard_normal((len(coords), width, *grid), np.float32)
            features[:, :shifted] += delta * planted[:, None]
            extras: dict[str, np.ndarray] = {
                "instance_labels": np.asarray(planted.any(axis=(1, 2)), np.int64),
                "token_labels": planted.astype(np.uint8),
            }
            BagFile.write(folder / "bags" / f"{scan_id}.h5", features, coords, info, extras)
            cases.append(CohortSlide(slide_id=scan_id, patient_id=scan_id, split=split, label=label))
    cohort = Cohort(folder / "cohort.csv", tuple(cases), ("label",), ("negative", "positive"), id_column="scan_id")
    return cohort.write(folder / "cohort.csv")


def _frame(scan_id: str, n: int, grid: tuple[int, int]) -> ScanFrame:
    """Square slices of 4 pixels a token."""
    side = 4 * max(grid)
    return ScanFrame(
        scan_id=scan_id,
        path=None,
        size=(side, side),
        spacing=(2.0, 2.0),
        orientation=np.eye(3)[:2],
        origins=np.stack([np.zeros(n), np.zeros(n), np.arange(n) * _SLICE_MM], axis=1),
        sop_uids=("",) * n,
        frame_numbers=tuple(range(1, n + 1)),
    )


def _ball(rng: np.random.Generator, shape: tuple[int, ...], radius: float) -> np.ndarray:
    """The tokens within ``radius`` of a random one, bool ``[n, h, w]``."""
    centre = [int(rng.integers(length)) for length in shape]
    distance = sum((axis - place) ** 2 for axis, place in zip(np.ogrid[tuple(map(slice, shape))], centre, strict=True))
    return np.asarray(distance) <= radius**2

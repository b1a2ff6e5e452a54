"""A scan's smooth map against its ground truth, slice by slice."""

from __future__ import annotations

import numpy as np

from monai_mil.heatmaps.scan_heatmap import ScanHeatmap


def scan_dice_counts(heatmap: ScanHeatmap, thresholds: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Count every slice's voxels for ascending thresholds in one pass.

    The prediction is where the smooth map lies above a threshold, within the lungs where they are known; the truth
    counts everywhere.

    Args:
        heatmap: the map; one score a slice predicts whole slices.
        thresholds: what is above is predicted, ``[t]``.
        truth: bool ``[n, rows, columns]``, see :func:`monai_mil.scans.read_scan_truth`.

    Returns:
        ``|P and G|``, ``|P|`` and ``|G|`` of every slice, int64 ``[n, t, 3]``.

    Raises:
        ValueError: map and truth are not of the same voxels.
    """
    if truth.shape != heatmap.frame.shape:
        raise ValueError(f"a truth of {truth.shape} voxels for a scan of {heatmap.frame.shape}")
    counts = np.zeros((len(heatmap), len(thresholds), 3), np.int64)
    limits = np.asarray(thresholds, np.float32)
    for index, inside in enumerate(truth):
        scores = heatmap.slice_map(index, smooth=True)
        seen = np.ones(inside.shape, bool) if heatmap.lungs is None else heatmap.lungs.inside(index)
        reached = np.searchsorted(limits, scores[seen], side="left")  # how many thresholds a score lies above
        for column, part in ((0, reached[inside[seen]]), (1, reached)):
            above = np.bincount(part, minlength=len(limits) + 1)[::-1].cumsum()[::-1]
            counts[index, :, column] = above[1:]
        counts[index, :, 2] = np.count_nonzero(inside)
    return counts

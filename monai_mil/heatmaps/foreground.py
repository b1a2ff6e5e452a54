"""Where the foreground of a map begins, by the distribution of its scores alone."""

from __future__ import annotations

import numpy as np

from monai_mil.heatmaps.heatmap import Heatmap
from monai_mil.heatmaps.scan_heatmap import ScanHeatmap

_FLAT = 1e-6


def otsu(heatmap: Heatmap | ScanHeatmap | np.ndarray) -> float:
    """Otsu's threshold over all tokens of the slide or scan, or over an array of scores.

    The same as scikit-image's ``threshold_otsu``. Tokens whose centre lies outside the slide do not count. A map that
    is the same everywhere has nothing to split: the answer is then below every score.

    Examples:
        >>> import numpy as np
        >>> from monai_mil.heatmaps import otsu
        >>> 0.2 <= otsu(np.array([0.1, 0.2, 0.8, 0.9])) < 0.8
        True
    """
    import torch

    from monai_mil.bags import token_mask
    from monai_mil.networks.blocks import otsu_threshold

    scores = heatmap if isinstance(heatmap, np.ndarray) else heatmap.scores
    if isinstance(heatmap, Heatmap) and scores.ndim == 3:
        frame, (rows, columns) = heatmap.frame, scores.shape[1:]
        real = token_mask(heatmap.coords, frame.tile_size_level0, frame.level0_size, (rows, columns))
        scores = scores if real is None or not real.any() else scores[real.numpy()]
    if float(np.ptp(scores)) < _FLAT:
        return float(np.nextafter(scores.min(), np.float32(-np.inf)))
    return float(otsu_threshold(torch.from_numpy(np.ravel(scores))))

"""Where a scan has the finding, as shares of the tokens of its bag, for networks that are taught it."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from monai_mil.errors import CohortError
from monai_mil.scans import Depth, ScanFrame, SlicePreset, Window, find_scan_truth, prepare_slices, read_scan_truth

_SHARE = SlicePreset("share", windows=(Window(0.5, 1.0),), mean=(0.0,), std=(1.0,))
"""Values of 0 and 1 stay what they are, and go the way of grey values: padded to a square, resized with averages."""


class ScanTruthd(MapTransform):
    """Set ``token_labels``, float32 ``[n, 1, h, w]``: the share of every token's voxels that have the finding.

    The ground truth is a mask beside the scan, see :func:`monai_mil.scans.read_scan_truth`. Scans with the label 0 need
    none. Masks go the way of the scan's grey values: padded to a square, resized, brought to the layers of its bag.

    Args:
        keys: keys of scans with token maps, as ``LoadBagd`` or ``EmbedScand`` leave them.
        truth_dir: folder of the masks: ``<scan_id>``, ``<scan_id>_mask`` or ``<scan_id>_seg`` of a known kind.
        value: the finding's label in a volume, or number or name of its segment; None takes all.
        allow_missing_keys: skip absent keys.

    Raises:
        AnnotationError: a positive scan has no mask, or one that cannot be read or lies elsewhere; names it.
        CohortError: the bag is no scan with token maps.
    """

    def __init__(
        self,
        keys: KeysCollection,
        truth_dir: str | os.PathLike[str],
        value: int | str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.truth_dir = Path(truth_dir)
        self.value = value

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Mark the tokens of ``data[key]``; the input dictionary is left as it is."""
        labelled = dict(data)
        for key in self.key_iterator(labelled):
            image = labelled[key]
            if image.ndim != 4 or image.shape[2] != image.shape[3] or not image.meta.get("scan_frame"):
                raise CohortError(f"scan '{image.meta.get('slide_id', '')}': masks need a bag of token maps of a scan")
            labelled["token_labels"] = self._shares(image, bool(np.any(np.asarray(labelled.get("label", 1)))))
        return labelled

    def _shares(self, image: Any, positive: bool) -> torch.Tensor:
        count, side = image.shape[1:3]
        if not positive:
            return torch.zeros(count, 1, side, side)
        frame = ScanFrame.from_json(image.meta["scan_frame"])
        path = find_scan_truth(self.truth_dir, str(image.meta["slide_id"]))
        truth = read_scan_truth(path, frame, self.value)
        shares = prepare_slices(truth.astype(np.float32), _SHARE, side).numpy()
        depth = image.meta.get("scan_depth")
        if depth:
            shares = Depth.from_json(depth).at_places(shares)
        return torch.from_numpy(np.ascontiguousarray(shares, np.float32))

"""Slice scores in the patient's own coordinates: what every picture and export of a scan starts from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from monai_mil.errors import BagError
from monai_mil.files import replacing_hdf5
from monai_mil.heatmaps.heatmap import Heatmap, as_array
from monai_mil.scans import ScanFrame

FORMAT = "monai-mil scan heatmap 1"


@dataclass(frozen=True, eq=False)
class ScanHeatmap:
    """Scores of a scan's slices, in the order of its frame.

    Arrays may be given as tensors or lists; they are kept as below.

    Attributes:
        frame: the scan, of ``n`` slices.
        scores: one score a slice, float32 ``[n]``, or a grid of equal cells over each slice, ``[n, h, w]``, row by
            row. The grid covers the slice padded to a square, the slice in its middle, as ``prepare_slices`` pads it.
        name: what the scores are, as a reader of the figure should see it ("attention").
        attributes: anything else worth keeping, JSON-able (prediction, class, network).
        attention: every head's distribution over the slices, float32 ``[h, n]``, where the network has one.
        labels: 1 for slices known to hold the finding, 0 for those known not to, -1 unknown, int64 ``[n]``; None if
            nothing is known.
        threshold: the score from which on a slice (or cell) is called positive, where there is one.

    Raises:
        ValueError: shapes that do not fit, or a score that is not finite; names scan and slice.
    """

    frame: ScanFrame
    scores: np.ndarray
    name: str = "attention"
    attributes: Mapping[str, Any] = field(default_factory=dict)
    attention: np.ndarray | None = None
    labels: np.ndarray | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "scores", np.ascontiguousarray(as_array(self.scores), np.float32))
        object.__setattr__(self, "attributes", dict(self.attributes))
        if self.attention is not None:
            attention = np.ascontiguousarray(as_array(self.attention), np.float32)
            object.__setattr__(self, "attention", attention[None] if attention.ndim == 1 else attention)
        if self.labels is not None:
            object.__setattr__(self, "labels", np.ascontiguousarray(as_array(self.labels), np.int64))
        self._check()

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def slice_scores(self) -> np.ndarray:
        """One score a slice, float32 ``[n]``: the scores, or the maximum of each slice's cells."""
        return self.scores if self.scores.ndim == 1 else self.scores.max(axis=(1, 2))

    @property
    def peak(self) -> int:
        """Index of the most suspicious slice."""
        return int(self.slice_scores.argmax())

    def slice_map(self, index: int) -> np.ndarray:
        """The scores of slice ``index`` on its own pixels: each takes the score of the cell that holds its centre.

        Returns:
            float32 ``[rows, columns]``; a view of one number where a slice has one score.
        """
        if self.scores.ndim == 1:
            return np.broadcast_to(self.scores[index], self.frame.size)
        side = max(self.frame.size)
        row, column = (
            (np.arange(length) + (side - length) // 2 + 0.5) * cells // side
            for length, cells in zip(self.frame.size, self.scores.shape[1:], strict=True)
        )
        return self.scores[index][np.ix_(row.astype(int), column.astype(int))]

    def save(self, path: str | Path) -> Path:
        """Write the heatmap to ``path`` (HDF5) under a temporary name, then rename it; returns the path."""
        path = Path(path)
        with replacing_hdf5(path) as file:
            file.attrs["format"] = FORMAT
            file.attrs["name"] = self.name
            file.attrs["attributes"] = json.dumps(dict(self.attributes))
            if self.threshold is not None:
                file.attrs["threshold"] = self.threshold
            # a dataset, not an attribute: the frame of a long scan passes HDF5's 64 KiB for those
            file["frame"] = self.frame.to_json()
            file["scores"] = self.scores
            for part in ("attention", "labels"):
                if getattr(self, part) is not None:
                    file[part] = getattr(self, part)
        return path

    @classmethod
    def load(cls, path: str | Path) -> ScanHeatmap:
        """Read what :meth:`save` wrote.

        Raises:
            BagError: the file is missing, damaged or not a scan's heatmap.
        """
        import h5py

        try:
            with h5py.File(path, "r") as file:
                if file.attrs.get("format") != FORMAT:
                    raise BagError(
                        f"heatmap '{path}': not a scan's heatmap of this version; make it again with inference"
                    )
                return cls(
                    ScanFrame.from_json(file["frame"].asstr()[()]),
                    file["scores"][:],
                    str(file.attrs["name"]),
                    json.loads(file.attrs["attributes"]),
                    attention=file["attention"][:] if "attention" in file else None,
                    labels=file["labels"][:] if "labels" in file else None,
                    threshold=float(file.attrs["threshold"]) if "threshold" in file.attrs else None,
                )
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise BagError(f"heatmap '{path}': cannot be read ({error}); make it again with inference") from error

    def _check(self) -> None:
        where, n = f"heatmap of '{self.frame.scan_id}'", len(self.frame)
        if self.scores.ndim not in (1, 3) or len(self.scores) != n or self.scores.size == 0:
            raise ValueError(
                f"{where}: scores have shape {list(self.scores.shape)}; expected [n] or [n, h, w] for {n} slices"
            )
        if not np.isfinite(self.scores).all():
            bad = int(np.argwhere(~np.isfinite(self.scores))[0, 0])
            raise ValueError(f"{where}: the score of slice {bad + 1} of {n} is not finite")
        if self.attention is not None:
            if self.attention.ndim != 2 or self.attention.shape[1] != n or not len(self.attention):
                raise ValueError(f"{where}: attention has shape {list(self.attention.shape)}; expected [h, {n}]")
            if not (np.isfinite(self.attention).all() and (self.attention >= 0).all() and self.attention.any(1).all()):
                raise ValueError(f"{where}: attention is negative, all 0 or not finite; give it after the softmax")
        if self.labels is not None and self.labels.shape != (n,):
            raise ValueError(f"{where}: labels have shape {list(self.labels.shape)}; expected [{n}]")


def load_heatmap(path: str | Path) -> Heatmap | ScanHeatmap:
    """Read the heatmap of a slide or a scan, whichever the file holds.

    Raises:
        BagError: the file is missing, damaged or neither.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            of_scan = file.attrs.get("format") == FORMAT
    except OSError as error:
        raise BagError(f"heatmap '{path}': cannot be read ({error}); make it again with inference") from error
    return ScanHeatmap.load(path) if of_scan else Heatmap.load(path)

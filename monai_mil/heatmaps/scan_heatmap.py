"""Slice scores in the patient's own coordinates: what every picture and export of a scan starts from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_mil.bags import find_dataset
from monai_mil.errors import BagError
from monai_mil.files import replacing_hdf5
from monai_mil.heatmaps.heatmap import Heatmap, to_numpy
from monai_mil.scans import LungField, ScanFrame
from monai_mil.sealed import open_hdf5

if TYPE_CHECKING:
    import h5py

FORMAT = "monai-mil scan heatmap 1"


@dataclass(frozen=True, eq=False)
class ScanHeatmap:
    """Scores of a scan's slices, in the order of its frame.

    Arrays may be given as tensors or lists; they are kept as below.

    Attributes:
        frame: the scan, of ``n`` slices in the patient's orientation, and its source's slices where they lie otherwise.
        scores: one score a slice, float32 ``[n]``, or a grid of equal cells over each slice, ``[n, h, w]``, row by
            row. The grid covers the slice padded to a square, the slice in its middle, as ``prepare_slices`` pads it.
        name: what the scores are, as a reader of the figure should see it ("attention").
        attributes: anything else worth keeping, JSON-able (prediction, class, network).
        attention: every head's distribution over the slices, float32 ``[h, n]``, where the network has one.
        labels: 1 for slices known to hold the finding, 0 for those known not to, -1 unknown, int64 ``[n]``; None if
            nothing is known.
        threshold: scores strictly above are foreground; infinite where the scan has none, None where nobody said.
        lungs: cells and maps are 0 outside of them; None keeps all.

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
    lungs: LungField | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "scores", np.ascontiguousarray(to_numpy(self.scores), np.float32))
        object.__setattr__(self, "attributes", dict(self.attributes))
        if self.attention is not None:
            attention = np.ascontiguousarray(to_numpy(self.attention), np.float32)
            object.__setattr__(self, "attention", attention[None] if attention.ndim == 1 else attention)
        if self.labels is not None:
            object.__setattr__(self, "labels", np.ascontiguousarray(to_numpy(self.labels), np.int64))
        self._check()

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def slice_scores(self) -> np.ndarray:
        """One score a slice, float32 ``[n]``: the scores, or the maximum of each slice's cells.

        Only cells that touch the lungs count where the lungs are known; a slice without any has 0, or the lowest score.
        """
        if self.scores.ndim == 1:
            return self.scores
        if self._cells_in_lungs is None:
            return self.scores.max(axis=(1, 2))
        lowest = np.float32(min(0.0, float(self.scores.min())))
        return np.where(self._cells_in_lungs, self.scores, lowest).max(axis=(1, 2))

    @property
    def instance_scores(self) -> np.ndarray:
        """One score for each of ``frame.instances``, float32: the slices', or what the map has at most on an instance.

        The latter where the instances were cut across, as coronal ones are: each is a row or column of every slice.
        """
        turn = self.frame.turn
        if turn is None or self.frame.instances is self.frame:
            return self.slice_scores
        across = turn.axes.index(0)
        lowest = np.float32(min(0.0, float(self.scores.min())))
        highest = np.full(len(self.frame.source), lowest)
        for index in range(len(self)):
            values = self.slice_map(index)
            seen = values if self.lungs is None else np.where(self.lungs.inside(index), values, lowest)
            np.maximum(highest, seen.max(axis=2 - across), out=highest)
        return highest[::-1] if turn.flips[across] else highest

    @property
    def peak(self) -> int:
        """Index of the most suspicious slice."""
        return int(self.slice_scores.argmax())

    def slice_map(self, index: int, *, smooth: bool = False) -> np.ndarray:
        """The scores of slice ``index`` on its own pixels, 0 outside the lungs where they are known.

        Args:
            index: of the slice.
            smooth: interpolate between the cells (bicubic, corners not aligned, nothing beyond the lowest and highest
                score of the scan); else each pixel takes the score of the cell that holds its centre.

        Returns:
            float32 ``[rows, columns]``; a view of one number where a slice has one score.
        """
        if self.scores.ndim == 1:
            return np.broadcast_to(self.scores[index], self.frame.size)
        values = self._interpolated(index) if smooth else self.scores[index][np.ix_(*self._cell_of_pixel)]
        return values if self.lungs is None else values * self.lungs.inside(index)

    def foreground(self, index: int) -> np.ndarray:
        """Where the smooth map of slice ``index`` lies above the threshold, within the lungs, bool ``[rows, columns]``.

        Raises:
            ValueError: the heatmap has no threshold.
        """
        if self.threshold is None:
            raise ValueError(f"heatmap of '{self.frame.scan_id}': no foreground without a threshold")
        above = self.slice_map(index, smooth=True) > self.threshold
        return above if self.lungs is None else above & self.lungs.inside(index)

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
            if self.lungs is not None:
                file["lungs"] = self.lungs.to_json()
        return path

    @classmethod
    def load(cls, path: str | Path) -> ScanHeatmap:
        """Read what :meth:`save` wrote.

        Raises:
            BagError: the file is missing, damaged or not a scan's heatmap.
        """
        try:
            with open_hdf5(Path(path)) as file:
                if file.attrs.get("format") != FORMAT:
                    raise BagError(
                        f"heatmap '{path}': not a scan's heatmap of this version; make it again with inference"
                    )
                frame, lungs = (_text(path, file, name) for name in ("frame", "lungs"))
                return cls(
                    ScanFrame.from_json(frame or ""),
                    find_dataset(Path(path), file, "scores", "heatmap")[:],
                    str(file.attrs["name"]),
                    json.loads(file.attrs["attributes"]),
                    attention=_numbers(path, file, "attention"),
                    labels=_numbers(path, file, "labels"),
                    threshold=float(file.attrs["threshold"]) if "threshold" in file.attrs else None,
                    lungs=None if lungs is None else LungField.from_json(lungs),
                )
        except BagError:
            raise
        except Exception as error:  # HDF5 and JSON raise many kinds of errors for damaged files
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
        if self.threshold is not None and np.isnan(self.threshold):
            raise ValueError(f"{where}: the threshold is not a number")
        if self.attention is not None:
            if self.attention.ndim != 2 or self.attention.shape[1] != n or not len(self.attention):
                raise ValueError(f"{where}: attention has shape {list(self.attention.shape)}; expected [h, {n}]")
            if not (np.isfinite(self.attention).all() and (self.attention >= 0).all() and self.attention.any(1).all()):
                raise ValueError(f"{where}: attention is negative, all 0 or not finite; give it after the softmax")
        if self.labels is not None and self.labels.shape != (n,):
            raise ValueError(f"{where}: labels have shape {list(self.labels.shape)}; expected [{n}]")
        if self.lungs is not None and self.lungs.shape != (n, *self.frame.size):
            raise ValueError(f"{where}: lungs of shape {self.lungs.shape}; expected {(n, *self.frame.size)}")

    @cached_property
    def _cell_of_pixel(self) -> list[np.ndarray]:
        """The row of cells that holds each row of pixels, and the column of cells of each column."""
        side = max(self.frame.size)
        return [
            ((np.arange(length) + (side - length) // 2 + 0.5) * cells // side).astype(int)
            for length, cells in zip(self.frame.size, self.scores.shape[1:], strict=True)
        ]

    @cached_property
    def _cells_in_lungs(self) -> np.ndarray | None:
        """Which cells hold a pixel of the lungs, bool ``[n, h, w]``; None where the lungs are not known."""
        if self.lungs is None:
            return None
        (rows, first_row), (columns, first_column) = (
            np.unique(cells, return_index=True) for cells in self._cell_of_pixel
        )
        touching = np.zeros(self.scores.shape, bool)
        for index in range(len(self)):
            by_row = np.logical_or.reduceat(self.lungs.inside(index), first_row, axis=0)
            touching[index][np.ix_(rows, columns)] = np.logical_or.reduceat(by_row, first_column, axis=1)
        return touching

    def _interpolated(self, index: int) -> np.ndarray:
        import cv2

        side, (rows, columns) = max(self.frame.size), self.frame.size
        square = cv2.resize(self.scores[index], (side, side), interpolation=cv2.INTER_CUBIC)
        top, left = (side - rows) // 2, (side - columns) // 2
        low, high = self._limits
        return np.clip(square[top : top + rows, left : left + columns], low, high)

    @cached_property
    def _limits(self) -> tuple[float, float]:
        return float(self.scores.min()), float(self.scores.max())


def _numbers(path: str | Path, file: h5py.File, name: str) -> np.ndarray | None:
    return find_dataset(Path(path), file, name, "heatmap")[:] if name in file else None


def _text(path: str | Path, file: h5py.File, name: str) -> str | None:
    return find_dataset(Path(path), file, name, "heatmap").asstr()[()] if name in file else None


def load_heatmap(path: str | Path) -> Heatmap | ScanHeatmap:
    """Read the heatmap of a slide or a scan, whichever the file holds.

    Raises:
        BagError: the file is missing, damaged or neither.

    Examples:
        >>> from monai_mil.heatmaps import SlideFrame, assemble, load_heatmap
        >>> frame = SlideFrame("S-1", None, level0_size=(512, 256), mpp=0.5, tile_size_level0=256.0)
        >>> path = assemble([0.2, 0.8], [[0, 0], [256, 0]], frame).save(folder / "S-1.h5")
        >>> load_heatmap(path).scores
        array([0.2, 0.8], dtype=float32)
    """
    try:
        with open_hdf5(Path(path)) as file:
            of_scan = file.attrs.get("format") == FORMAT
    except Exception as error:  # HDF5 raises many kinds of errors for damaged files
        raise BagError(f"heatmap '{path}': cannot be read ({error}); make it again with inference") from error
    return ScanHeatmap.load(path) if of_scan else Heatmap.load(path)


def is_of_model(path: str | Path, model: str | None) -> bool:
    """Whether a heatmap's file says that it was drawn by the model of this digest; a damaged file says nothing else.

    Args:
        path: a file that ``save`` wrote.
        model: ``model_card.weights_digest`` of the weights; None for maps that say no model.
    """
    try:
        with open_hdf5(Path(path)) as file:
            own = json.loads(file.attrs["attributes"]).get("model")
    except Exception:  # who loads it will say what is wrong
        return True
    return own == model

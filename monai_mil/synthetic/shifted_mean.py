"""The shifted-mean benchmark of Harvey, Loevlie and Hughes (arXiv 2605.27306), and the best scores there can be.

A scan is Gaussian noise; in a positive scan the mean of a few features is shifted in one window of consecutive slices.
Everything is known, so the scores of the best possible classifier can be computed. With ``windows=2`` a positive scan
has two windows apart from each other, which is our own addition.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from monai_mil.bags import BagFile, BagInfo
from monai_mil.cohorts import SPLITS, Cohort, CohortSlide
from monai_mil.scans import ScanFrame

_SLICE_MM = 5.0


@dataclass(frozen=True)
class ShiftedMean:
    """How scans are drawn; the defaults are the paper's.

    Attributes:
        window: ``r``, slices of a planted window.
        slices: smallest and largest number of slices of a scan, both included.
        shifted: ``k``, how many features are shifted.
        width: ``m``, number of features.
        delta: the shift, in standard deviations of the noise.
        windows: planted windows of a positive scan, 1 or 2.
        gap: least number of slices between two windows.

    Raises:
        ValueError: the shortest scan has no room for the windows, or there are not one or two.

    Examples:
        >>> from monai_mil.synthetic import ShiftedMean
        >>> recipe = ShiftedMean(window=3, slices=(8, 8), width=4)
        >>> recipe.placements(8).ravel()  # where a window of three slices fits into eight
        array([0, 1, 2, 3, 4, 5])
    """

    window: int = 12
    slices: tuple[int, int] = (20, 60)
    shifted: int = 1
    width: int = 768
    delta: float = 0.5
    windows: int = 1
    gap: int = 8

    def __post_init__(self) -> None:
        if self.windows not in (1, 2):
            raise ValueError(f"a scan has 1 or 2 planted windows, not {self.windows}")
        room = self.windows * self.window + (self.windows - 1) * self.gap
        if self.slices[0] < room:
            raise ValueError(f"the shortest scan has {self.slices[0]} slices, its windows need {room}")

    def draw(self, n: int, seed: int) -> ShiftedMeanScans:
        """Draw ``n`` scans; random numbers are used in the order of the authors' program, so its scans come out."""
        generator = torch.Generator().manual_seed(seed)
        low, high = self.slices
        lengths = torch.randint(low, high + 1, (n,), generator=generator)
        features = torch.randn(int(lengths.sum()), self.width, generator=generator)
        starts = [self._place(int(length), generator) for length in lengths]
        labels = torch.bernoulli(torch.full((n, 1), 0.5), generator=generator)[:, 0].long()
        slice_labels = torch.zeros(len(features), dtype=torch.long)
        for begin, places, label in zip(_begins(lengths), starts, labels.tolist(), strict=True):
            for start in places if label else ():
                rows = slice(begin + start, begin + start + self.window)
                features[rows, : self.shifted] += self.delta
                slice_labels[rows] = 1
        return ShiftedMeanScans(self, lengths, features, tuple(starts), labels, slice_labels)

    def placements(self, length: int) -> np.ndarray:
        """First slices of the windows in every way they fit into ``length`` slices, ``[ways, windows]``."""
        if self.windows == 1:
            return np.arange(length - self.window + 1)[:, None]
        first, second = np.triu_indices(length - self.window + 1, k=self.window + self.gap)
        return np.stack([first, second], axis=1)

    def _place(self, length: int, generator: torch.Generator) -> tuple[int, ...]:
        ways = self.placements(length)
        return tuple(ways[int(torch.randint(0, len(ways), (1,), generator=generator))].tolist())


@dataclass(frozen=True, eq=False)
class ShiftedMeanScans:
    """Drawn scans, slices of all of them one after the other.

    Attributes:
        recipe: how they were drawn.
        lengths: slices of every scan, int64 ``[n]``.
        features: float32 ``[sum of lengths, m]``.
        starts: first slices of every scan's windows, of negative scans too, where nothing is planted.
        labels: 0 or 1, int64 ``[n]``.
        slice_labels: 0 or 1, int64 ``[sum of lengths]``.
    """

    recipe: ShiftedMean
    lengths: Tensor
    features: Tensor
    starts: tuple[tuple[int, ...], ...]
    labels: Tensor
    slice_labels: Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    def slices(self) -> Iterator[slice]:
        """Rows of every scan."""
        for begin, length in zip(_begins(self.lengths), self.lengths.tolist(), strict=True):
            yield slice(begin, begin + length)

    def bayes_slice_scores(self) -> list[np.ndarray]:
        """Probability of every slice to lie in a window, given that its scan is positive, float64 ``[s]`` each.

        In log space, so that long scans do not underflow.
        """
        scores = []
        for weights, places, length in self._evidence():
            posterior = np.exp(weights - np.logaddexp.reduce(weights))
            score = np.zeros(length)
            for column in places.T:
                hits = np.bincount(column, posterior, minlength=length)
                score += np.convolve(hits, np.ones(self.recipe.window))[:length]
            scores.append(score)
        return scores

    def bayes_scan_log_odds(self) -> np.ndarray:
        """Log odds of every scan to be positive, equal priors, float64 ``[n]``."""
        return np.array([np.logaddexp.reduce(weights) - np.log(len(places)) for weights, places, _ in self._evidence()])

    def _evidence(self) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """Of every scan: log likelihood ratio of each placement, the placements, and the number of slices."""
        recipe = self.recipe
        shifted = self.features[:, : recipe.shifted].double().numpy()
        ratio = (recipe.delta * shifted - recipe.delta**2 / 2).sum(axis=1)
        for rows in self.slices():
            places = recipe.placements(rows.stop - rows.start)
            total = np.concatenate([[0.0], np.cumsum(ratio[rows])])
            yield (total[places + recipe.window] - total[places]).sum(axis=1), places, rows.stop - rows.start


def make_shifted_mean_cohort(
    folder: str | os.PathLike[str],
    recipe: ShiftedMean | None = None,
    *,
    scans: Sequence[int] = (10000, 2500, 1000),
    seeds: Sequence[int] = (1001, 1002, 1003),
) -> Path:
    """Write drawn scans as bags with their slice labels, and the cohort table.

    Args:
        folder: gets ``bags/<scan_id>.h5`` and ``cohort.csv``.
        recipe: how scans are drawn; default the paper's.
        scans: number of scans in train, val and test.
        seeds: of the three splits.

    Returns:
        Path of ``cohort.csv``: scan_id, patient_id, path (empty), split and label (``negative`` or ``positive``).
    """
    folder, recipe = Path(folder), recipe or ShiftedMean()
    cases = []
    for split, n, seed in zip(SPLITS, scans, seeds, strict=True):
        drawn = recipe.draw(n, seed)
        for index, (rows, label) in enumerate(zip(drawn.slices(), drawn.labels.tolist(), strict=True)):
            scan_id = f"{split}_{index:05d}"
            _write_bag(folder / "bags" / f"{scan_id}.h5", scan_id, drawn, rows)
            cases.append(CohortSlide(slide_id=scan_id, patient_id=scan_id, split=split, label=label))
    cohort = Cohort(folder / "cohort.csv", tuple(cases), ("label",), ("negative", "positive"), id_column="scan_id")
    return cohort.write(folder / "cohort.csv")


def _write_bag(path: Path, scan_id: str, drawn: ShiftedMeanScans, rows: slice) -> None:
    features = drawn.features[rows].numpy()
    index = np.arange(len(features))
    positions = index * _SLICE_MM
    frame = ScanFrame(
        scan_id=scan_id,
        path=None,
        size=(1, 1),
        spacing=(1.0, 1.0),
        orientation=np.eye(3)[:2],
        origins=np.stack([0 * positions, 0 * positions, positions], axis=1),
        sop_uids=("",) * len(index),
        frame_numbers=(1,) * len(index),
    )
    extras = {"instance_labels": drawn.slice_labels[rows].numpy(), "positions_mm": positions}
    coords = np.stack([index, np.zeros_like(index)], axis=1)
    BagFile.write(path, features, coords, BagInfo(slide_id=scan_id, encoder="synthetic", scan=frame), extras)


def _begins(lengths: Tensor) -> list[int]:
    return [0, *torch.cumsum(lengths, 0)[:-1].tolist()]

"""Localisation of an evaluation's positive scans as files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_mil.errors import AnnotationError
from monai_mil.files import write_json
from monai_mil.heatmaps import scan_dice_counts
from monai_mil.metrics import DiceCounts, dice_summary
from monai_mil.savers.against_truth import TruthSaver
from monai_mil.savers.case import Case
from monai_mil.savers.class_map import class_scan_heatmap
from monai_mil.savers.dice_rule import SHARES, DiceRule, best_share
from monai_mil.savers.tables import write_table

logger = logging.getLogger(__name__)

_COUNTS = ("intersection", "predicted", "truth", "dice")
_SCAN_COLUMNS = ("scan_id", "patient_id", "threshold", *_COUNTS, *(f"extent_{name}" for name in _COUNTS))
_SLICE_COLUMNS = ("scan_id", "patient_id", "slice", "sop_uid", *_COUNTS)


@dataclass(frozen=True, eq=False)
class _ScanDice:
    """One positive scan: counts of its slices ``[n, t, 3]`` for one threshold or, while the best is sought, all."""

    scan_id: str
    patient_id: str
    sop_uids: tuple[str, ...]
    threshold: float
    highest: float
    counts: np.ndarray

    def whole(self, place: int) -> DiceCounts:
        """The voxels of all slices together."""
        return _counts(self.counts[:, place].sum(axis=0))

    def extent(self, place: int) -> DiceCounts:
        """Slices in place of voxels: those with any that is predicted, and those with any of the truth."""
        predicted, truth = self.counts[:, place, 1] > 0, self.counts[:, place, 2] > 0
        return DiceCounts(*(int(np.count_nonzero(each)) for each in (predicted & truth, predicted, truth)))

    def slices(self, place: int) -> dict[int, DiceCounts]:
        """The voxels of each slice that has any of the truth."""
        with_truth = np.flatnonzero(self.counts[:, place, 2])
        return {int(index): _counts(self.counts[index, place]) for index in with_truth}


class ScanDiceSaver(TruthSaver[_ScanDice]):
    """Writes ``dice.json``, ``dice.csv`` (a row a scan) and ``dice_slices.csv`` when an evaluator ends.

    The map of every positive scan is drawn smoothly on the scan's own voxels, 0 outside the lungs where they are known,
    and compared with the ground truth. ``dice.json`` holds the mean with its standard deviation and the Dice of all
    counts together, both with intervals from patients drawn again: ``scans`` of the voxels of each scan, ``slices`` of
    the voxels of each slice that has the finding, ``extents`` of slices in place of voxels (those with any voxel
    predicted, against those with the finding), which is what a method with one score a slice can show. Negative scans
    and those without label are counted; positive ones without a ground truth that can be read, or with an empty one,
    stand in ``failures`` and are reported again at the end. With several processes it tells of all.

    Args:
        output_dir: the run's folder.
        truth_dir: folder of the ground truth, ``<scan_id>``, ``<scan_id>_mask`` or ``<scan_id>_seg`` of any kind that
            :func:`monai_mil.scans.read_scan_truth` knows.
        key: which tensor of a case is compared, see :class:`SliceSaver`; ``"grad_cam"`` of ``GradCAMInferer``.
        class_index: the class whose map and label are compared; None for the last, the positive one of two.
        threshold: as of :class:`DiceSaver`: ``"otsu"`` over all scores that the network gave of the scan, a number,
            ``"best"`` for validation data, or the path of the ``dice.json`` that this wrote.
        value: the finding's label in a volume, or number or name of its segment in a DICOM segmentation; None for all.
        n: bootstrap resamples.
        seed: of the resampling.
        min_threshold: no threshold is lower.

    Raises:
        SettingsError: ``threshold`` is no number and names no file that holds one.
    """

    product = "Dice"
    failed_text = "{count} positive scans have no Dice"
    missing_text = "no Dice of {count} positive scans"
    normal_slides = False

    def __init__(
        self,
        output_dir: str,
        truth_dir: str,
        key: str | None = None,
        class_index: int | None = None,
        threshold: str | float = "otsu",
        value: int | str | None = None,
        n: int = 1000,
        seed: int = 0,
        min_threshold: float = 0.0,
    ) -> None:
        super().__init__(output_dir, truth_dir, key, class_index, value, n, seed)
        self.rule = DiceRule.read(threshold, min_threshold)

    def _results(self) -> tuple[Path, ...]:
        return tuple(self.folder / name for name in ("dice.json", "dice.csv", "dice_slices.csv"))

    def _measure(self, case: Case, positive: bool) -> _ScanDice:
        from monai_mil.scans import find_scan_truth, read_scan_truth

        heatmap, scores = class_scan_heatmap(case, self.key, self.class_index)
        path = find_scan_truth(self.truth_dir, case.name)
        truth = read_scan_truth(path, heatmap.frame, self.value)
        if not truth.any():
            raise AnnotationError(f"ground truth '{path}': it is empty, but the scan is labelled positive; check both")
        highest, threshold = float(scores.max()), np.nan
        if self.rule.source == "best":
            limits = np.maximum(SHARES * highest, self.rule.minimum)
        else:
            threshold = self.rule.threshold(scores, highest)
            limits = np.array([threshold])
        counts = scan_dice_counts(heatmap, limits, truth)
        return _ScanDice(case.name, case.patient_id, heatmap.frame.sop_uids, threshold, highest, counts)

    def _report(self, measured: list[_ScanDice]) -> None:
        best = self.rule.source == "best"
        place = best_share([_shares(scan) for scan in measured]) if best else 0
        rule = self.rule.of_best(place) if best else self.rule
        slices = [(scan, index, counts) for scan in measured for index, counts in scan.slices(place).items()]
        patients = [scan.patient_id for scan in measured]
        scans = dice_summary([scan.whole(place) for scan in measured], patients, self.n, self.seed)
        report = {
            "scans": scans,
            "slices": dice_summary(
                [counts for *_, counts in slices], [scan.patient_id for scan, *_ in slices], self.n, self.seed
            ),
            "extents": dice_summary([scan.extent(place) for scan in measured], patients, self.n, self.seed),
            "threshold": rule.record(),
            "negative": sum(reason == "negative" for reason in self._skipped.values()),
            "unlabelled": sum(reason == "unlabelled" for reason in self._skipped.values()),
            "failures": dict(self.failures),
        }
        write_json(self.signed(report), self.folder / "dice.json")
        rows = []
        for scan in measured:
            threshold = rule.of_share(scan.highest) if best else scan.threshold
            columns = (*_columns(scan.whole(place)), *_columns(scan.extent(place)))
            rows.append((scan.scan_id, scan.patient_id, f"{threshold:.6g}", *columns))
        write_table(self.folder / "dice.csv", _SCAN_COLUMNS, rows)
        rows = [
            (scan.scan_id, scan.patient_id, index + 1, scan.sop_uids[index], *_columns(counts))
            for scan, index, counts in slices
        ]
        write_table(self.folder / "dice_slices.csv", _SLICE_COLUMNS, rows)
        figures = (scans["mean"][name] for name in ("value", "low", "high"))
        logger.info("Dice %.4f (95 %% interval %.4f to %.4f) of %d scans", *figures, len(measured))


def _shares(scan: _ScanDice) -> Sequence[DiceCounts]:
    return [scan.whole(place) for place in range(scan.counts.shape[1])]


def _counts(row: np.ndarray) -> DiceCounts:
    return DiceCounts(*row.tolist())


def _columns(counts: DiceCounts) -> tuple[Any, ...]:
    return counts.intersection, counts.predicted, counts.truth, f"{counts.dice:.6g}"

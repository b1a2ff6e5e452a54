"""Localisation of an evaluation's positive slides as files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_mil.errors import AnnotationError
from monai_mil.files import write_json
from monai_mil.heatmaps import dice_counts, slide_dice, stitch
from monai_mil.metrics import SIZE_BOUNDS, DiceCounts, LesionDice, dice_summary, lesion_dice, lesion_size
from monai_mil.savers.against_truth import TruthSaver
from monai_mil.savers.case import Case
from monai_mil.savers.class_map import class_heatmap
from monai_mil.savers.dice_rule import SHARES, DiceRule, best_share
from monai_mil.savers.tables import write_table
from monai_mil.slides import AnnotationFrame

logger = logging.getLogger(__name__)

_SLIDE_COLUMNS = ("slide_id", "patient_id", "threshold", "intersection", "predicted", "truth", "dice")
_LESION_COLUMNS = (
    *("slide_id", "patient_id", "lesion", "size", "area_px", "area_mm2", "x0", "y0", "x1", "y1"),
    *("intersection", "predicted", "truth", "dice"),
)


@dataclass(frozen=True, eq=False)
class _SlideDice:
    """One positive slide: its counts for one threshold or, while the best is sought, for every share."""

    slide_id: str
    patient_id: str
    threshold: float
    highest: float
    counts: tuple[DiceCounts, ...]
    lesions: tuple[LesionDice, ...]


class DiceSaver(TruthSaver[_SlideDice]):
    """Writes ``dice.json``, ``dice.csv`` (a row a slide) and ``dice_lesions.csv`` when an evaluator ends.

    The map of every positive slide is stitched, drawn smoothly at ``mpp`` and compared with the ground truth, block by
    block. ``dice.json`` holds the mean over slides with its standard deviation, the Dice of all pixels together, both
    with intervals from patients drawn again, the same for lesions of each size, and what became of the other cases:
    negative ones and those without label are counted; positive ones without a ground truth that can be read, or with
    an empty one, stand in ``failures`` and are reported again at the end. With several processes it tells of all.

    Args:
        output_dir: the run's folder.
        truth_dir: folder of the ground truth, ``<slide_id>`` or ``<slide_id>_mask`` of any kind that
            :func:`monai_mil.slides.open_truth` knows.
        key: which tensor of a case is compared, see :class:`HeatmapSaver`; ``"grad_cam"`` of ``GradCAMInferer``.
        class_index: the class whose map and label are compared; None for the last, the positive one of two.
        threshold: what lies above is predicted, for every method alike: ``"otsu"`` over all tokens of the slide; a
            number; ``"best"``, for validation data, seeks the share of the slide's highest score with the highest mean
            Dice and keeps it in ``dice.json`` (lesions are not judged then); the path of such a ``dice.json`` takes the
            share and ``min_threshold`` from there, for test data.
        min_threshold: no threshold is lower.
        value: what the finding is called in the ground truth, see ``open_truth``.
        mpp: micrometres per pixel that is counted; the bounds of the sizes are in these pixels.
        size_bounds: areas that part small from moderate and moderate from large lesions.
        n: bootstrap resamples.
        seed: of the resampling.
        truth_frame: what a GeoJSON that does not say it counts from, see ``open_truth``.

    Raises:
        SettingsError: ``threshold`` is no number and names no file that holds one.
    """

    product = "Dice"
    failed_text = "{count} positive slides have no Dice"
    missing_text = "no Dice of {count} positive slides"
    normal_slides = False

    def __init__(
        self,
        output_dir: str,
        truth_dir: str,
        key: str | None = None,
        class_index: int | None = None,
        threshold: str | float = "otsu",
        value: int | str | None = None,
        mpp: float = 0.5,
        size_bounds: Sequence[float] = SIZE_BOUNDS,
        n: int = 1000,
        seed: int = 0,
        min_threshold: float = 0.0,
        truth_frame: AnnotationFrame = "qupath",
    ) -> None:
        super().__init__(output_dir, truth_dir, key, class_index, value, n, seed)
        self.truth_frame = truth_frame
        self.rule = DiceRule.read(threshold, min_threshold)
        self.mpp = mpp
        self.size_bounds = tuple(size_bounds)

    def _results(self) -> tuple[Path, ...]:
        return tuple(self.folder / name for name in ("dice.json", "dice.csv", "dice_lesions.csv"))

    def _measure(self, case: Case, positive: bool) -> _SlideDice:
        from monai_mil.slides import BlockGrid, find_lesions, find_truth, open_truth

        heatmap = class_heatmap(case, self.key, self.class_index)
        name, patient, frame = case.name, case.patient_id, heatmap.frame
        path = find_truth(self.truth_dir, name)
        truth = open_truth(
            path, value=self.value, level0_size=frame.level0_size, bounds=frame.bounds, frame=self.truth_frame
        )
        grid = BlockGrid(frame.level0_size, self.mpp / frame.mpp)
        canvas, highest = stitch(heatmap), float(heatmap.scores.max())
        if self.rule.source == "best":
            table = dice_counts(canvas, np.maximum(SHARES * highest, self.rule.minimum), truth, grid)
            _refuse_empty(path, int(table[0, 2]))
            return _SlideDice(name, patient, np.nan, highest, tuple(DiceCounts(*row) for row in table.tolist()), ())
        threshold = self.rule.threshold(heatmap, highest)
        lesions = find_lesions(truth, grid)
        _refuse_empty(path, len(lesions))
        found = slide_dice(canvas, threshold, lesions, frame.tile_size_level0 / grid.pixel)
        named = zip(lesions.area.tolist(), (lesions.box * grid.pixel).tolist(), found.lesions, strict=True)
        single = tuple(
            LesionDice(name, patient, number, area, counts, tuple(box))
            for number, (area, box, counts) in enumerate(named, 1)
        )
        return _SlideDice(name, patient, threshold, highest, (found.whole,), single)

    def _report(self, measured: list[_SlideDice]) -> None:
        best = best_share([each.counts for each in measured]) if self.rule.source == "best" else 0
        rule = self.rule.of_best(best) if self.rule.source == "best" else self.rule
        counts = [each.counts[best] for each in measured]
        lesions = [lesion for each in measured for lesion in each.lesions]
        slides = dice_summary(counts, [each.patient_id for each in measured], self.n, self.seed)
        report = {
            "slides": slides,
            "lesions": lesion_dice(lesions, self.size_bounds, self.n, self.seed),
            "threshold": rule.record(),
            "mpp": self.mpp,
            "size_bounds": list(self.size_bounds),
            "negative": sum(reason == "negative" for reason in self._skipped.values()),
            "unlabelled": sum(reason == "unlabelled" for reason in self._skipped.values()),
            "failures": dict(self.failures),
        }
        write_json(self.signed(report), self.folder / "dice.json")
        rows = []
        for each, count in zip(measured, counts, strict=True):
            threshold = rule.of_share(each.highest) if rule.source == "best" else each.threshold
            rows.append((each.slide_id, each.patient_id, f"{threshold:.6g}", *_columns(count)))
        write_table(self.folder / "dice.csv", _SLIDE_COLUMNS, rows)
        write_table(self.folder / "dice_lesions.csv", _LESION_COLUMNS, [self._lesion_row(each) for each in lesions])
        figures = (slides["mean"][name] for name in ("value", "low", "high"))
        logger.info("Dice %.4f (95 %% interval %.4f to %.4f) of %d slides", *figures, len(counts))

    def _lesion_row(self, lesion: LesionDice) -> tuple[Any, ...]:
        size = lesion_size(lesion.area, self.size_bounds)
        area = f"{lesion.area * self.mpp**2 * 1e-6:.6g}"
        box = (f"{side:g}" for side in lesion.box)
        name = lesion.slide_id, lesion.patient_id, lesion.lesion
        return (*name, size, lesion.area, area, *box, *_columns(lesion.counts))


def _columns(counts: DiceCounts) -> tuple[Any, ...]:
    return counts.intersection, counts.predicted, counts.truth, f"{counts.dice:.6g}"


def _refuse_empty(path: Path, found: int) -> None:
    if found == 0:
        raise AnnotationError(f"ground truth '{path}': it is empty, but the slide is labelled positive; check both")

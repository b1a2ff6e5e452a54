"""Tile-level localisation of an evaluation as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from monai_mil.errors import AnnotationError
from monai_mil.files import write_json
from monai_mil.heatmaps import localise
from monai_mil.metrics import LocalisedSlide, localisation_report
from monai_mil.savers.against_truth import TruthSaver
from monai_mil.savers.case import Case
from monai_mil.savers.class_map import class_heatmap
from monai_mil.savers.tables import write_table
from monai_mil.slides import AnnotationFrame

_COLUMNS = ("slide_id", "patient_id", "dice", "specificity", "strict", "by_lesion")


class LocalisationSaver(TruthSaver[LocalisedSlide]):
    """Writes ``localisation.json`` and ``localisation.csv`` (a row a slide) when an evaluator ends.

    Of positive slides: Dice of tiles, success (every tumour tile above the threshold; every lesion with one), and FROC;
    of normal ones: specificity, and false positives of the FROC. Slides without label are left out; positive ones whose
    ground truth is missing, cannot be read or is empty stand in ``failures`` and are reported again at the end. With
    several processes it tells of all.

    Args:
        output_dir: the run's folder.
        truth_dir: folder of the ground truth of positive slides, see :class:`DiceSaver`.
        key: which tensor of a case is compared, see :class:`HeatmapSaver`.
        class_index: the class whose scores and label are compared; None for the last, the positive one of two.
        threshold: tiles above are predicted.
        rescale: bring every slide's scores to 0 ... 1 first, as attention needs; a normal slide then always has a tile
            at 1, and its specificity is below 1.
        min_overlap: a tile is tumour if at least this share of it is; None asks its centre.
        value: what the finding is called in the ground truth, see :func:`monai_mil.slides.open_truth`.
        fp_denominator: see :func:`monai_mil.metrics.froc`.
        interpolation: see there.
        n: bootstrap resamples.
        seed: of the resampling.
        truth_frame: what a GeoJSON that does not say it counts from, see :func:`monai_mil.slides.open_truth`.
    """

    product = "localisation"
    failed_text = "{count} slides have no localisation"
    missing_text = "no localisation of {count} slides"
    normal_slides = True

    def __init__(
        self,
        output_dir: str,
        truth_dir: str,
        key: str | None = None,
        class_index: int | None = None,
        threshold: float = 0.5,
        rescale: bool = True,
        min_overlap: float | None = None,
        value: int | str | None = None,
        fp_denominator: Literal["all", "normal"] = "all",
        interpolation: Literal["linear", "step"] = "linear",
        n: int = 1000,
        seed: int = 0,
        truth_frame: AnnotationFrame = "qupath",
    ) -> None:
        super().__init__(output_dir, truth_dir, key, class_index, value, n, seed)
        self.truth_frame = truth_frame
        self.threshold = threshold
        self.rescale = rescale
        self.min_overlap = min_overlap
        self.fp_denominator = fp_denominator
        self.interpolation = interpolation

    def _results(self) -> tuple[Path, ...]:
        return tuple(self.folder / name for name in ("localisation.json", "localisation.csv"))

    def _measure(self, case: Case, positive: bool) -> LocalisedSlide:
        from monai_mil.slides import find_truth, open_truth

        heatmap = class_heatmap(case, self.key, self.class_index)
        truth = None
        if positive:
            path = find_truth(self.truth_dir, case.name)
            frame = heatmap.frame
            truth = open_truth(
                path, value=self.value, level0_size=frame.level0_size, bounds=frame.bounds, frame=self.truth_frame
            )
        figures = localise(heatmap, truth, self.threshold, self.rescale, self.min_overlap)
        if truth is not None and "dice" not in figures:
            raise AnnotationError(
                f"ground truth '{truth.path}': empty, but the slide is labelled positive; correct one"
            )
        return LocalisedSlide(case.name, case.patient_id, **figures)

    def _report(self, measured: list[LocalisedSlide]) -> None:
        report = localisation_report(measured, self.fp_denominator, self.interpolation, self.n, self.seed)
        write_json(self.signed({**report, "failures": sorted(self.failures)}), self.folder / "localisation.json")
        columns = (*_COLUMNS, "lesions", "lesions_detected", "false_detections")
        write_table(self.folder / "localisation.csv", columns, map(_row, measured))


def _row(slide: LocalisedSlide) -> list[Any]:
    hits = slide.froc
    assert hits is not None
    counts = [len(hits.lesions), int((hits.lesions > 0).sum()), len(hits.false)]
    return [*(_cell(getattr(slide, name)) for name in _COLUMNS), *counts]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, bool) else f"{value:.6g}" if isinstance(value, float) else str(value)

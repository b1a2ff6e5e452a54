"""The handler that writes what a network says of every slice of a scan."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from monai_mil.dicom import Algorithm, scan_source
from monai_mil.files import replacing
from monai_mil.heatmaps import (
    ScanHeatmap,
    display_window,
    export_curve,
    export_montage,
    export_nifti,
    export_nifti_mask,
    window_text,
)
from monai_mil.names import file_stem
from monai_mil.savers.case import Case
from monai_mil.savers.dicom_formats import (
    OF_SCANS,
    REPORT,
    DicomCase,
    check_dicom_formats,
    dicom_findings,
    dicom_path,
    named_algorithm,
    remove_dicom,
)
from monai_mil.savers.finding import finding_attributes, scale_attributes
from monai_mil.savers.prediction import Prediction, read_prediction
from monai_mil.savers.scan_case import ScanCase
from monai_mil.savers.scores import DrawnMap, check_labels, drawn_maps, read_score_rows, read_scores, usual_class
from monai_mil.savers.slice_tables import scan_row, slice_rows
from monai_mil.savers.tables import TableSaver, csv_text
from monai_mil.savers.threshold import ThresholdRule, require_threshold
from monai_mil.scans import Window

logger = logging.getLogger(__name__)

_FORMATS = ("curve", "montage", "nifti")
_MASK = "mask"


class SliceSaver(TableSaver):
    """Writes the slice scores of every scan: as tables, as a heatmap file, and as pictures.

    In ``output_dir``, for every scan:

    - ``slices/<scan_id>.csv``, one row a slice: ``slice`` (counted from 1, from the feet to the head), ``sop_uid``,
      ``frame`` (within the instance or the volume's file, from 1), ``position_mm``, ``score`` (or ``score_<class>``
      where the scores differ by class), ``attention`` (mean of the heads), ``attention_<head>`` where there are
      several, and ``label`` where slices are labelled (1, 0 or empty);
    - ``heatmaps/<scan_id>.h5`` and, as chosen by ``formats``, ``<scan_id>_curve.png``, ``<scan_id>_montage.png``,
      ``<scan_id>.nii.gz`` (of cells the smooth map) and ``<scan_id>_mask.nii.gz`` (its foreground) beside it; of a
      DICOM series also ``<scan_id>_seg.dcm`` (the foreground), ``_fractional.dcm`` and ``_pm.dcm`` (the smooth map),
      ``_sc.dcm`` (the montage) and ``_sr.dcm`` (the answer), see :mod:`monai_mil.dicom`;
    - a row of ``scans.csv``: ``scan_id, patient_id, pred, prob_<class>...``, ``attention_center_mm`` and
      ``attention_width_mm`` (mean and standard deviation over the slices' positions; of the heads' mean, then of each
      head where there are several), and number, position, SOPInstanceUID and score of the most suspicious slice.

    Every scan is seen as axial slices. A coronal or sagittal series has a row for each of its own instances: the score
    is the highest of the map on that instance; attention and label, which are of axial slices, are empty.

    Scores of a bag of another depth than its scan's, or of a scan blanked outside the lungs, are brought back to the
    scan's own slices and are 0 outside the lungs.

    A case needs ``coords`` and scores (see ``key``), and an image whose meta data holds the scan's frame, which
    ``LoadBagd`` and ``EmbedScand`` give. The montage needs the scan itself; where that is not found the montage is
    left out and the log says so. A scan whose results cannot be written is logged, kept in ``failures`` and reported
    again at the end; the others are written.

    Args:
        output_dir: the run's folder.
        formats: any of ``curve``, ``montage``, ``nifti`` and ``mask``, and of the DICOM objects ``seg``,
            ``fractional``, ``pm``, ``sc`` and ``sr``. A scan that is no DICOM series has none of these, which is told.
        classes: names of the classes, in the order of the network's outputs; None leaves the prediction out. A scan for
            which the class drawn is not called is drawn in pale colours, and its pictures say so.
        multi_label: classes do not exclude each other.
        window: of the montage, in Hounsfield units: a window, ``"center/width"``, or a preset's name.
        slices: most slices in the montage.
        key: which tensor of a case is drawn: ``[n]``, ``[rows, n]`` or ``[rows, n, h, w]``. None takes the first there
            is of ``heatmap``, ``scores``, ``instance_scores`` (rows are classes) and ``attention`` (rows are heads,
            and averaged).
        class_index: the class to draw where rows are classes; None draws the second of two exclusive ones if the first
            says that nothing is there ("normal"), else the most probable. ``"all"`` draws every class, in files
            ``heatmaps/<scan_id>_<class>`` of the same endings (its number where ``classes`` is None); the tables then
            tell of the one that None draws.
        name: what the figures call the scores; default the key.
        threshold: scores strictly above are foreground, which ``mask`` holds and the pictures outline: ``"otsu"`` over
            all scores the network gave, ``"network"`` for the network's own, a number, or None for none.
        min_threshold: no threshold is lower.
        operating_points: the probability from which on a class is called, one for each of the network's outputs or
            that of the second of two exclusive classes; where the class drawn is not called a scan has no foreground
            (its threshold is infinite). None draws foreground on every scan.
        algorithm: what DICOM objects call the network; its weights' digest and these settings are added.
        options: further arguments for a DICOM object, by format: ``{"seg": {"terms": terms}}``.

    Raises:
        ValueError: an unknown format or threshold.
        SettingsError: an unknown window, masks or segmentations without a threshold, DICOM objects without highdicom.
    """

    by_slide = True
    product = "slice scores"
    failed_text = "the slice scores of {count} scans failed"
    missing_text = "no complete slice scores of {count} scans"

    def __init__(
        self,
        output_dir: str,
        formats: Sequence[str] = _FORMATS,
        classes: Sequence[str] | None = None,
        multi_label: bool = False,
        window: Window | str = "40/400",
        slices: int = 8,
        key: str | None = None,
        class_index: int | Literal["all"] | None = None,
        name: str | None = None,
        threshold: Literal["otsu", "network"] | float | None = None,
        min_threshold: float = 0.0,
        operating_points: Sequence[float] | None = None,
        algorithm: Algorithm | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__(Path(output_dir, "scans.csv"))
        known = (*_FORMATS, _MASK, *OF_SCANS)
        unknown = sorted((set(formats) | set(options or {})) - set(known))
        if unknown:
            raise ValueError(f"unknown slice formats {', '.join(unknown)}; choose from {', '.join(known)}")
        check_dicom_formats(formats)
        require_threshold(formats, threshold, "slice_saver")
        check_labels(class_index, classes)
        self.folder = Path(output_dir)
        self.formats = tuple(form for form in formats if form not in OF_SCANS)
        self.dicom_formats = tuple(form for form in formats if form in OF_SCANS)
        self.algorithm = algorithm
        self.options = {"sc": {"window": window}, **(options or {})}
        self.classes = None if classes is None else tuple(map(str, classes))
        self.multi_label = multi_label
        self.window = display_window(window)
        self.slices = slices
        self.key = key
        self.class_index = usual_class(class_index, classes, multi_label)
        self.name = name
        self.rule = ThresholdRule(threshold, min_threshold, operating_points, key)

    def _collect(self, case: Case) -> dict[str, str]:
        plain = file_stem(case.name)
        maps = {
            drawn.stem(plain): self._heatmap(case, drawn)
            for drawn in drawn_maps(case, self.key, self.class_index, self.classes)
        }
        for stem, heatmap in maps.items():
            heatmap.save(self.folder / "heatmaps" / f"{stem}.h5")
        told = maps[plain] if plain in maps else self._heatmap(case, DrawnMap(None))
        row = scan_row(told, self._prediction(case), case.name) | self.signature
        self._write_slices(case, told)
        for stem, heatmap in maps.items():
            self._write_pictures(heatmap, case.name, stem)
        self._write_dicom(case, maps, told)
        return row

    def _prediction(self, case: Case) -> Prediction | None:
        if self.classes is None:
            return None
        return read_prediction(case, self.classes, self.multi_label, self.rule.operating_points)

    def _heatmap(self, case: Case, drawn: DrawnMap) -> ScanHeatmap:
        key, scores, _ = read_scores(case, self.key, drawn.class_index, self.multi_label)
        scan = ScanCase.of(case)
        attention, labels = case.values("attention"), case.values("instance_labels")
        if attention is not None and scores.ndim == 1 and np.allclose(scores, np.atleast_2d(attention).mean(axis=0)):
            key = "attention"
        prediction = self._prediction(case)
        points = self.rule.operating_points
        said = prediction.attributes() if prediction else {}
        said |= finding_attributes(case, drawn.class_index, self.classes, self.multi_label, points)
        said |= scale_attributes(case, key, scores)
        heatmap = ScanHeatmap(
            scan.frame,
            scan.scores(scores),
            drawn.title(self.name or key),
            self.signed(said) | {"window": window_text(self.window)},
            attention=None if attention is None else scan.attention(np.atleast_2d(attention)),
            labels=None if labels is None or (labels < 0).all() else scan.labels(labels),
            lungs=scan.lungs,
        )
        return replace(heatmap, threshold=self.rule.threshold(scores, case, drawn.class_index, self.multi_label))

    def _write_slices(self, case: Case, heatmap: ScanHeatmap) -> None:
        _, rows, _ = read_score_rows(case, self.key)
        scan = ScanCase.of(case)
        highest = np.stack([replace(heatmap, scores=scan.scores(row)).instance_scores for row in rows])
        scores = {"score": heatmap.instance_scores}
        if (highest != highest[0]).any():
            names = self.classes or range(len(rows))
            scores = {f"score_{name}": values for name, values in zip(names, highest, strict=True)}
        with replacing(self.folder / "slices" / f"{file_stem(case.name)}.csv") as temporary:
            temporary.write_text(csv_text(slice_rows(heatmap, scores), header=True), encoding="utf-8")

    def _write_pictures(self, heatmap: ScanHeatmap, scan_id: str, stem: str) -> None:
        for form in self.formats:
            try:
                self._export(form, heatmap, scan_id, stem)
            except Exception as error:
                self._fail(scan_id, error, form if stem == file_stem(scan_id) else f"{stem} {form}")

    def _write_dicom(self, case: Case, maps: Mapping[str, ScanHeatmap], told: ScanHeatmap) -> None:
        place, plain = self.folder / "heatmaps", file_stem(case.name)
        for stem in {plain: told, **maps}:
            remove_dicom(place, stem)
        if not self.dicom_formats:
            return
        settings = {**asdict(self.rule), "classes": self.classes, "multi_label": self.multi_label}
        algorithm = named_algorithm(self.algorithm, self.model_digest, settings)
        try:
            dicom = DicomCase(scan_source(told.frame), algorithm, self.options)
        except Exception as error:
            self._fail(case.name, error, "DICOM")
            return
        for form in self.dicom_formats:
            for stem, heatmap in {plain: told}.items() if form == REPORT else maps.items():
                try:
                    path = dicom_path(place, stem, form)
                    if form == REPORT:
                        points = self.rule.operating_points
                        findings = dicom_findings(case, self.classes, self.multi_label, points)
                        dicom.write_answer(findings, heatmap, path)
                    else:
                        dicom.write_map(form, heatmap, path)
                except Exception as error:
                    self._fail(case.name, error, form if stem == plain else f"{stem} {form}")

    def _export(self, form: str, heatmap: ScanHeatmap, scan_id: str, stem: str) -> None:
        place = self.folder / "heatmaps"
        if form == "curve":
            export_curve(heatmap, place / f"{stem}_curve.png", title=scan_id)
        elif form == "nifti":
            export_nifti(heatmap, place / f"{stem}.nii.gz", smooth=True)
        elif form == _MASK:
            export_nifti_mask(heatmap, place / f"{stem}_mask.nii.gz")
        elif heatmap.frame.path is None or not Path(heatmap.frame.path).exists():
            logger.warning("no montage of scan '%s': the scan was not found at '%s'", scan_id, heatmap.frame.path)
        else:
            path = place / f"{stem}_montage.png"
            export_montage(heatmap, None, path, window=self.window, slices=self.slices, title=scan_id)

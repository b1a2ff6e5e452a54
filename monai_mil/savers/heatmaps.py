"""The handler that writes the heatmap of every slide, for use in a bundle's ``handlers``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ignite.engine import Engine

from monai_mil.dicom import Algorithm, slide_source
from monai_mil.errors import CohortError
from monai_mil.heatmaps import Heatmap, assemble, export_geojson, export_mask, export_png, export_tiff
from monai_mil.leftovers import remove_leftovers
from monai_mil.names import file_stem
from monai_mil.savers.base import CaseSaver
from monai_mil.savers.case import Case
from monai_mil.savers.dicom_formats import (
    OF_SLIDES,
    REPORT,
    DicomCase,
    check_dicom_formats,
    dicom_findings,
    dicom_path,
    named_algorithm,
    remove_dicom,
)
from monai_mil.savers.finding import finding_attributes, scale_attributes
from monai_mil.savers.prediction import answer_attributes
from monai_mil.savers.scores import DrawnMap, check_labels, drawn_maps, read_scores, usual_class
from monai_mil.savers.threshold import ThresholdRule, require_threshold

_EXPORTS: dict[str, tuple[str, Callable[..., Path]]] = {
    "png": (".png", export_png),
    "geojson": (".geojson", export_geojson),
    "tiff": (".tif", export_tiff),
    "mask": ("_mask.tif", export_mask),
}


class HeatmapSaver(CaseSaver[None]):
    """Writes ``<output_dir>/heatmaps/<slide_id>.h5`` of every case, and further formats beside it.

    A case needs ``coords`` and scores (see ``key``), and an image whose meta data holds the slide's frame, which
    ``LoadBagd`` and ``EmbedSlided`` give. A slide whose heatmap cannot be written is logged, kept in ``failures`` and
    reported again at the end; the others are written.

    Args:
        output_dir: the run's folder.
        formats: any of ``png``, ``geojson``, ``tiff`` and ``mask``, beside the HDF5 file, and of the DICOM objects
            (:mod:`monai_mil.dicom`) ``seg``, ``fractional``, ``pm``, ``ann``, ``sc`` and ``sr``, in files
            ``<slide_id>_<format>.dcm``. A slide that is no DICOM has none of these, which is told.
        options: further arguments for an export, by format: ``{"geojson": {"regions": 90, "percentile": true}}``.
        key: which tensor of a case is drawn: ``[n]``, ``[rows, n]`` or ``[rows, n, h, w]``. None takes the first there
            is of ``heatmap``, ``scores``, ``instance_scores`` (rows are classes) and ``attention`` (rows are heads,
            and averaged).
        class_index: the class to draw where rows are classes; None draws the second of two exclusive ones if the first
            says that nothing is there ("normal"), else the most probable. ``"all"`` draws every class, in files
            ``<slide_id>_<class>`` of the same endings (its number where ``classes`` is None).
        name: what the figures call the scores; default the key.
        classes: names of the classes, for titles; None leaves the prediction out of them. A slide for which the class
            drawn is not called is drawn in pale colours, and its figures say so.
        multi_label: classes do not exclude each other.
        threshold: where the foreground begins that ``mask`` holds, ``png`` outlines and ``geojson`` has regions of:
            ``"otsu"`` over all tokens of the slide, ``"network"`` for the network's own, a number, or None for none.
            The HDF5 file keeps all scores and the threshold.
        min_threshold: no threshold is lower.
        operating_points: the probability from which on a class is called, one for each of the network's outputs or
            that of the second of two exclusive classes; where the class drawn is not called a slide has no foreground
            (its threshold is infinite). None draws foreground on every slide.
        algorithm: what DICOM objects call the network; its weights' digest and these settings are added.

    Raises:
        ValueError: an unknown format or threshold.
        SettingsError: masks or segmentations without a threshold, or DICOM objects without highdicom.
    """

    by_slide = True
    product = "heatmap"
    failed_text = "the heatmaps of {count} slides failed"
    missing_text = "no complete heatmap of {count} slides"
    resumable = True

    def __init__(
        self,
        output_dir: str,
        formats: Sequence[str] = (),
        options: Mapping[str, Mapping[str, Any]] | None = None,
        key: str | None = None,
        class_index: int | Literal["all"] | None = None,
        name: str | None = None,
        classes: Sequence[str] | None = None,
        multi_label: bool = False,
        threshold: Literal["otsu", "network"] | float | None = None,
        min_threshold: float = 0.0,
        operating_points: Sequence[float] | None = None,
        algorithm: Algorithm | None = None,
    ) -> None:
        super().__init__()
        known = (*_EXPORTS, *OF_SLIDES)
        unknown = sorted((set(formats) | set(options or {})) - {*known, "h5"})
        if unknown:
            raise ValueError(f"unknown heatmap formats {', '.join(unknown)}; choose from {', '.join(known)}")
        check_dicom_formats(formats)
        require_threshold(formats, threshold, "heatmap_saver")
        check_labels(class_index, classes)
        self.folder = Path(output_dir, "heatmaps")
        self.formats = tuple(form for form in formats if form not in ("h5", *OF_SLIDES))
        self.dicom_formats = tuple(form for form in formats if form in OF_SLIDES)
        self.algorithm = algorithm
        self.options = options or {}
        self.key = key
        self.class_index = usual_class(class_index, classes, multi_label)
        self.name = name
        self.classes = None if classes is None else tuple(map(str, classes))
        self.multi_label = multi_label
        self.rule = ThresholdRule(threshold, min_threshold, operating_points, key)
        self._owners: dict[str, str] = {}

    def heatmap(self, case: Case) -> Heatmap:
        """The map of a case that says best where the finding is; of several classes that of the most probable.

        Raises:
            CohortError: there are no scores, no coordinates or no frame.
        """
        drawn = drawn_maps(case, self.key, self.class_index, self.classes)
        return self._assemble(case, next((each for each in drawn if each.class_index == case.probable_class), drawn[0]))

    def _collect(self, case: Case) -> None:
        dicom = self._dicom_case(case) if self.dicom_formats else None
        for label, make in self._maps(case).items():
            self._save(case.name, label, make, dicom)
        if dicom is not None and REPORT in self.dicom_formats:
            try:
                findings = dicom_findings(case, self.classes, self.multi_label, self.rule.operating_points)
                dicom.write_answer(findings, None, dicom_path(self.folder, file_stem(case.name), REPORT))
            except Exception as error:
                self._fail(case.name, error, REPORT)

    def _dicom_case(self, case: Case) -> DicomCase | None:
        """What DICOM objects of a case refer to; None, which is told, where there can be none."""
        settings = {**asdict(self.rule), "classes": self.classes, "multi_label": self.multi_label}
        try:
            source = slide_source(case.frame)
        except Exception as error:
            self._fail(case.name, error, "DICOM")
            return None
        return DicomCase(source, named_algorithm(self.algorithm, self.model_digest, settings), self.options)

    def _maps(self, case: Case) -> dict[str, Callable[[], Heatmap | None]]:
        """What makes each of the case's maps, by what tells it from the others (empty for the main one)."""
        drawn = drawn_maps(case, self.key, self.class_index, self.classes)
        return {each.label: partial(self._assemble, case, each) for each in drawn}

    def _save(self, slide_id: str, label: str, make: Callable[[], Heatmap | None], dicom: DicomCase | None) -> None:
        stem = f"{file_stem(slide_id)}_{label}" if label else file_stem(slide_id)
        owner = self._owners.setdefault(stem, slide_id)
        if owner != slide_id:
            taken = CohortError(f"the file name '{stem}' is that of a map of slide '{owner}'; rename one of the slides")
            self._fail(slide_id, taken, f"{label} h5".strip())
            return
        for suffix in (".h5", *(suffix for suffix, _ in _EXPORTS.values())):
            with suppress(OSError):  # none, or one that cannot be replaced either, which is told below
                (self.folder / f"{stem}{suffix}").unlink()
        remove_dicom(self.folder, stem)
        try:
            heatmap = make()
            if heatmap is None:
                return
            heatmap.save(self.folder / f"{stem}.h5")
        except Exception as error:
            self._fail(slide_id, error, f"{label} h5".strip())
            return
        for form in self.formats:
            if form == "mask" and heatmap.threshold is None:
                continue
            suffix, export = _EXPORTS[form]
            try:
                export(heatmap, self.folder / f"{stem}{suffix}", **self.options.get(form, {}))
            except Exception as error:
                self._fail(slide_id, error, f"{label} {form}".strip())
        if dicom is None:
            return
        for form in self.dicom_formats:
            try:
                if form != REPORT:
                    dicom.write_map(form, heatmap, dicom_path(self.folder, stem, form))
            except Exception as error:
                self._fail(slide_id, error, f"{label} {form}".strip())

    def _assemble(self, case: Case, drawn: DrawnMap) -> Heatmap:
        key, scores, coords = read_scores(case, self.key, drawn.class_index, self.multi_label)
        name = drawn.title(self.name or key)
        attributes = self._attributes(case, drawn.class_index) | scale_attributes(case, key, scores)
        heatmap = assemble(scores, coords, case.frame, name=name, attributes=attributes)
        return replace(heatmap, threshold=self.rule.threshold(heatmap, case, drawn.class_index, self.multi_label))

    def _attributes(self, case: Case, class_index: int | None) -> dict[str, Any]:
        """What a heatmap of a class keeps of the network's answer."""
        points = self.rule.operating_points
        finding = finding_attributes(case, class_index, self.classes, self.multi_label, points)
        if self.classes is None:
            return self.signed(finding)
        return self.signed({**answer_attributes(case, self.classes, self.multi_label, points), **finding})

    def _begin(self) -> None:
        super()._begin()
        remove_leftovers(self.folder)
        self._owners = {}

    def _write(self, kept: Mapping[str, None], engine: Engine) -> None:
        """Everything is written already, slide by slide."""

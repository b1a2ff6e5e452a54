"""Handlers that write an evaluator's predictions and heatmaps, for use in a bundle's ``handlers``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from monai_mil.errors import CohortError
from monai_mil.heatmaps import Heatmap, assemble, export_geojson, export_mask, export_png, export_tiff
from monai_mil.savers.case import case_id, cases, read_frame
from monai_mil.savers.prediction import answer_attributes, read_prediction
from monai_mil.savers.scores import DrawnMap, check_labels, drawn_maps, read_scores
from monai_mil.savers.tables import RowSaver
from monai_mil.savers.threshold import ThresholdRule

logger = logging.getLogger(__name__)

_EXPORTS: dict[str, tuple[str, Callable[..., Path]]] = {
    "png": (".png", export_png),
    "geojson": (".geojson", export_geojson),
    "tiff": (".tif", export_tiff),
    "mask": ("_mask.tif", export_mask),
}


class HeatmapSaver:
    """Writes ``<output_dir>/heatmaps/<slide_id>.h5`` of every case, and further formats beside it.

    A case needs ``coords`` and scores (see ``key``), and an image whose meta data holds the slide's frame, which
    ``LoadBagd`` and ``EmbedSlided`` give. A slide whose heatmap cannot be written is logged, kept in ``failures`` and
    reported again at the end; the others are written.

    Args:
        output_dir: the run's folder.
        formats: any of ``png``, ``geojson``, ``tiff`` and ``mask``, beside the HDF5 file.
        options: further arguments for an export, by format: ``{"geojson": {"regions": 90, "percentile": true}}``.
        key: which tensor of a case is drawn: ``[n]``, ``[rows, n]`` or ``[rows, n, h, w]``. None takes the first there
            is of ``heatmap``, ``scores``, ``instance_scores`` (rows are classes) and ``attention`` (rows are heads,
            and averaged).
        class_index: the class to draw where rows are classes; None draws the most probable one. ``"all"`` draws every
            class, in files ``<slide_id>_<class>`` of the same endings (its number where ``classes`` is None).
        name: what the figures call the scores; default the key.
        classes: names of the classes, for titles; None leaves the prediction out of them.
        multi_label: classes do not exclude each other.
        threshold: where the foreground begins that ``mask`` holds, ``png`` outlines and ``geojson`` has regions of:
            ``"otsu"`` over all tokens of the slide, ``"network"`` for the network's own, a number, or None for none.
            The HDF5 file keeps all scores and the threshold.
        min_threshold: no threshold is lower.
        operating_points: the probability from which on a class is called, one for each of the network's outputs or
            that of the second of two exclusive classes; where the class drawn is not called a slide has no foreground
            (its threshold is infinite). None draws foreground on every slide.

    Raises:
        ValueError: an unknown format or threshold, or masks without a threshold.
    """

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
    ) -> None:
        unknown = sorted((set(formats) | set(options or {})) - {*_EXPORTS, "h5"})
        if unknown:
            raise ValueError(f"unknown heatmap formats {', '.join(unknown)}; choose from {', '.join(_EXPORTS)}")
        if "mask" in formats and threshold is None:
            raise ValueError('the format "mask" needs a threshold: "otsu", "network" or a number')
        check_labels(class_index, classes)
        self.folder = Path(output_dir, "heatmaps")
        self.formats = tuple(form for form in formats if form != "h5")
        self.options = options or {}
        self.key = key
        self.class_index = class_index
        self.name = name
        self.classes = classes
        self.multi_label = multi_label
        self.rule = ThresholdRule(threshold, min_threshold, operating_points, key)
        self.failures: dict[str, str] = {}
        self._owners: dict[str, str] = {}

    def attach(self, engine: Any) -> None:
        """Write at every iteration of ``engine`` and report at its end."""
        from ignite.engine import Events

        engine.add_event_handler(Events.STARTED, self._forget)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._report)

    def __call__(self, engine: Any) -> None:
        """Write the heatmaps of the engine's current iteration."""
        for item in cases(engine):
            try:
                maps = self._maps(item)
            except CohortError as error:
                self._fail(case_id(item), "h5", error)
                continue
            for label, make in maps.items():
                self._write(case_id(item), label, make)

    def raise_failures(self) -> None:
        """Raise a CohortError that names every slide whose heatmap could not be written, if any."""
        if self.failures:
            listed = "\n  ".join(self.failures.values())
            raise CohortError(f"the heatmaps of {len(self.failures)} slides failed, the others are done:\n  {listed}")

    def _maps(self, item: Mapping[str, Any]) -> dict[str, Callable[[], Heatmap]]:
        """What makes each of the case's maps, by what tells it from the others (empty for the main one)."""
        drawn = drawn_maps(item, self.key, self.class_index, self.classes)
        return {each.label: partial(self._assemble, item, each) for each in drawn}

    def _write(self, slide_id: str, label: str, make: Callable[[], Heatmap]) -> None:
        stem = f"{slide_id}_{label}" if label else slide_id
        owner = self._owners.setdefault(stem, slide_id)
        if owner != slide_id:
            taken = CohortError(f"the file name '{stem}' is that of a map of slide '{owner}'; rename one of the slides")
            self._fail(slide_id, f"{label} h5".strip(), taken)
            return
        try:
            heatmap = make()
            heatmap.save(self.folder / f"{stem}.h5")
        except Exception as error:
            self._fail(slide_id, f"{label} h5".strip(), error)
            return
        for form in self.formats:
            if form == "mask" and heatmap.threshold is None:
                continue
            suffix, export = _EXPORTS[form]
            try:
                export(heatmap, self.folder / f"{stem}{suffix}", **self.options.get(form, {}))
            except Exception as error:
                self._fail(slide_id, f"{label} {form}".strip(), error)

    def _assemble(self, item: Mapping[str, Any], drawn: DrawnMap) -> Heatmap:
        key, scores, coords = read_scores(item, self.key, drawn.class_index)
        name = drawn.title(self.name or key)
        heatmap = assemble(scores, coords, read_frame(item), name=name, attributes=self._attributes(item))
        return replace(heatmap, threshold=self.rule.threshold(heatmap, item, drawn.class_index, self.multi_label))

    def _attributes(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """What a heatmap keeps of the network's answer."""
        if self.classes is None:
            return {}
        return answer_attributes(item, self.classes, self.multi_label, self.rule.operating_points)

    def _fail(self, slide_id: str, form: str, error: Exception) -> None:
        message = f"{slide_id} ({form}): {error}"
        logger.error("heatmap of %s", message)
        self.failures[slide_id] = "\n  ".join(filter(None, [self.failures.get(slide_id), message]))

    def _forget(self, engine: Any) -> None:
        self.failures.clear()
        self._owners.clear()

    def _report(self, engine: Any) -> None:
        if self.failures:
            logger.error("no complete heatmap of %d slides: %s", len(self.failures), ", ".join(self.failures))


class PredictionSaver(RowSaver):
    """Writes ``<output_dir>/predictions.csv``: one row a slide or scan, replaced as a whole when the engine ends.

    Columns: ``slide_id`` (or ``scan_id``), ``patient_id, label, pred, prob_<class>...``; multi-label cohorts also have
    ``label_<class>`` (1, 0 or empty) and join names in ``label`` and ``pred`` by ``;``; with operating points there is
    ``operating_point_<class>`` of each. While the engine runs, finished
    rows stand in ``predictions.partial.csv``, so a run that is killed loses nothing but its last case. Under
    DistributedDataParallel the rows of all processes come together in one table.

    Args:
        output_dir: the run's folder.
        classes: names of the classes, in the order of the network's outputs.
        multi_label: classes do not exclude each other.
        filename: name of the table.
        operating_points: the probability from which on each class is called in ``pred``, or that of the second of two
            exclusive classes; None calls the most probable class, or all of at least 0.5.

    Examples:
        >>> import torch
        >>> from ignite.engine import Engine
        >>> from monai_mil.savers import PredictionSaver
        >>> engine = Engine(lambda engine, cases: cases)  # what a MONAI evaluator is, with its network's answers
        >>> PredictionSaver(str(folder), classes=["normal", "tumor"]).attach(engine)
        >>> _ = engine.run([[{"slide_id": "S-1", "pred": torch.tensor([0.25, 0.75])}]])
        >>> (folder / "predictions.csv").read_text().split()
        ['slide_id,patient_id,label,pred,prob_normal,prob_tumor', 'S-1,S-1,,tumor,0.25,0.75']
    """

    def __init__(
        self,
        output_dir: str,
        classes: Sequence[str],
        multi_label: bool = False,
        filename: str = "predictions.csv",
        operating_points: Sequence[float] | None = None,
    ) -> None:
        super().__init__(Path(output_dir, filename))
        self.classes = tuple(classes)
        self.multi_label = multi_label
        self.operating_points = operating_points

    def _row(self, item: Mapping[str, Any]) -> dict[str, str]:
        return read_prediction(item, self.classes, self.multi_label, self.operating_points).row()

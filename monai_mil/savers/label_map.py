"""A network's answer on a scan as a label map on the source's own grid, for viewers and DICOM writers."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms import MapTransform

from monai_mil.heatmaps import ScanHeatmap
from monai_mil.model_card import read_model
from monai_mil.savers.case import Case
from monai_mil.savers.prediction import read_prediction
from monai_mil.savers.scan_case import ScanCase
from monai_mil.savers.scores import read_scores, usual_class
from monai_mil.savers.threshold import ThresholdRule


class ScanLabelMapd(MapTransform):
    """Set a label map of a scan on the grid of its source, and what a client is told of it.

    ``data[key]`` becomes a ``MetaTensor`` ``[1, i, j, k]``, uint8: 0 where the smooth map lies at or below the
    threshold, above it 1 to ``levels``, the highest scores the highest label. Its shape and affine are those of the
    image that was given to ``EmbedScand``, or of the bag's source (columns, rows, slices), whatever its orientation.
    ``data["result"]`` is plain JSON: ``scan_id``, the probability of every class, the ``prediction`` in words, the
    ``threshold`` (null where nothing is called) and the ``highest`` slice with its SOPInstanceUID, position and score;
    ``note`` where there is something to know of the model.

    Args:
        keys: key of the network's answer, as :class:`monai_mil.training.UnpackOutputd` leaves it; scores stand beside
            it, and the image's ``meta`` holds the scan's frame.
        classes: names of the classes, in the order of the network's outputs.
        levels: how many labels; scores between threshold and maximum are divided evenly among them.
        multi_label: classes do not exclude each other.
        key: which scores are drawn, see :class:`SliceSaver`.
        class_index: the class to draw where scores differ by class; None draws the second of two exclusive
            ones if the first says that nothing is there ("normal"), else the most probable.
        threshold: ``"otsu"`` over all scores, ``"network"`` for the network's own, or a number.
        min_threshold: no threshold is lower.
        operating_points: as of :class:`SliceSaver`.
        model: file of the weights, read for every scan, since a server's model may be replaced while it runs: its
            card's operating points stand above the given ones, and its ``note`` is told.
        allow_missing_keys: skip absent keys.

    Raises:
        CohortError: there are no scores, or no frame; names the scan.
        SettingsError: ``model`` cannot be read, or has the card of other weights.
        ValueError: ``levels`` is not 1 to 255, or the threshold is unknown.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        classes: Sequence[str] = ("negative", "positive"),
        *,
        levels: int = 1,
        multi_label: bool = False,
        key: str | None = None,
        class_index: int | None = None,
        threshold: Literal["otsu", "network"] | float = "otsu",
        min_threshold: float = 0.0,
        operating_points: Sequence[float] | None = None,
        model: str | Path | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if not 1 <= levels <= 255:
            raise ValueError(f"levels {levels}: give 1 to 255")
        self.classes = tuple(classes)
        self.levels = levels
        self.multi_label = multi_label
        self.key = key
        self.class_index = usual_class(class_index, classes, multi_label)
        self.model = model
        self.rule = ThresholdRule(threshold, min_threshold, operating_points, key)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Make the label map of ``data[key]``; the input dictionary is left as it is."""
        made = dict(data)
        for key in self.key_iterator(made):
            case = Case.of({str(name): value for name, value in made.items()} | {"pred": made[key]})
            name, scores, _ = read_scores(case, self.key, self.class_index, self.multi_label)
            scan = ScanCase.of(case)
            heatmap = ScanHeatmap(scan.frame, scan.scores(scores), name, lungs=scan.lungs)
            card = read_model(self.model)
            rule = replace(self.rule, operating_points=card.operating_points or self.rule.operating_points)
            threshold = rule.threshold(scores, case, self.class_index, self.multi_label)
            assert threshold is not None
            made[key] = self._label_map(heatmap, threshold)
            made["result"] = self._result(case, heatmap, threshold, rule.operating_points)
            if card.note:
                made["result"]["note"] = card.note
        return made

    def _label_map(self, heatmap: ScanHeatmap, threshold: float) -> MetaTensor:
        labels = np.zeros(heatmap.frame.shape, np.uint8)
        if np.isfinite(threshold):
            edges = np.linspace(threshold, float(heatmap.scores.max()), self.levels + 1)[:-1]
            for index in range(len(heatmap)):
                labels[index] = np.searchsorted(edges, heatmap.slice_map(index, smooth=True))
                if heatmap.lungs is not None:
                    labels[index] *= heatmap.lungs.inside(index)
        source = heatmap.frame.source
        voxels = np.ascontiguousarray(heatmap.frame.to_source(labels).T)
        affine = torch.from_numpy(source.even_affine)
        meta = {"spatial_shape": np.array(voxels.shape), "original_affine": source.even_affine}
        return MetaTensor(torch.from_numpy(voxels)[None], affine=affine, meta=meta)

    def _result(
        self, case: Case, heatmap: ScanHeatmap, threshold: float, points: Sequence[float] | None
    ) -> dict[str, Any]:
        prediction = read_prediction(case, self.classes, self.multi_label, points)
        frame, scores = heatmap.frame.instances, heatmap.instance_scores
        peak = int(scores.argmax())
        return {
            "scan_id": case.name,
            "prediction": prediction.text,
            "probabilities": dict(zip(self.classes, prediction.prob.tolist(), strict=True)),
            "threshold": threshold if np.isfinite(threshold) else None,
            "highest": {
                "slice": peak + 1,
                "sop_uid": frame.sop_uids[peak],
                "frame": frame.frame_numbers[peak],
                "position_mm": float(frame.positions_mm[peak]),
                "score": float(scores[peak]),
            },
        }

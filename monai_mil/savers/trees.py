"""A handler that writes the maps of a network that looks at several magnifications."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from monai_mil.heatmaps import Heatmap, assemble
from monai_mil.savers.case import Case
from monai_mil.savers.heatmaps import HeatmapSaver
from monai_mil.savers.scores import DrawnMap, drawn_class
from monai_mil.savers.threshold import ThresholdRule
from monai_mil.savers.tree_case import LevelTiles, looked_at

UNIT = {"limits": (0.0, 1.0)}
RANK = {**UNIT, "meaning": "share of the tissue ranked lower"}


class TreeHeatmapSaver(HeatmapSaver):
    """Writes the map of all magnifications as :class:`HeatmapSaver` does, and beside it what each of them saw.

    For networks such as :class:`monai_mil.networks.HAGMIL` on packed bags (:mod:`monai_mil.networks.blocks.tree`). All
    formats are written of every map, masks only where a map has a foreground:

    - ``<slide_id>``: the search in one picture, one value for every tile of the finest level (``nested_rank``): the
      share of the tissue that the network thought less worth a look. A rank: it reaches 1 on every slide, and says
      where the search went, not whether there is anything.
    - ``<slide_id>_level<j>``: the attention over the tiles that a level looked at, ``j`` 0 for the finest and 1 for
      tiles twice as wide, drawn as multiples of an even share.
    - ``<slide_id>_evidence``: the probability that the finest level's instance head gives its class on each of the
      tiles that it looked at. Foreground is what lies above 0.5, on a slide for which the class is called; there is
      none on others, because attention has a maximum on these too.

    Args:
        output_dir: the run's folder.
        settings: further arguments of :class:`HeatmapSaver`, without ``key`` and ``name``. ``class_index`` is the class
            of the evidence; None takes the second of two exclusive classes, else the most probable one. ``threshold``
            and ``min_threshold`` are of the first map.

    Raises:
        ValueError: see there, or all classes are asked for.
    """

    def __init__(self, output_dir: str, **settings: Any) -> None:
        super().__init__(output_dir, key="instance_scores", name="nested rank", **settings)
        if self.class_index == "all":
            raise ValueError("the maps of several magnifications are of one class; give its index, or None")

    def heatmap(self, case: Case) -> Heatmap:
        """The evidence where the network gives any, else the search in one picture, see :class:`TreeHeatmapSaver`."""
        if case.values("instance_logits") is None:
            return super().heatmap(case)
        return self._evidence(case, list(looked_at(case))[-1]) or super().heatmap(case)

    def _maps(self, case: Case) -> dict[str, Callable[[], Heatmap | None]]:
        levels = list(looked_at(case))
        maps = super()._maps(case)
        maps |= {f"level{level.number}": partial(self._level, case, level) for level in levels}
        if case.values("instance_logits") is not None:
            maps["evidence"] = partial(self._evidence, case, levels[-1])
        return maps

    def _assemble(self, case: Case, drawn: DrawnMap) -> Heatmap:
        fused = super()._assemble(case, drawn)
        return replace(fused, attributes={**fused.attributes, **RANK})

    def _level(self, case: Case, level: LevelTiles) -> Heatmap | None:
        if not len(level.rows):
            return None  # of several slides of a patient, one at which this level did not look
        name = f"attention of level {level.number}"
        attributes = {**self._attributes(case, self._evidence_class(case)), "uniform": 1 / level.looked_at}
        return assemble(level.attention, level.coords, level.frame, name=name, attributes=attributes)

    def _evidence(self, case: Case, finest: LevelTiles) -> Heatmap | None:
        if not len(finest.rows):
            return None
        logits = case.values("instance_logits")
        assert logits is not None
        index = self._evidence_class(case)
        name = "class evidence" if self.classes is None else f"evidence of {self.classes[index]}"
        prob = 1 / (1 + np.exp(-logits[index, finest.rows].astype(np.float64)))
        attributes = {**self._attributes(case, self._evidence_class(case)), **UNIT}
        heatmap = assemble(prob, finest.coords, finest.frame, name=name, attributes=attributes)
        points = self.rule.operating_points or (0.5,) * case.output_count
        gate = ThresholdRule(0.5, operating_points=points)
        return replace(heatmap, threshold=gate.threshold(heatmap, case, index, self.multi_label))

    def _evidence_class(self, case: Case) -> int:
        assert self.class_index != "all"
        return drawn_class(case, self.class_index, self.multi_label)

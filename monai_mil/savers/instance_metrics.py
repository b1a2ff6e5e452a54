"""AUROC over single instances inside a MONAI engine."""

from __future__ import annotations

import math
import warnings

import numpy as np
from ignite.engine import Engine
from ignite.metrics import Metric

from monai_mil.metrics import Array, auroc
from monai_mil.savers.case import read_cases
from monai_mil.savers.gather import gather_cases
from monai_mil.savers.slice_cases import SliceCase


class InstanceAUROC(Metric):
    """AUROC over the labelled instances of all bags together: the key metric of training on single instances.

    Reads ``instance_labels`` and ``mask`` of the batch, and ``instance_logits`` of the output or, where a network has
    none, its ``scores``. Needs :class:`monai_mil.training.UnpackOutputd` in the engine's ``postprocessing``.
    """

    def __init__(self) -> None:
        super().__init__()

    def reset(self) -> None:
        """Begin an epoch."""
        self._instances: list[tuple[Array, Array]] = []

    def iteration_completed(self, engine: Engine) -> None:
        """Add the bags of an iteration."""
        for case in read_cases(engine):
            found = SliceCase.of(case, ("instance_logits", "scores"))
            self.update((found.scores, found.labels))

    def update(self, output: tuple[Array, Array]) -> None:
        """Add scores and labels ``[n]`` of a bag; labels below 0 are unknown."""
        scores, labels = output
        self._instances.append((scores[labels >= 0], labels[labels >= 0] == 1))

    def compute(self) -> float:
        """The AUROC; NaN, with a warning, if the instances are of one kind or training has diverged."""
        instances = gather_cases(self._instances)
        scores = np.concatenate([np.empty(0), *(score for score, _ in instances)])
        labels = np.concatenate([np.empty(0, dtype=bool), *(label for _, label in instances)])
        if np.isnan(scores).any():
            warnings.warn("no instance AUROC: scores are not numbers; training has diverged", stacklevel=2)
            return math.nan
        if labels.all() or not labels.any():
            warnings.warn(
                f"no instance AUROC: {len(labels)} labelled instances, {labels.sum()} of them positive; "
                "use a split with instance_labels of both kinds",
                stacklevel=2,
            )
            return math.nan
        return auroc(scores, labels)

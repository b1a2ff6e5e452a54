"""What handlers share that measure an evaluation's slides against their ground truth and write files at the end."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import ignite.distributed as idist

from monai_mil.errors import CohortError
from monai_mil.heatmaps import Heatmap
from monai_mil.savers.case import case_id, cases
from monai_mil.savers.class_map import class_heatmap, is_positive
from monai_mil.savers.gather import gather_cases

logger = logging.getLogger(__name__)


class Measured(Protocol):
    """What is kept of a slide."""

    @property
    def slide_id(self) -> str:
        """Its name."""
        ...


Slide = TypeVar("Slide", bound=Measured)


class MeasuringSaver(ABC, Generic[Slide]):
    """Measures slides one by one; a slide that fails is logged, kept in ``failures`` and reported again at the end.

    A subclass says what it measures in ``measure``, and whether normal slides are measured too in ``normal_slides``.

    Args:
        output_dir: the run's folder.
        truth_dir: folder of the ground truth.
        key: which tensor of a case is compared.
        class_index: the class whose scores and label are compared; None for the last, the positive one of two.
        value: what the finding is called in the ground truth.
        n: bootstrap resamples.
        seed: of the resampling.
    """

    measure: str
    normal_slides: bool

    def __init__(
        self,
        output_dir: str,
        truth_dir: str,
        key: str | None,
        class_index: int | None,
        value: int | str | None,
        n: int,
        seed: int,
    ) -> None:
        self.folder = Path(output_dir)
        self.truth_dir = Path(truth_dir)
        self.key = key
        self.class_index = class_index
        self.value = value
        self.n = n
        self.seed = seed
        self.failures: dict[str, str] = {}
        self._skipped: dict[str, str] = {}
        self._measured: list[Slide] = []

    def attach(self, engine: Any) -> None:
        """Measure at every iteration of ``engine`` and write at its end."""
        from ignite.engine import Events

        engine.add_event_handler(Events.STARTED, lambda _: self._begin())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, lambda _: self._finish())

    def __call__(self, engine: Any) -> None:
        """Measure the cases of the engine's current iteration."""
        for item in cases(engine):
            name, positive = case_id(item), is_positive(item, self.class_index)
            if positive is None or not (positive or self.normal_slides):
                self._skipped[name] = "unlabelled" if positive is None else "negative"
                continue
            try:
                self._measured.append(self._measure(item, positive))
            except Exception as error:
                logger.error("%s of %s: %s", self.measure, name, error)
                self.failures[name] = f"{name}: {error}"

    def raise_failures(self) -> None:
        """Raise a CohortError that names every slide that could not be measured, if any."""
        if self.failures:
            listed = "\n  ".join(self.failures.values())
            raise CohortError(f"{self._failed} have no {self.measure}, the others are done:\n  {listed}")

    @property
    def _failed(self) -> str:
        return f"{len(self.failures)} {'slides' if self.normal_slides else 'positive slides'}"

    def _compared(self, item: Mapping[str, Any]) -> tuple[str, str, Heatmap]:
        """Name and patient of a case, and the map that is compared."""
        name = case_id(item)
        return name, str(item.get("patient_id", name)), class_heatmap(item, self.key, self.class_index)

    def _begin(self) -> None:
        self.failures, self._skipped, self._measured = {}, {}, []

    def _finish(self) -> None:
        measured = {each.slide_id: each for each in gather_cases(self._measured)}
        self._skipped = dict(gather_cases(list(self._skipped.items())))
        self.failures = dict(sorted(gather_cases(list(self.failures.items()))))
        if idist.get_rank() == 0:
            self._write([measured[name] for name in sorted(measured)])
        if self.failures:
            logger.error("no %s of %s: %s", self.measure, self._failed, ", ".join(self.failures))

    @abstractmethod
    def _measure(self, item: Mapping[str, Any], positive: bool) -> Slide:
        """What is kept of one case."""

    @abstractmethod
    def _write(self, measured: list[Slide]) -> None:
        """The files, of the slides of all processes in the order of their names."""

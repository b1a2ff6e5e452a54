"""What handlers share that measure an evaluation's slides or scans against their ground truth and write files."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, TypeVar

from ignite.engine import Engine

from monai_mil.savers.base import CaseSaver
from monai_mil.savers.case import Case

Measured = TypeVar("Measured")


class TruthSaver(CaseSaver[Measured]):
    """Measures slides or scans one by one against their ground truth; those without a label are left out, and counted.

    A subclass says in ``normal_slides`` whether normal ones are measured too; else they are left out and counted.

    Args:
        output_dir: the run's folder.
        truth_dir: folder of the ground truth.
        key: which tensor of a case is compared.
        class_index: the class whose scores and label are compared; None for the last, the positive one of two.
        value: what the finding is called in the ground truth.
        n: bootstrap resamples.
        seed: of the resampling.
    """

    normal_slides: ClassVar[bool]

    by_slide = True

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
        super().__init__()
        self.folder = Path(output_dir)
        self.truth_dir = Path(truth_dir)
        self.key = key
        self.class_index = class_index
        self.value = value
        self.n = n
        self.seed = seed
        self._skipped: dict[str, str] = {}

    def _collect(self, case: Case) -> Measured | None:
        positive = case.is_positive(self.class_index)
        if positive is None or not (positive or self.normal_slides):
            self._skipped[case.name] = "unlabelled" if positive is None else "negative"
            return None
        return self._measure(case, positive)

    def _begin(self) -> None:
        super()._begin()
        self._skipped = {}

    def _finish(self, engine: Engine) -> None:
        self._skipped = self.gathered(self._skipped)
        super()._finish(engine)

    def _write(self, kept: Mapping[str, Measured], engine: Engine) -> None:
        self.failures = dict(sorted(self.failures.items()))
        self._report([kept[name] for name in sorted(kept)])

    @abstractmethod
    def _measure(self, case: Case, positive: bool) -> Measured:
        """What is kept of one case."""

    @abstractmethod
    def _report(self, measured: list[Measured]) -> None:
        """Write the files, of the cases of all processes in the order of their names."""

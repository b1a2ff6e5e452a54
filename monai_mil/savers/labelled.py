"""Probabilities beside labels, from which the metrics and the operating points of an evaluation are made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import ignite.distributed as idist
import numpy as np
from ignite.engine import Engine

from monai_mil.savers.base import CaseSaver
from monai_mil.savers.case import Case, read_items


@dataclass(frozen=True, eq=False)
class LabelledCase:
    """Whose it is, the network's probabilities ``[c]``, and the label ``[1 or c]``, NaN where unknown."""

    patient_id: str
    prob: np.ndarray
    label: np.ndarray


class LabelledSaver(CaseSaver[LabelledCase]):
    """Collects ``pred`` (probabilities) and ``label`` of every case; one without a name counts as a patient's own."""

    def _read(self, engine: Engine) -> Iterator[Case]:
        for number, item in enumerate(read_items(engine), len(self._kept)):
            yield Case.of(item, unnamed=f"case {number} of process {idist.get_rank()}")

    def _collect(self, case: Case) -> LabelledCase:
        if case.answer is None or case.label is None:
            raise ValueError(f"{case.text}: metrics need 'pred' and 'label'; keep both in the engine's output")
        return LabelledCase(case.patient_id, case.answer.astype(float), case.label)

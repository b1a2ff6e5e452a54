"""A dataset for prediction: a case that cannot be read is reported and the others go on."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset

from monai_mil.errors import CohortError, MonaiMILError
from monai_mil.files import replacing

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FailedCase:
    """A case that :class:`ResilientDataset` left out, and why.

    Attributes:
        case_id: the slide's or scan's name.
        status: what became of it in two words, the ``status`` of its error.
        message: the error.
    """

    case_id: str
    status: str
    message: str


def write_failures(table: Path, column: str, failures: Sequence[FailedCase]) -> None:
    """Write ``failed.csv``, one row a case, or remove it where none failed; the names stand under ``column``.

    Raises:
        OutputError: it cannot be written.
    """
    if not failures:
        table.unlink(missing_ok=True)
        return
    with replacing(table) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([column, "status", "message"])
        writer.writerows((case.case_id, case.status, case.message) for case in failures)


class ResilientDataset(IterableDataset):
    """Yields the transformed items of ``data`` in order and leaves out those whose file is unusable.

    A failed item is logged when it is met and kept in ``failures``; ``raise_failures`` makes the program end with an
    error once the rest is done. Use it with ``num_workers=0``: reading is already prefetched by the slide reader, and
    what a worker process keeps in ``failures`` is lost.

    Args:
        data: items as ``Cohort.datalist`` gives them.
        transform: what makes a network's input of an item.
        output_dir: gets ``failed.csv``, one row a failed item: ``slide_id`` or ``scan_id``, ``status`` (``no tissue``,
            ``no lungs``, ``unreadable``, ...) and ``message``. It is there if, and only if, the last pass had any.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable[[Any], Any],
        output_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.data = data
        self.transform = transform
        self.table = None if output_dir is None else Path(output_dir, "failed.csv")
        self.failures: list[FailedCase] = []

    def __iter__(self) -> Iterator[Any]:
        self.failures.clear()
        if self.table is not None and self.table.exists():
            self.table.unlink()
        for item in self.data:
            try:
                transformed = self.transform(dict(item))
            except Exception as error:
                # An error kept here would keep its traceback too, and all that the case has opened.
                if not self._fail(item, error):
                    raise
                continue
            yield transformed
        logger.info("%s", self._count())

    def raise_failures(self) -> None:
        """Raise a CohortError that lists every item left out, if any was."""
        if self.failures:
            listed = "\n  ".join(failure.message for failure in self.failures)
            raise CohortError(
                f"{len(self.failures)} of {len(self.data)} cases failed, the others are done:\n  {listed}\n"
                f"{self._count()}"
            )

    def _count(self) -> str:
        """How many cases there were and what became of them, the last line of a run."""
        done = len(self.data) - len(self.failures)
        return f"{len(self.data)} cases found: {done} done, {len(self.failures)} left out"

    def _fail(self, item: Mapping[str, Any], error: Exception) -> bool:
        """Report the case; False where the program itself is at fault."""
        cause = _user_error(error)
        if cause is None:
            return False
        logger.error("%s", str(cause))
        column = "scan_id" if "scan_id" in item else "slide_id"
        self.failures.append(FailedCase(str(item.get(column, "")), cause.status, str(cause)))
        if self.table is not None:
            write_failures(self.table, column, self.failures)
        return True


def _user_error(error: BaseException | None) -> MonaiMILError | None:
    """The input error behind ``error``, which MONAI's transforms wrap, or None where the program itself is at fault."""
    while error is not None and not isinstance(error, MonaiMILError):
        error = error.__cause__
    return error

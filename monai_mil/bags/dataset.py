"""A dataset for prediction: a case that cannot be read is reported and the others go on."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from monai_mil.cells import text_cell
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
        writer.writerows((case.case_id, case.status, text_cell(case.message)) for case in failures)


class ResilientDataset(IterableDataset):
    """Yields the transformed items of ``data`` in order and leaves out those whose file is unusable.

    A failed item is logged when it is met and kept in ``failures``; ``raise_failures`` makes the program end with an
    error once the rest is done. The worker processes of a loader share the items among them, in an order that is the
    same for single items as without workers, and their failures are known after ``raise_failures`` or ``collect``.

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
        self._notes = tempfile.mkdtemp(prefix="monai-mil-")
        weakref.finalize(self, _remove_own, self._notes, os.getpid())

    def __iter__(self) -> Iterator[Any]:
        self.failures.clear()
        worker = get_worker_info()
        if worker is None:
            if self.table is not None and self.table.exists():
                self.table.unlink()
            for note in self._all_notes():
                note.unlink()
        else:
            self._note(worker.id).write_text("", encoding="utf-8")
        share = range(len(self.data)) if worker is None else range(worker.id, len(self.data), worker.num_workers)
        for index in share:
            try:
                transformed = self.transform(dict(self.data[index]))
            except Exception as error:
                # An error kept here would keep its traceback too, and all that the case has opened.
                if not self._fail(index, error, None if worker is None else worker.id):
                    raise
                continue
            yield transformed
        if worker is None:
            logger.info("%s", self._count())

    def collect(self) -> None:
        """Add what worker processes left out to ``failures``, and write it into ``failed.csv``."""
        notes = self._all_notes()
        if not notes:
            return
        noted = [json.loads(line) for path in notes for line in path.read_text(encoding="utf-8").splitlines()]
        self.failures[:] = [FailedCase(*case) for _, case in sorted(noted)]
        if self.table is not None:
            write_failures(self.table, self._column, self.failures)
        logger.info("%s", self._count())

    def raise_failures(self) -> None:
        """Raise a CohortError that lists every item left out, if any was."""
        self.collect()
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

    @property
    def _column(self) -> str:
        columns = ("scan_id", "slide_id", "patient_id")
        return next((name for name in columns if self.data and name in self.data[0]), "slide_id")

    def _note(self, worker: int) -> Path:
        """Where a worker process writes what it leaves out."""
        return Path(self._notes, f"{worker}.jsonl")

    def _all_notes(self) -> list[Path]:
        return sorted(Path(self._notes).glob("*.jsonl"))

    def _fail(self, index: int, error: Exception, worker: int | None) -> bool:
        """Report the case; False where the program itself is at fault."""
        cause = _user_error(error)
        if cause is None:
            return False
        logger.error("%s", str(cause))
        failed = FailedCase(str(self.data[index].get(self._column, "")), cause.status, str(cause))
        self.failures.append(failed)
        if worker is not None:
            with self._note(worker).open("a", encoding="utf-8") as file:
                file.write(json.dumps([index, [failed.case_id, failed.status, failed.message]]) + "\n")
        elif self.table is not None:
            write_failures(self.table, self._column, self.failures)
        return True


def _remove_own(folder: str, process: int) -> None:
    """Remove a folder in the process that made it; its workers inherit the wish."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


def _user_error(error: BaseException | None) -> MonaiMILError | None:
    """The input error behind ``error``, which MONAI's transforms wrap, or None where the program itself is at fault."""
    while error is not None and not isinstance(error, MonaiMILError):
        error = error.__cause__
    return error

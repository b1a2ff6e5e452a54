"""Tables that grow while an engine runs and are whole, or absent, under their final name."""

from __future__ import annotations

import csv
import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_mil.files import replacing, write_error
from monai_mil.savers.case import cases


class RunningTable:
    """A CSV table of one row a case, named by its first column; a case that comes again replaces its row.

    While rows come in they stand in ``<name>.partial.csv`` (one a process), so that a run that is killed loses nothing
    but its last case.

    Args:
        path: the table.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[str, Mapping[str, str]] = {}

    @property
    def partial(self) -> Path:
        """Where this process's rows stand meanwhile."""
        import ignite.distributed as idist

        rank = f".{idist.get_rank()}" if idist.get_world_size() > 1 else ""
        return self.path.with_name(f"{self.path.stem}.partial{rank}{self.path.suffix}")

    def start(self) -> None:
        """Begin an empty table; the finished one of an earlier run stays until this one is."""
        self._rows.clear()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.partial.unlink(missing_ok=True)

    def add(self, rows: Sequence[Mapping[str, str]]) -> None:
        """Add rows of the same columns.

        Raises:
            OutputError: they cannot be written.
        """
        if not rows:
            return
        try:
            with self.partial.open("a", encoding="utf-8", newline="") as file:
                file.write(csv_text(rows, header=not self._rows))
        except OSError as error:
            raise write_error(self.partial, error) from error
        self._rows |= {next(iter(row.values())): row for row in rows}

    def finish(self) -> None:
        """Write the rows of all processes under the table's own name.

        Raises:
            OutputError: they cannot be written.
        """
        import ignite.distributed as idist

        if idist.get_world_size() > 1:
            import torch.distributed as dist

            gathered: list[dict[str, Mapping[str, str]]] = [{} for _ in range(idist.get_world_size())]
            dist.all_gather_object(gathered, self._rows)
            self._rows = {name: row for rows in gathered for name, row in rows.items()}
        if idist.get_rank() == 0 and self._rows:
            with replacing(self.path) as temporary:
                temporary.write_text(csv_text(self._rows.values(), header=True), encoding="utf-8")
        self.partial.unlink(missing_ok=True)


class RowSaver(ABC):
    """Handler that keeps a :class:`RunningTable` of an evaluator's cases.

    Args:
        path: the table.
    """

    def __init__(self, path: Path) -> None:
        self.table = RunningTable(path)

    def attach(self, engine: Any) -> None:
        """Collect at every iteration of ``engine`` and write the table at its end."""
        from ignite.engine import Events

        engine.add_event_handler(Events.STARTED, lambda _: self.table.start())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, lambda _: self.table.finish())

    def __call__(self, engine: Any) -> None:
        """Add the rows of the engine's current iteration.

        Raises:
            OutputError: they cannot be written.
        """
        self.table.add([self._row(item) for item in cases(engine)])

    @abstractmethod
    def _row(self, item: Mapping[str, Any]) -> dict[str, str]:
        """The row of one case; its first column names it."""


def csv_text(rows: Iterable[Mapping[str, str]], *, header: bool) -> str:
    """Rows of the same columns as CSV."""
    rows = list(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()

"""Tables of one row a case that grow while an engine runs and are whole, or absent, under their final name."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine

from monai_mil.files import replacing, write_error
from monai_mil.savers.base import CaseSaver


class TableSaver(CaseSaver[dict[str, str]]):
    """Keeps a row of every case and writes them as one CSV table.

    While rows come in they stand in ``<name>.partial.csv`` (one a process), so that a run that is killed loses nothing
    but its last case. The table of an earlier run is removed when this one begins.

    Args:
        path: the table.
    """

    resumable = True

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def partial(self) -> Path:
        """Where this process's rows stand meanwhile."""
        rank = f".{idist.get_rank()}" if idist.get_world_size() > 1 else ""
        return self.path.with_name(f"{self.path.stem}.partial{rank}{self.path.suffix}")

    def _results(self) -> tuple[Path, ...]:
        return (self.path,)

    def _begin(self) -> None:
        super()._begin()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.partial.unlink(missing_ok=True)

    def _keep(self, name: str, kept: dict[str, str]) -> None:
        try:
            with self.partial.open("a", encoding="utf-8", newline="") as file:
                file.write(csv_text([kept], header=not self._kept))
        except OSError as error:
            raise write_error(self.partial, error) from error
        super()._keep(name, kept)

    def _finish(self, engine: Engine) -> None:
        super()._finish(engine)
        self.partial.unlink(missing_ok=True)

    def _write(self, kept: Mapping[str, dict[str, str]], engine: Engine) -> None:
        if kept:
            with replacing(self.path) as temporary:
                temporary.write_text(csv_text(kept.values(), header=True), encoding="utf-8")


def csv_text(rows: Iterable[Mapping[str, str]], *, header: bool) -> str:
    """Rows of the same columns as CSV."""
    rows = list(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a whole CSV table, or leave the one that is there.

    Raises:
        OutputError: it cannot be written.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)

"""Features of a slide that is not finished: whole rows in a flat file, and a header that says what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from monai_mil.bags import first_non_finite_row
from monai_mil.errors import BagError
from monai_mil.files import replacing, write_error


class PartialRows:
    """Rows appended one batch after the other; a killed run leaves them, the next one goes on behind them.

    Args:
        path: the rows; the header is the same name with ``.json``.
        header: everything the rows depend on. Rows found under another header are thrown away.
        shape: of the finished array, ``[n, d]`` or ``[n, d, h, w]``.
        batch_size: rows are kept in whole batches, so that a resumed slide is encoded in the same batches.

    Attributes:
        done: number of rows there are.

    Raises:
        OutputError: the folder cannot be written.
    """

    def __init__(self, path: Path, header: dict[str, Any], shape: tuple[int, ...], batch_size: int) -> None:
        self.path = path
        self._header = header_of(path)
        self._stored = (shape[0], *shape[2:], shape[1])  # token-major, as the bag file
        self._row_bytes = 2 * int(np.prod(shape[1:]))
        content = json.dumps(header | {"shape": shape, "batch_size": batch_size}, sort_keys=True)
        try:
            same = self._header.read_text() == content and self.path.exists()
        except OSError:
            same = False
        if same:
            rows = min(self.path.stat().st_size // self._row_bytes, shape[0])
            self.done = rows if rows == shape[0] else rows // batch_size * batch_size
        else:
            discard_rows(path)
            with replacing(self._header) as partial:
                partial.write_text(content)
            self.done = 0
        try:
            self._file = self.path.open("ab")
            self._file.truncate(self.done * self._row_bytes)
        except OSError as error:
            raise write_error(self.path, error) from error

    def append(self, features: np.ndarray) -> None:
        """Add the next rows, float16 ``[m, d]`` or ``[m, d, h, w]``.

        Raises:
            BagError: a value is NaN or infinite.
            OutputError: the disk is full.
        """
        bad = first_non_finite_row(features)
        if bad is not None:
            raise BagError(f"'{self.path}': the encoder gave NaN or values beyond 65504 for tile {self.done + bad}")
        try:
            self._file.write(np.ascontiguousarray(np.moveaxis(features, 1, -1)).data)
            self._file.flush()
        except OSError as error:
            raise write_error(self.path, error) from error
        self.done += len(features)

    def read(self) -> np.ndarray:
        """All rows, ``[n, d]`` or ``[n, d, h, w]``, mapped from the file."""
        stored = np.memmap(self.path, np.float16, "r", shape=self._stored)
        return np.moveaxis(stored, -1, 1)

    def close(self) -> None:
        """Close the file and keep it for a later run."""
        try:
            self._file.close()
        except OSError as error:
            raise write_error(self.path, error) from error


def header_of(rows: Path) -> Path:
    """Path of the header beside a file of rows."""
    return rows.with_suffix(".json")


def discard_rows(rows: Path) -> None:
    """Remove rows and header, if there are any."""
    header_of(rows).unlink(missing_ok=True)
    rows.unlink(missing_ok=True)

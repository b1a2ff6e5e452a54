"""Features of a slide that is not finished: whole rows in a flat file, a header that says what they are, checksums.

The rows are not flushed to the disk batch by batch, which would cost more than it saves: after a power cut their end
may be missing or hold zeros, and the checksums tell.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from monai_mil.bags import first_non_finite_row
from monai_mil.checksum import crc32
from monai_mil.errors import BagError
from monai_mil.files import replacing, write_error


class PartialRows:
    """Rows appended one batch after the other; a killed run leaves them, the next one goes on behind them.

    Args:
        path: the rows; the header is the same name with ``.json``, the checksums with ``.sums``.
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
        except (OSError, ValueError):
            same = False
        self._sums = sums_of(path)
        if not same:
            discard_rows(path)
            with replacing(self._header) as partial:
                partial.write_text(content)
        try:
            self._file = self.path.open("a+b")
            self.done, size = self._whole_rows(shape[0], batch_size)
            self._file.truncate(self.done * self._row_bytes)
            self._sum_file = self._sums.open("ab")
            self._sum_file.truncate(size)
        except OSError as error:
            raise write_error(self.path, error) from error

    def _whole_rows(self, most: int, batch_size: int) -> tuple[int, int]:
        """How many rows, in whole batches, are what was written, and the bytes of their checksums."""
        lines = self._sums.read_bytes().splitlines(keepends=True) if self._sums.exists() else []
        self._file.seek(0)
        done = size = 0
        for line in lines:
            try:
                rows, checksum = map(int, line.split())
            except ValueError:
                break
            if not done < rows <= most or (rows % batch_size and rows != most):
                break
            if crc32(self._file.read((rows - done) * self._row_bytes)) != checksum:
                break
            done, size = rows, size + len(line)
        return done, size

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
            rows = np.ascontiguousarray(np.moveaxis(features, 1, -1)).data
            self._file.write(rows)
            self._file.flush()
            self._sum_file.write(f"{self.done + len(features)} {crc32(rows)}\n".encode())
            self._sum_file.flush()
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
            self._sum_file.close()
        except OSError as error:
            raise write_error(self.path, error) from error


def header_of(rows: Path) -> Path:
    """Path of the header beside a file of rows."""
    return rows.with_suffix(".json")


def sums_of(rows: Path) -> Path:
    """Path of the checksums beside a file of rows: a line a batch, the rows so far and the CRC-32 of its bytes."""
    return rows.with_suffix(".sums")


def discard_rows(rows: Path) -> None:
    """Remove rows, header and checksums, if there are any."""
    for path in (header_of(rows), sums_of(rows), rows):
        path.unlink(missing_ok=True)

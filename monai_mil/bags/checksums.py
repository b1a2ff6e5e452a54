"""Checksums of a bag's features, one for every 4 MiB of them as they stand in the file.

They stand in a dataset of their own, ``feature_checksums``: one number a block, uint32, the CRC-32 of the bytes of so
many rows as its attribute ``rows`` says. The features are one piece in the file, which can be mapped; HDF5's own
checksums are for features in chunks. Files without the dataset, older ones and those of other programs, are read
unchecked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np

from monai_mil.bags.datasets import CHECKSUMS, find_dataset
from monai_mil.checksum import crc32
from monai_mil.errors import DamagedBagError

_FILES_REMEMBERED = 1 << 14


@dataclass(frozen=True, eq=False)
class BlockChecksums:
    """The checksums of an open bag; a block is checked once in a process, as long as its file is not replaced.

    Attributes:
        path: the bag.
        rows: rows of a block; the last one may have fewer.
        values: CRC-32 of each block, uint32 ``[k]``.
        sound: which blocks were checked already, bool ``[k]``, shared by all who open the file.
    """

    path: Path
    rows: int
    values: np.ndarray
    sound: np.ndarray

    @classmethod
    def of(cls, path: Path, file: h5py.File, features: h5py.Dataset) -> BlockChecksums | None:
        """Those that a file holds, None if it holds none.

        Raises:
            DamagedBagError: they are not those of its features.
        """
        if CHECKSUMS not in file:
            return None
        stored = find_dataset(path, file, CHECKSUMS)
        rows, values = int(stored.attrs["rows"]), stored[:]
        if rows < 1 or values.dtype != np.uint32 or values.shape != (-(-len(features) // rows),):
            raise DamagedBagError(f"bag '{path}': its checksums do not fit its features; embed it again")
        status = path.stat()
        identity = (str(path.absolute()), status.st_ino, status.st_mtime_ns, status.st_size)
        return cls(path, rows, values, _sound_blocks(identity, len(values)))

    def blocks(self, start: int, stop: int) -> Iterator[tuple[int, slice]]:
        """Number and rows of every block, not checked yet, that holds some of the rows from ``start`` to ``stop``."""
        for number in range(start // self.rows, -(-stop // self.rows)):
            if not self.sound[number]:
                yield number, slice(number * self.rows, (number + 1) * self.rows)

    def check(self, number: int, stored: np.ndarray) -> None:
        """Compare the rows of a block, as stored, with its checksum.

        Raises:
            DamagedBagError: they are not what was written.
        """
        if crc32(np.ascontiguousarray(stored).view(np.uint8).data) != self.values[number]:
            last = number * self.rows + len(stored) - 1
            raise DamagedBagError(
                f"bag '{self.path}': the features of instances {number * self.rows} to {last} are not what was "
                "written; remove the bag and embed again"
            )
        self.sound[number] = True


def write_checksums(file: h5py.File, checksums: list[int], rows: int) -> np.ndarray:
    """Put the checksums of blocks of ``rows`` rows beside a bag's features; returns them as stored."""
    values = np.array(checksums, np.uint32)
    stored = file.create_dataset(CHECKSUMS, data=values)
    stored.attrs["rows"] = rows
    return values


@lru_cache(_FILES_REMEMBERED)
def _sound_blocks(identity: tuple[str, int, int, int], count: int) -> np.ndarray:
    """Which blocks of a file were found to be what was written; of another file of the name, none."""
    return np.zeros(count, bool)

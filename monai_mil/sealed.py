"""HDF5 files that are looked through before HDF5 parses them: damaged ones make its C library crash, or never return.

Our own end with a seal of 32 bytes: where the one dataset stands that has checksums of its own, and the CRC-32 of
everything else. HDF5 passes over what stands behind its own end, and cuts it off when somebody changes the file, which
is then one without a seal; what looks like a seal and is none, because a byte of it is another one or it stands
elsewhere, is damage. Of files without one, other programs' and older ones, the heaps of texts at both ends are looked
through, in which HDF5 walks for ever where a size is wrong.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from monai_mil.checksum import crc32

if TYPE_CHECKING:
    import h5py

_SEAL = struct.Struct("<8sQQII")  # magic, start and stop of what is left out, CRC-32 of the rest, CRC-32 of these
_MAGIC = b"\x89mmSEAL\n"
_MAGIC_LIKE = 5  # of its eight bytes
_BLOCK = 1 << 20
_HEAP = b"GCOL\1\0\0\0"
_HEAP_HEADER, _OBJECT_HEADER = 16, 16


def open_hdf5(path: Path) -> h5py.File:
    """The file, open for reading.

    Raises:
        OSError: it is not there, cannot be read or is no HDF5 file.
        ValueError: it is not what was written, or HDF5 could not read it to an end.
    """
    import h5py

    with path.open("rb") as file:
        ends = _is_sealed(file) or _heaps_end(file)
    opened = h5py.File(path, "r")  # of one that is cut off it is HDF5 that says so
    if not ends:
        opened.close()
        raise ValueError("its texts are damaged")
    return opened


def seal(file: BinaryIO, apart: tuple[int, int]) -> None:
    """Put the seal behind a closed HDF5 file, open for reading and writing; ``apart`` has checksums of its own."""
    size = file.seek(0, os.SEEK_END)
    told = _SEAL.pack(_MAGIC, *apart, _checksum(file, size, apart), 0)[:-4]
    file.seek(size)
    file.write(told + struct.pack("<I", crc32(told)))


def _is_sealed(file: BinaryIO) -> bool:
    size = file.seek(0, os.SEEK_END) - _SEAL.size
    if size < 0:
        return False
    file.seek(size)
    stored = file.read(_SEAL.size)
    magic, start, stop, checksum, own = _SEAL.unpack(stored)
    if magic != _MAGIC:
        if _has_remains(file, size + _SEAL.size):
            raise ValueError("it is not what was written")
        return False
    if crc32(stored[:-4]) != own or _checksum(file, size, (start, stop)) != checksum:
        raise ValueError("it is not what was written")
    return True


def _has_remains(file: BinaryIO, size: int) -> bool:
    """Whether something like the beginning of a seal stands behind HDF5's own end, which its superblock tells."""
    import numpy as np

    file.seek(0)
    superblock = file.read(48)
    place = 40 if superblock[8:9] < b"\2" else 28
    end = int.from_bytes(superblock[place : place + 8], "little")
    file.seek(max(min(end, size), size - _BLOCK))
    behind = np.frombuffer(file.read(), np.uint8)
    if len(behind) < len(_MAGIC):
        return False
    windows = np.lib.stride_tricks.sliding_window_view(behind, len(_MAGIC))
    return bool(((windows == np.frombuffer(_MAGIC, np.uint8)).sum(axis=1) >= _MAGIC_LIKE).any())


def _checksum(file: BinaryIO, size: int, apart: tuple[int, int]) -> int:
    """CRC-32 of the bytes up to ``size``, but for those from ``apart[0]`` to ``apart[1]``."""
    checksum = 0
    for start, stop in ((0, min(apart[0], size)), (min(apart[1], size), size)):
        file.seek(start)
        for place in range(start, stop, _BLOCK):
            checksum = crc32(file.read(min(_BLOCK, stop - place)), checksum)
    return checksum


def _heaps_end(file: BinaryIO) -> bool:
    """Whether HDF5 comes to the end of every heap of texts in the first and the last MiB."""
    size = file.seek(0, os.SEEK_END)
    for start in sorted({0, max(0, size - _BLOCK)}):
        file.seek(start)
        block = file.read(_BLOCK)
        at = block.find(_HEAP)
        while at >= 0:
            if not _ends(file, start + at):
                return False
            at = block.find(_HEAP, at + 1)
    return True


def _ends(file: BinaryIO, at: int) -> bool:
    """Whether the objects of a heap fill it, one after the other; HDF5 asks no more of it, and no less."""
    file.seek(at + len(_HEAP))
    size = int.from_bytes(file.read(8), "little")
    place = _HEAP_HEADER
    while size - place >= _OBJECT_HEADER:
        file.seek(at + place)
        header = file.read(_OBJECT_HEADER)
        if len(header) < _OBJECT_HEADER:
            return False
        number, length = struct.unpack("<H6xQ", header)
        if not number and length < _OBJECT_HEADER:
            return False
        place += _OBJECT_HEADER + -(-length // 8) * 8 if number else length
    return place <= size

"""What a slide or scan is by its content, whatever it is called and wherever it lies."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

BLOCK = 1 << 16
_BLOCKS = 8
_DIGITS = 32


def content_identity(files: Sequence[Path]) -> str:
    """What tells the content of these files from any other: their size in bytes and a cheap hash.

    Of every file the first, the last and six evenly spaced blocks of 64 KiB between are read, small files whole. Names,
    folders and times play no part, so that what is moved, copied or renamed stays the same.

    Args:
        files: all files of one slide or scan, in any order.

    Returns:
        ``"<bytes>:<32 hexadecimal digits>"``.

    Raises:
        OSError: a file cannot be read.
    """
    digests = sorted(_digest(path) for path in files)
    whole = hashlib.sha256("".join(digests).encode()).hexdigest()[:_DIGITS]
    return f"{sum(path.stat().st_size for path in files)}:{whole}"


def change_stamp(files: Iterable[Path]) -> str:
    """What stays the same as long as nobody touches these files: a hash of their inodes, sizes and times of change.

    Where it is equal the content is, and need not be read; where it differs, as after a copy, the content may still be.

    Raises:
        OSError: a file is not there.
    """
    facts = []
    for path in files:
        status = path.stat()
        facts.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return hashlib.sha256(repr(sorted(facts)).encode()).hexdigest()[:_DIGITS]


def _digest(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb", buffering=0) as file:
        if size <= _BLOCKS * BLOCK:
            digest.update(file.read())
            return digest.hexdigest()
        for number in range(_BLOCKS):
            file.seek((size - BLOCK) * number // (_BLOCKS - 1))
            digest.update(file.read(BLOCK))
    return digest.hexdigest()

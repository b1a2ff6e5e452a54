"""Files that are whole or absent, and survive the power: written beside their final name, flushed, then renamed."""

from __future__ import annotations

import errno
import glob
import io
import json
import math
import os
import secrets
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_mil.errors import OutputError
from monai_mil.sealed import seal

if TYPE_CHECKING:
    import h5py

_MOST_KEPT = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CANNOT_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES)
_OLDEST_WITH_CHECKSUMS = ("v108", "v108")
"""HDF5's own structures carry checksums from its version 1.8 on."""
RUN = secrets.token_hex(4)
"""Tells this run's partial files from those of a process of the same number, on another machine or of another day."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name in ``path``'s folder; it becomes ``path`` if the block ends well, else it is removed.

    The file is on the disk before it gets its name, and the name before this returns: what was written so is there
    after a power cut, and whole.

    Raises:
        OutputError: the block could not write (disk full, no permission); names ``path`` and the system's reason.
    """
    partial = partial_name(path)
    try:
        _make(path.parent)
        yield partial
        _flush(partial)
        partial.replace(path)
        _flush(path.parent)
    except (OSError, RuntimeError) as error:  # HDF5 and torch report a full disk as RuntimeError
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):  # there is none, or no such folder
            partial.unlink()


def partial_name(path: Path) -> Path:
    """What a file is called while this run writes it; no other run calls it so."""
    return path.with_name(f".{path.name}.{os.getpid()}-{RUN}.tmp")


def partial_names(path: Path) -> list[Path]:
    """The unfinished files of ``path`` that any run left or is writing."""
    return list(path.parent.glob(f".{glob.escape(path.name)}.*.tmp"))


@contextmanager
def replacing_hdf5(path: Path, apart: str | None = None) -> Iterator[h5py.File]:
    """Give an empty HDF5 file that becomes ``path`` if the block ends well, under a seal (:mod:`monai_mil.sealed`).

    Args:
        path: the file.
        apart: the dataset, contiguous, that has checksums of its own and is left out of the seal.

    Raises:
        OutputError: as ``replacing``.
    """
    import h5py

    with replacing(path) as partial, _ErrorKeepingFile(partial, "w+") as raw:
        with h5py.File(raw, "w", libver=_OLDEST_WITH_CHECKSUMS) as file:
            yield file
            place = (0, 0) if apart is None else _place(file[apart])
        if raw.error is None:
            seal(raw, place)
        if raw.error is not None:
            raise raw.error


def _place(dataset: h5py.Dataset) -> tuple[int, int]:
    """Where the values of a contiguous dataset begin and end in its file."""
    start = dataset.id.get_offset() or 0
    return start, start + dataset.id.get_storage_size()


class _ErrorKeepingFile(io.FileIO):
    """A file whose failed writes look well to HDF5, which crashes the process on closing a file it cannot flush.

    It crashes as well where its own structures do not read back as it wrote them (on some disks what did not fit reads
    as zeros), so those are kept in memory from the first failure on. The data of an array is not read again.
    """

    def __init__(self, path: Path, mode: str) -> None:
        super().__init__(path, mode)
        self.error: OSError | None = None
        self._kept: list[tuple[int, bytes]] = []

    def write(self, data: Any, /) -> int:
        view, start = memoryview(data).cast("B"), self.tell()
        if self.error is None:
            try:
                written = 0
                while written < len(view):
                    written += super().write(view[written:])
            except OSError as error:
                self.error = error
        if self.error is not None and len(view) <= _MOST_KEPT:
            self._kept.append((start, bytes(view)))
        return len(view)

    def readinto(self, buffer: Any, /) -> int:
        view, start = memoryview(buffer).cast("B"), self.tell()
        count = super().readinto(view) or 0
        if self.error is None:
            return count
        view[count:] = bytes(len(view) - count)
        for at, data in self._kept:
            first, last = max(at, start), min(at + len(data), start + len(view))
            if first < last:
                view[first - start : last - start] = data[first - at : last - at]
        return len(view)

    def truncate(self, size: int | None = None, /) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0


def check_archive(path: Path) -> None:
    """Compare every part of a file that ``torch.save`` wrote with the checksum it carries.

    ``torch.load`` itself takes tensors as they are.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not what was written.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except OSError:
        raise
    except Exception as error:  # zipfile raises whatever a damaged table of contents makes it meet
        raise ValueError(f"not what was written: {error}") from error
    if damaged is not None:
        raise ValueError(f"its part '{damaged}' is not what was written")


def make_folder(folder: Path) -> None:
    """Make a folder, with those above it, unless it is there.

    Raises:
        OutputError: it cannot be made; names it and the system's reason.
    """
    try:
        _make(folder)
    except OSError as error:
        raise write_error(folder, error) from error


def _make(folder: Path) -> None:
    """Make a folder and those above it; each that is new is on the disk then."""
    try:
        folder.mkdir()
    except FileNotFoundError:
        _make(folder.parent)
        folder.mkdir(exist_ok=True)
    except FileExistsError:
        if folder.is_dir():
            return
        raise
    _flush(folder.parent)


def _flush(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk, where its file system can tell."""
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise


def write_error(path: Path, error: BaseException) -> OutputError:
    """The error for a file that could not be written, with the system's reason."""
    cause: BaseException | None = error
    while cause is not None and not getattr(cause, "errno", None):
        cause = cause.__context__
    number: int | None = getattr(cause, "errno", None)
    reason = os.strerror(number) if number else str(error)
    advice = "free some space" if number in _FULL else "check the folder"
    return OutputError(f"'{path}' cannot be written ({reason}); {advice} and run again")


def parse_json(text: str) -> Any:
    """What a text of JSON says.

    Raises:
        ValueError: it is none, or is nested deeper than Python can follow.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def write_json(report: Any, path: Path) -> None:
    """Write a report as a whole; NaN becomes null, for JSON knows none."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(_nulled(report), indent=4) + "\n", encoding="utf-8")


def _nulled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nulled(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_nulled(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value

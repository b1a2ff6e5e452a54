"""What one process alone may work on: locks of files, on disks that know none too, and who holds them."""

from __future__ import annotations

import atexit
import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from monai_mil.errors import BusyError
from monai_mil.files import RUN, make_folder, parse_json, write_error

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_PATIENCE = 10.0
"""Seconds: the worker processes of a run that was killed hold its locks until they notice."""


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock ``path`` for a while.

    Where the file system has no locks (some of NFS and cluster file systems) a file made exclusively stands for one; it
    names host and process, and is taken over when that process is gone.

    Raises:
        filelock.Timeout: another process holds it and ``wait`` is false.
        OutputError: it cannot be made, for want of room or permission; names it.
    """
    timeout = -1 if wait else 0
    with ExitStack() as stack:
        try:
            _enter(stack, path, timeout)
        except Timeout:
            raise
        except OSError as error:
            raise write_error(path, error) from error
        yield


def _enter(stack: ExitStack, path: Path, timeout: int) -> None:
    try:
        stack.enter_context(_held(FileLock(path, timeout=timeout)))
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        stack.enter_context(_held(SoftFileLock(path.with_name(f"{path.name}.held"), timeout=timeout)))


@contextmanager
def _held(lock: BaseFileLock) -> Iterator[None]:
    with lock:
        yield


class Claim:
    """A file that one run alone writes: who comes second is told who came first.

    Within a process it may be taken several times, and is free when it was released as often, or the process ends.
    While it is held, a lock and a note of who holds it stand beside the file, hidden.

    Args:
        path: the file; it need not exist.
    """

    _own: dict[tuple[Path, int], list[ExitStack]] = {}

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = path.with_name(f".{path.name}.lock")
        self._note = path.with_name(f".{path.name}.run")
        self._key = (path.absolute(), os.getpid())

    def take(self) -> None:
        """Take it.

        Raises:
            BusyError: another run has it, which is named.
            OutputError: its folder cannot be written.
        """
        held = self._own.get(self._key)
        if held is not None:
            held.append(ExitStack())
            return
        make_folder(self.path.parent)
        end = time.monotonic() + _PATIENCE
        while True:
            stack = ExitStack()
            try:
                stack.enter_context(locked(self._lock, wait=False))
            except Timeout:
                if self._holder_lives() or time.monotonic() > end:
                    raise BusyError(
                        f"'{self.path}' is being written by another run ({self.holder()}); wait until that has ended, "
                        "or choose another folder"
                    ) from None
                time.sleep(0.1)
                continue
            break
        try:
            self._note.write_text(json.dumps({"host": socket.gethostname(), "process": os.getpid(), "since": _now()}))
        except OSError as error:
            stack.close()
            raise write_error(self._note, error) from error
        self._own[self._key] = [stack]

    def release(self) -> None:
        """Give back what was taken last; nothing where it is not held."""
        held = self._own.get(self._key)
        if held is None:
            return
        stack = held.pop()
        if held:
            return
        del self._own[self._key]
        for path in (self._note, self._lock):
            with suppress(OSError):
                path.unlink()
        stack.close()

    @property
    def is_free(self) -> bool:
        """Whether nobody has it, this process neither; what a killed run has left of it is removed."""
        if self._key in self._own:
            return False
        try:
            self.take()
        except BusyError:
            return False
        self.release()
        return True

    def holder(self) -> str:
        """Who has it, in words."""
        host, process, since = self._noted()
        return f"process {process} on {host}, since {since}" if process else "it does not say which"

    def _holder_lives(self) -> bool:
        host, process, _ = self._noted()
        if not process or host != socket.gethostname():
            return True
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    def _noted(self) -> tuple[str, int, str]:
        try:
            note = parse_json(self._note.read_text())
            return str(note["host"]), int(note["process"]), str(note["since"])
        except (OSError, ValueError, KeyError, TypeError):
            return "", 0, ""


@atexit.register
def _release_all() -> None:
    """Give back what an error has left taken, lest a note of a process that is gone stays behind."""
    for path, process in list(Claim._own):
        while process == os.getpid() and (path, process) in Claim._own:
            Claim(path).release()


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Hold the :class:`Claim` of a file for a while.

    Raises:
        BusyError: another run has it.
    """
    claim = Claim(path)
    claim.take()
    try:
        yield
    finally:
        claim.release()


@contextmanager
def sharing(folder: Path, settings: str, what: str) -> Iterator[None]:
    """Work in a folder at the same time as runs of the same settings, and as no others.

    Args:
        folder: where the runs leave word of each other, below the folder they share.
        settings: a digest of them, of letters and digits.
        what: the folder that they share, for messages.

    Raises:
        BusyError: a run of other settings is at work there, which is named.
        OutputError: the folder cannot be written.
    """
    make_folder(folder)
    own = Claim(folder / f"{settings}-{os.getpid()}-{RUN}")
    with locked(folder / "runs.lock"):
        for lock in sorted(folder.glob(".*-*-*.lock")):
            other = Claim(folder / lock.name.removeprefix(".").removesuffix(".lock"))
            if not other.is_free and not other.path.name.startswith(f"{settings}-"):
                raise BusyError(
                    f"'{what}' is being written by another run with other settings or another encoder "
                    f"({other.holder()}); wait until that has ended, or choose another folder"
                )
        own.take()
    try:
        yield
    finally:
        own.release()


def _now() -> str:
    return datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")

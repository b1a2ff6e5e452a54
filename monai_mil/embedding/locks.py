"""One process a case: locks of files, on disks that know none too."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock ``path`` for a while.

    Where the file system has no locks (some of NFS and cluster file systems) a file made exclusively stands for one; it
    names host and process, and is taken over when that process is gone.

    Raises:
        filelock.Timeout: another process holds it and ``wait`` is false.
    """
    timeout = -1 if wait else 0
    with ExitStack() as stack:
        try:
            stack.enter_context(_held(FileLock(path, timeout=timeout)))
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            stack.enter_context(_held(SoftFileLock(path.with_name(f"{path.name}.held"), timeout=timeout)))
        yield


@contextmanager
def _held(lock: BaseFileLock) -> Iterator[None]:
    with lock:
        yield

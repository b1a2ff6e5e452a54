"""What killed runs left in a folder: half-written files that nobody goes on with, and locks that nobody holds."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

_LEFT_AFTER = 600.0  # seconds: a process on another machine, or in another container, cannot be asked
_PARTIAL = re.compile(r"\..+\.(\d+)(-[0-9a-f]+)?\.tmp")


def remove_leftovers(folder: Path) -> None:
    """Remove what killed runs left in a folder of results and the folders in it; what a living run holds stays.

    A half-written file goes if its process is gone and nobody has written it for ten minutes, a lock if it is free,
    and so does the note of who held it.
    """
    for place in (folder, *_folders(folder)):
        _remove_claims(place)
        with suppress(OSError):
            for path in list(place.glob(".*.tmp")):
                if _is_left(path):
                    path.unlink()
    for lock in list((folder / ".partial").glob("*.lock")):
        # Who waits for a lock that was removed sees that it has no name any more, and makes a new one.
        with suppress(Timeout, OSError), FileLock(lock, timeout=0):
            lock.unlink()


def _remove_claims(folder: Path) -> None:
    """Those of :class:`monai_mil.locks.Claim` that nobody has: an empty lock and a note, hidden beside a file."""
    with suppress(OSError):
        for lock in list(folder.glob(".*.lock")):
            if lock.stat().st_size == 0:
                with suppress(Timeout, OSError), FileLock(lock, timeout=0):
                    lock.with_suffix(".run").unlink(missing_ok=True)
                    lock.unlink()


def _folders(folder: Path) -> Iterator[Path]:
    with suppress(OSError), os.scandir(folder) as entries:
        yield from (Path(entry) for entry in entries if entry.is_dir(follow_symlinks=False))


def _is_left(path: Path) -> bool:
    found = _PARTIAL.fullmatch(path.name)
    if found is None or time.time() - path.stat().st_mtime < _LEFT_AFTER:
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False

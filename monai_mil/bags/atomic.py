"""Files that are whole or absent: written beside their final name, then renamed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from monai_mil.errors import BagError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name in ``path``'s folder; it becomes ``path`` if the block ends well, else it is removed.

    Raises:
        BagError: the block could not write (disk full, no permission); names ``path`` and the system's reason.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # HDF5 and torch report a full disk as RuntimeError
        raise write_error(path, error) from error
    finally:
        partial.unlink(missing_ok=True)


def write_error(path: Path, error: BaseException) -> BagError:
    """The error for a file that could not be written, with the system's reason."""
    cause: BaseException | None = error
    while cause is not None and not getattr(cause, "errno", None):
        cause = cause.__context__
    number: int | None = getattr(cause, "errno", None)
    reason = os.strerror(number) if number else str(error)
    advice = "free some space" if number in _FULL else "check the folder"
    return BagError(f"'{path}' cannot be written ({reason}); {advice} and run again")

"""The folder of a job's results: all of them appear at once, and ``status.json`` is the last file of all."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from monai_mil.errors import OutputError
from monai_mil.files import RUN, make_folder, partial_names, write_error, write_json

STATUS = "status.json"
RESULTS = "results"
_PARTIAL = ".partial-"
_OLD = ".old-"


@contextmanager
def working_folder(output: Path) -> Iterator[Path]:
    """A hidden folder in ``output`` to work in, which is gone at the end; ``output`` holds no results meanwhile.

    Whoever calls this has claimed the folder's ``status.json``.

    What an earlier job left there, finished or not, is removed: first its ``status.json``, so that at no moment it
    stands beside what it does not speak of.

    Raises:
        OutputError: the folder cannot be written.
    """
    folder = output / f"{_PARTIAL}{RUN}"
    try:
        make_folder(output)
        (output / STATUS).unlink(missing_ok=True)
        if (output / RESULTS).exists():
            (output / RESULTS).rename(output / f"{_OLD}{RUN}")
        for left in (*output.glob(f"{_PARTIAL}*"), *output.glob(f"{_OLD}*")):
            shutil.rmtree(left)
        for half in partial_names(output / STATUS):
            half.unlink()
        folder.mkdir()
    except OSError as error:
        raise write_error(output, error) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, output: Path) -> dict[str, str]:
    """Give a folder of whole results its name in ``output``, all files at once.

    Returns:
        Of every file, by its path below ``output``, the SHA-256.

    Raises:
        OutputError: it cannot be done.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    try:
        digests = {
            f"{RESULTS}/{path.relative_to(folder).as_posix()}": hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
        }
        folder.rename(output / RESULTS)
    except OSError as error:
        raise write_error(output / RESULTS, error) from error
    return digests


def withdraw(output: Path) -> None:
    """Take back results of which no ``status.json`` can speak."""
    shutil.rmtree(output / RESULTS, ignore_errors=True)


def write_status(output: Path, status: Mapping[str, Any]) -> None:
    """Write ``status.json``: from now on the job has ended.

    Raises:
        OutputError: it cannot be written.
    """
    if not output.is_dir():
        raise OutputError(f"'{output}' is no folder: there is no place for {STATUS}")
    write_json(dict(status), output / STATUS)

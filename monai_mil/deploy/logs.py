"""A log that names no patient: our own lines only, and of those no name of a file or folder that came in."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from monai_mil.errors import MonaiMILError
from monai_mil.folders import walk_files

ALLOW = "MONAI_MIL_LOG_PATIENT_DATA"
"""Set to 1 this environment variable lets everything into the log: other packages' lines, DEBUG, paths."""
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_SHORTEST = 3
_FEWEST_DIGITS = 4
_HARMLESS = {"input", "output", "dicom", "dcm", "scan", "series", "slice", "slices", "slide", "slides", "study", "data"}


def may_name_patients() -> bool:
    """Whether whoever runs this takes patient data in the log; see :data:`ALLOW`."""
    return os.environ.get(ALLOW) == "1"


class Redaction:
    """Texts without the names of files and folders at or below a place, which in hospitals hold patients' names.

    Args:
        place: what came in, a folder or a file; it need not exist.

    Examples:
        >>> from monai_mil.deploy import Redaction
        >>> (folder / "DOE_JANE").mkdir()
        >>> (folder / "DOE_JANE" / "slice_1.dcm").touch()
        >>> redaction = Redaction(folder)
        >>> redaction.of(f"scan file '{folder}/DOE_JANE/slice_1.dcm' of DOE_JANE is cut off")
        "scan file '(input)/(name)/(name)' of (name) is cut off"
    """

    def __init__(self, place: Path) -> None:
        place = place.absolute()
        folder = place if place.is_dir() else place.parent  # beside a file lie others of the same slide
        roots = {str(path) for path in (place, place.resolve(), folder, folder.resolve())}
        self._roots = re.compile("|".join(map(re.escape, sorted(roots, key=len, reverse=True))))
        names = {Path(root).name for root in roots}
        for parent, paths in walk_files(folder, lambda error: None) if place.exists() else ():
            names.update([parent.name, *(path.name for path in paths)])
        names |= {Path(name).stem for name in names}
        telling = sorted(filter(_tells, names), key=len, reverse=True)
        self._names = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, telling))})(?!\w)") if telling else None

    def of(self, text: str) -> str:
        """The text without them."""
        parts = self._roots.split(text)
        return "(input)".join(parts if self._names is None else [self._names.sub("(name)", part) for part in parts])


def _tells(name: str) -> bool:
    """Whether a name may tell of somebody: not a letter or two, nor a short number, which texts are full of."""
    return name.lower() not in _HARMLESS and len(name) >= (_FEWEST_DIGITS if name.isdigit() else _SHORTEST)


class _OwnLines(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.name.startswith("monai_mil")


class _Redacting(logging.Formatter):
    def __init__(self, redaction: Redaction) -> None:
        super().__init__(_FORMAT)
        self._redaction = redaction

    def format(self, record: logging.LogRecord) -> str:
        message = self._redaction.of(record.getMessage())
        plain = {"msg": message, "args": None, "exc_info": None, "exc_text": None, "stack_info": None}
        return super().format(logging.makeLogRecord({**record.__dict__, **plain}))


@contextmanager
def logged(redaction: Redaction, level: str) -> Iterator[None]:
    """Log to standard error meanwhile, and let nobody else write there, or to standard output.

    Libraries print and log what they find odd in a header, the patient's name too; so do native ones, past Python.
    Where :func:`may_name_patients` everything is let through.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    open_log = may_name_patients()
    own = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace", buffering=1)
    handler = logging.StreamHandler(own)
    handler.setFormatter(logging.Formatter(_FORMAT) if open_log else _Redacting(redaction))
    if not open_log:
        handler.addFilter(_OwnLines())
    root = logging.getLogger()
    before, level_before = root.handlers[:], root.level
    root.handlers[:] = [handler]
    root.setLevel(level)
    try:
        with own, _elsewhere(1, not open_log), _elsewhere(2, not open_log):
            yield
    finally:
        root.handlers[:] = before
        root.setLevel(level_before)


@contextmanager
def _elsewhere(descriptor: int, wanted: bool) -> Iterator[None]:
    """What is written to a descriptor goes nowhere meanwhile."""
    if not wanted:
        yield
        return
    kept, nowhere = os.dup(descriptor), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(kept, descriptor)
        os.close(kept)


def told(error: BaseException, redaction: Redaction) -> str:
    """An error as logs and ``status.json`` tell it: of our own the text, of any other what it is and where it arose.

    The text of others may quote a header.
    """
    if isinstance(error, MonaiMILError):
        return str(error) if may_name_patients() else redaction.of(str(error))
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    place = ", ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)
    text = f" ({error})" if may_name_patients() else f"; set {ALLOW}=1 to see its text, which may name the patient"
    return f"{type(error).__name__} at {place}{text}"

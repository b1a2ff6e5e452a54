"""Logs of a server and of its trainings, in which no image is named. Needs MONAI Label."""

from __future__ import annotations

import logging
import re
from hashlib import sha256

_CHATTY = (
    *("monailabel", "ignite", "monai_mil.bags", "monai_mil.embedding", "timeloop"),
    *("httpx", "dicomweb_client", "multipart"),
)
_ACCESS = "uvicorn.access"


class Pseudonyms(logging.Formatter):
    """A formatter that writes a digest in place of every image's name and file name, and of paths below the studies.

    Args:
        inner: what formats the line otherwise.
    """

    def __init__(self, inner: logging.Formatter | None) -> None:
        super().__init__()
        self.inner = inner or logging.Formatter()
        self._known: frozenset[str] = frozenset()
        self._pattern: re.Pattern[str] | None = None

    def format(self, record: logging.LogRecord) -> str:
        """The line, without names; of a request without what follows its question mark."""
        if record.name == _ACCESS and isinstance(record.args, tuple):
            asked = (said.partition("?")[0] if isinstance(said, str) else said for said in record.args)
            record = logging.makeLogRecord({**record.__dict__, "args": tuple(asked)})
        text = self.inner.format(record)
        pattern = self._current()
        return text if pattern is None else pattern.sub(lambda found: f"image-{_digest(found[0])}", text)

    def _current(self) -> re.Pattern[str] | None:
        known = frozenset(known_names())
        if known != self._known:
            longest = sorted(known, key=len, reverse=True)
            self._known, self._pattern = known, re.compile("|".join(longest)) if known else None
        return self._pattern


def known_names() -> set[str]:
    """Patterns of the names of images, of their files and folders below the studies, and of any path below these."""
    from monailabel.interfaces.utils import app as instances

    names: set[str] = set()
    folders: set[str] = set()
    for instance in instances.apps.values():
        images = instance.project.images
        folders.add(re.escape(str(images.folder)) + r"/(?!\.mil/)[^'\"\n]+")
        for image in images.known:
            below = image.path.relative_to(images.folder).parts if image.path.is_relative_to(images.folder) else ()
            names |= {image.name, image.path.name, image.path.stem, *below}
    return folders | {re.escape(name) for name in names if len(name) > 2}


def keep_names_out_of_logs() -> None:
    """Quiet what writes whole requests into the log, and put digests in place of images' names in the rest."""
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    loggers = [logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))]
    for handler in {handler for each in loggers for handler in each.handlers}:
        if not isinstance(handler.formatter, Pseudonyms):
            handler.setFormatter(Pseudonyms(handler.formatter))


def _digest(name: str) -> str:
    return sha256(name.encode()).hexdigest()[:8]

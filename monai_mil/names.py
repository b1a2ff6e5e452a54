"""Names of slides and scans as file names: any spelling, any length, on any disk."""

from __future__ import annotations

import hashlib
import unicodedata
from pathlib import Path

_MOST_BYTES = 200
"""Of the 255 that file systems allow: what is left is for endings, process numbers and class names behind it."""
_DIGITS = 16
_MARK = "~"


def composed(name: str) -> str:
    """The name in Unicode's composed form (NFC): an accent typed and one copied from a Mac are then the same."""
    return unicodedata.normalize("NFC", name)


def names_a_file(slide_id: str) -> bool:
    """Whether files can be named by it without leaving their folder or being hidden there."""
    return (
        slide_id.isprintable() and not slide_id.startswith(".") and not {"/", "\\"} & set(slide_id) and slide_id != ""
    )


_NOTHING = {"normal", "negative", "benign", "healthy", "control", "none", "no", "false", "absent", "0"}


def says_nothing_there(name: str) -> bool:
    """Whether the name of a class says that there is nothing to point at.

    Examples:
        >>> from monai_mil.names import says_nothing_there
        >>> says_nothing_there("Normal"), says_nothing_there("LUAD")
        (True, False)
    """
    return name.strip().lower() in _NOTHING


def file_stem(name: str) -> str:
    """What the files of a case are called: its name, or of a very long one its beginning and a hash.

    The whole name stands inside the files.

    Examples:
        >>> from monai_mil.names import file_stem
        >>> file_stem("S-1")
        'S-1'
        >>> len(file_stem("x" * 251))
        200
    """
    content = name.encode()
    if len(content) <= _MOST_BYTES:
        return name
    end = _MARK + hashlib.sha256(content).hexdigest()[:_DIGITS]
    return content[: _MOST_BYTES - len(end)].decode("utf-8", "ignore") + end


def is_shortened(stem: str) -> bool:
    """Whether a file may be called so because the name of its case was too long."""
    return len(stem.encode()) > _MOST_BYTES - 4 and stem[-_DIGITS - 1 : -_DIGITS] == _MARK


def is_there(path: Path) -> bool:
    """Whether there is such a file or folder; a path that is too long for any, or not allowed, is not there."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def existing(path: Path) -> Path:
    """The path as the disk spells it, where it exists in another Unicode normal form only; else the path itself."""
    if is_there(path) or path == path.parent:
        return path
    folder = existing(path.parent)
    try:
        if path.is_symlink():
            return path
        found = [entry for entry in folder.iterdir() if composed(entry.name) == composed(path.name)]
    except (OSError, ValueError):
        return path
    return found[0] if len(found) == 1 else folder / path.name

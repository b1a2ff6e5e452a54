"""Which files make up one scan."""

from __future__ import annotations

import re
from pathlib import Path

from monai_mil.errors import ScanReadError
from monai_mil.folders import walk_files
from monai_mil.scans.series import choose_series

_HEADERS = (".mhd", ".nhdr")
_DATA_FILE = re.compile(rb"^\s*(?:ElementDataFile\s*=|data ?file:)\s*(\S.*?)\s*$", re.IGNORECASE | re.MULTILINE)


def scan_files(path: str | Path, series_uid: str | None = None) -> tuple[Path, ...]:
    """The files whose bytes make up the scan that ``load_scan`` reads from ``path``, sorted.

    Of a folder those of the series' slices; of a volume in two files header and data.

    Raises:
        ScanReadError: there is nothing there, or no single series.
    """
    path = Path(path)
    if path.is_dir():
        slices, _, _ = choose_series(path, series_uid)
        return tuple(sorted({Path(piece.file.path) for piece in slices}))
    return _volume_files(path)


def files_touched(path: str | Path) -> tuple[Path, ...]:
    """Every file on which the scan at ``path`` may depend: without reading one, all of its folder."""
    path = Path(path)
    if path.is_dir():
        return tuple(file for _, files in walk_files(path, _ignore) for file in files)
    return _volume_files(path)


def _ignore(error: OSError) -> None:
    """A folder that cannot be listed is told by whoever reads the scan."""


def _volume_files(path: Path) -> tuple[Path, ...]:
    if not path.exists():
        raise ScanReadError(f"scan '{path}': no such file or folder")
    if path.suffix.lower() not in _HEADERS:
        return (path,)
    with path.open("rb") as file:
        named = _DATA_FILE.search(file.read(1 << 16))
    data = path.parent / named[1].decode("utf-8", "replace") if named else path
    return tuple(sorted({path, data} if data.is_file() else {path}))

"""Which files make up one scan."""

from __future__ import annotations

import re
from pathlib import Path

from monai_mil.errors import ScanReadError
from monai_mil.folders import walk_files
from monai_mil.scans.concatenation import with_other_parts
from monai_mil.scans.dicom import read_file
from monai_mil.scans.series import choose_series
from monai_mil.scans.volume import volume_suffix

_HEADERS = (".mhd", ".nhdr")
_DATA_FILE = re.compile(rb"^\s*(?:ElementDataFile\s*=|data ?file:)\s*(\S.*?)\s*$", re.IGNORECASE | re.MULTILINE)


def scan_files(path: str | Path, series_uid: str | None = None, acquisition: str | None = None) -> tuple[Path, ...]:
    """The files whose bytes make up the scan that ``load_scan`` reads from ``path``, sorted.

    Of a folder those of the series' slices; of a part of a concatenation all parts; of a volume in two files header and
    data.

    Raises:
        ScanReadError: there is nothing there, or no single series.
    """
    path = Path(path)
    if path.is_dir():
        slices = choose_series(path, series_uid, acquisition).slices
        return tuple(sorted({Path(piece.file.path) for piece in slices}))
    return _files_of(path)


def files_touched(path: str | Path) -> tuple[Path, ...]:
    """Every file on which the scan at ``path`` may depend: without reading one, all of its folder."""
    path = Path(path)
    if path.is_dir():
        return tuple(file for _, files in walk_files(path, _ignore) for file in files)
    return _files_of(path)


def _ignore(error: OSError) -> None:
    """A folder that cannot be listed is told by whoever reads the scan."""


def _files_of(path: Path) -> tuple[Path, ...]:
    if not path.exists():
        raise ScanReadError(f"scan '{path}': no such file or folder")
    if volume_suffix(path) is None:
        file = read_file(path)
        return (path,) if file is None else tuple(sorted(part.path for part in with_other_parts(file)))
    if path.suffix.lower() not in _HEADERS:
        return (path,)
    with path.open("rb") as stream:
        named = _DATA_FILE.search(stream.read(1 << 16))
    data = path.parent / named[1].decode("utf-8", "replace") if named else path
    return tuple(sorted({path, data} if data.is_file() else {path}))

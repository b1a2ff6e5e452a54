"""The scans below a folder."""

from __future__ import annotations

from pathlib import Path

from monai_mil.errors import ScanReadError
from monai_mil.folders import walk_files
from monai_mil.scans.dicom import read_file
from monai_mil.scans.volume import volume_suffix


def find_scans(folder: str | Path) -> list[Path]:
    """Every scan at or below a folder, sorted: what :func:`load_scan` takes.

    Returns:
        Folders that hold CT slices directly, files of multi-frame CT, and volume files. Hidden ones are left out. A
        folder that cannot be listed or holds nothing but damaged DICOM counts too, so that it is reported and not
        passed over.

    Raises:
        ScanReadError: no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ScanReadError(f"'{folder}': no such folder")
    found: list[Path] = []
    for parent, paths in walk_files(folder, lambda error: found.append(Path(error.filename))):
        found.extend(_scans_in(parent, [path for path in paths if not path.name.startswith(".")]))
    return sorted(found)


def _scans_in(folder: Path, paths: list[Path]) -> list[Path]:
    volumes = [path for path in paths if volume_suffix(path) is not None]
    multi_frame, damaged = [], False
    for path in paths:
        if path in volumes:
            continue
        frames = _ct_frames(path)
        if frames == 1:
            return [folder, *volumes]
        if frames is None:
            damaged = True
        elif frames > 1:
            multi_frame.append(path)
    found = multi_frame + volumes
    return [folder] if damaged and not found else found


def _ct_frames(path: Path) -> int | None:
    """CT slices in a file, 0 where it is something else, None where it is damaged."""
    try:
        file = read_file(path)
    except ScanReadError:
        return None
    return len(file.slices) if file is not None and not file.is_localizer else 0

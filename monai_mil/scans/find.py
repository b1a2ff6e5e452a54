"""The scans below a folder."""

from __future__ import annotations

import os
from pathlib import Path

from monai_mil.errors import ScanReadError
from monai_mil.scans.dicom import read_file
from monai_mil.scans.volume import volume_suffix


def find_scans(folder: str | Path) -> list[Path]:
    """Every scan at or below a folder, sorted: what :func:`load_scan` takes.

    Returns:
        Folders that hold CT slices directly, files of multi-frame CT, and volume files. Hidden ones are left out.

    Raises:
        ScanReadError: no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ScanReadError(f"'{folder}': no such folder")
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += _scans_in(Path(parent), sorted(name for name in names if not name.startswith(".")))
    return sorted(found)


def _scans_in(folder: Path, names: list[str]) -> list[Path]:
    volumes = [folder / name for name in names if volume_suffix(Path(name)) is not None]
    multi_frame = []
    for name in names:
        if folder / name in volumes:
            continue
        frames = _ct_frames(folder / name)
        if frames == 1:
            return [folder, *volumes]
        if frames > 1:
            multi_frame.append(folder / name)
    return multi_frame + volumes


def _ct_frames(path: Path) -> int:
    try:
        file = read_file(path)
    except ScanReadError:
        return 0
    return len(file.slices) if file is not None and not file.is_localizer else 0

"""Series whose slices lie in several folders, as on discs that count their files."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from monai_mil.errors import ScanReadError
from monai_mil.scans.dicom import DicomFile, read_file
from monai_mil.scans.series import by_folder, by_series, continues


@dataclass(frozen=True)
class Spread:
    """The series that go on from folder to folder.

    Attributes:
        series: UIDs by the lowest folder that holds all of their slices.
        folders: the folders their slices lie in.
    """

    series: dict[Path, list[str]] = field(default_factory=dict)
    folders: frozenset[Path] = frozenset()


def spread_series(sampled: Mapping[Path, list[DicomFile]]) -> Spread:
    """The series of which some slices lie in one folder and some in another.

    Args:
        sampled: folders with the headers of some of the slices in each; where two share a series, all are read.
    """
    folders_of: dict[str, set[Path]] = defaultdict(set)
    for folder, files in sampled.items():
        for file in files:
            if file.series_uid:
                folders_of[file.series_uid].add(folder)
    shared = {folder for folders in folders_of.values() if len(folders) > 1 for folder in folders}
    files = [record for folder in sorted(shared) for record in _all_of(folder)]
    series: dict[Path, list[str]] = defaultdict(list)
    spread: set[Path] = set()
    for (_, _, uid), group in sorted(by_series(files).items()):
        folders = _one_scan(by_folder(group))
        if len(folders) > 1:
            series[Path(os.path.commonpath(folders))].append(uid)
            spread |= folders
    for (_, _, uid), group in sorted(by_series(files).items()):  # what else lies in these folders
        folders = set(by_folder(group))
        if len(folders) == 1 and folders <= spread:
            series[next(iter(folders))].append(uid)
    return Spread(dict(series), frozenset(spread))


def _all_of(folder: Path) -> list[DicomFile]:
    records = []
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        try:
            record = read_file(path)
        except ScanReadError:  # told when the scan is read
            continue
        if record is not None:
            records.append(record)
    return records


def _one_scan(parts: Mapping[Path, list[DicomFile]]) -> set[Path]:
    """The folders whose slices of one series are one scan; none where two hold slices at the same places."""
    folders = list(parts)
    for index, folder in enumerate(folders):
        if not all(continues(parts[folder], parts[other]) for other in folders[:index]):
            return set()
    return set(folders)

"""A multi-frame image that was stored in several files, the parts of a concatenation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from monai_mil.errors import ScanReadError
from monai_mil.folders import walk_files
from monai_mil.scans.dicom import DicomFile, read_file


def with_other_parts(file: DicomFile) -> list[DicomFile]:
    """All parts of the image that a file is part of, the file itself included; only the file where it is whole.

    They are looked for in the file's folder and, where one is missing there, in the folders beside and below it.

    Raises:
        ScanReadError: a part is missing.
    """
    if not file.concatenation_uid:
        return [file]
    folder = file.path.parent
    parts = _parts_in(folder.iterdir(), file)
    if missing_parts(parts):
        parts = _parts_in((path for _, paths in walk_files(folder.parent, _ignore) for path in paths), file)
    check_parts(parts)
    return sorted(parts, key=lambda part: (part.part or 0, str(part.path)))


def check_parts(files: Iterable[DicomFile]) -> None:
    """Raise a ScanReadError if a part is missing of a concatenation among the files; names one that is there."""
    groups: dict[str, list[DicomFile]] = defaultdict(list)
    for file in files:
        if file.concatenation_uid:
            groups[file.concatenation_uid].append(file)
    for group in groups.values():
        missing = missing_parts(group)
        if missing:
            listed = ", ".join(str(part) for part in missing[:5]) + (" ..." if len(missing) > 5 else "")
            raise ScanReadError(
                f"scan file '{group[0].path}': part {group[0].part} of a concatenation of which part {listed} is "
                "missing (InConcatenationNumber); fetch the missing files"
            )


def missing_parts(files: list[DicomFile]) -> list[int]:
    """The numbers of the parts of one concatenation that are not among the files."""
    found = {file.part for file in files if file.part is not None}
    total = max([*found, *(file.parts or 0 for file in files)])
    return [number for number in range(1, min(total, 10_000) + 1) if number not in found]


def _parts_in(paths: Iterable[Path], file: DicomFile) -> list[DicomFile]:
    found: dict[str, DicomFile] = {}
    for path in sorted(paths):
        part = _record(path)
        if part is not None and part.slices and part.concatenation_uid == file.concatenation_uid:
            found.setdefault(part.sop_uid or str(path), part)
    return list(found.values())


def _record(path: Path) -> DicomFile | None:
    try:
        return read_file(path) if path.is_file() else None
    except ScanReadError:  # another scan's damage is told where that is read
        return None


def _ignore(error: OSError) -> None:
    """A folder that cannot be listed holds no part that could be read."""

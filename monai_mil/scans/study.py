"""What a folder of a hospital's archive holds: every DICOM series below it, each header read once."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from monai_mil.errors import ScanReadError
from monai_mil.folders import walk_files
from monai_mil.scans.dicom import DicomFile, read_file
from monai_mil.scans.series import shown_modality


@dataclass(frozen=True, eq=False)
class StudySeries:
    """One DICOM series, without any text a person wrote.

    Attributes:
        place: what :func:`load_scan` takes with ``series_uid``: the folder that its files have in common, or the one
            file that was named.
        series_uid: SeriesInstanceUID, or ``""``.
        number: SeriesNumber; None where the header does not say.
        modality: as messages show it, ``"CT"``, ``"SEG"``, ...; ``"no known modality"`` of anything else.
        slices: its CT slices; 0 of anything else.
        files: how many there are.
        image_type: the values of ImageType of its first image, in capitals.
        thickness: the smallest and largest SliceThickness of its CT slices, mm; None where no header says it.
        file: its first file, by name.
    """

    place: Path = field(repr=False)
    series_uid: str
    number: int | None
    modality: str
    slices: int
    files: int
    image_type: tuple[str, ...]
    thickness: tuple[float, float] | None
    file: Path = field(repr=False)


@dataclass(frozen=True)
class Study:
    """See :func:`read_study`.

    Attributes:
        series: by SeriesNumber, then by UID.
        patients: how many different patients its files name.
        studies: how many different studies.
        others: how many files are no DICOM.
    """

    series: tuple[StudySeries, ...]
    patients: int
    studies: int
    others: int


def read_study(place: str | Path) -> Study:
    """Every DICOM series at or below a folder, or of one file.

    Files that are no DICOM are counted, no more. Nothing is decided here: which series are read as scans, and whether
    they can be, :func:`load_scan` tells.

    Raises:
        ScanReadError: there is no such place, a folder in it cannot be listed, or a CT header is damaged.

    Examples:
        >>> from monai_mil.scans import read_study
        >>> _ = (folder / "notes.txt").write_text("no scan")
        >>> read_study(folder)
        Study(series=(), patients=0, studies=0, others=1)
    """
    place = Path(place)
    if not place.exists():
        raise ScanReadError(f"'{place}': no such file or folder")
    paths = _files_below(place) if place.is_dir() else [place]
    found = [(path, read_file(path)) for path in paths]
    groups: dict[tuple[str, str], list[DicomFile]] = defaultdict(list)
    for _, file in found:
        if file is not None:
            groups[file.series_uid, file.modality].append(file)
    files = [file for group in groups.values() for file in group]
    series = [_series(place, group) for group in groups.values()]
    return Study(
        tuple(sorted(series, key=lambda one: (one.number is None, one.number or 0, one.series_uid, one.modality))),
        patients=len({file.patient_id for file in files} - {""}),
        studies=len({file.study_uid for file in files} - {""}),
        others=len(found) - len(files),
    )


def _files_below(folder: Path) -> list[Path]:
    closed: list[OSError] = []
    paths = [path for _, files in walk_files(folder, closed.append) for path in files]
    if closed:
        raise ScanReadError(f"folder '{closed[0].filename}' cannot be read ({closed[0].strerror})")
    return paths


def _series(place: Path, files: list[DicomFile]) -> StudySeries:
    images = [file for file in files if file.slices and not file.is_localizer]
    first = (images or files)[0]
    slices = [piece for file in images for piece in file.slices]
    thickness = [piece.thickness for piece in slices if piece.thickness is not None]
    return StudySeries(
        place=Path(os.path.commonpath([file.path.parent for file in images or files])) if place.is_dir() else place,
        series_uid=first.series_uid,
        number=first.series_number,
        modality=shown_modality(first.modality),
        slices=len(slices),
        files=len(files),
        image_type=first.image_type,
        thickness=(min(thickness), max(thickness)) if thickness else None,
        file=first.path,
    )

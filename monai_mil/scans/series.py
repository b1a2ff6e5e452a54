"""The series of a folder, and the one a scan is read from."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from monai_mil.errors import ScanReadError
from monai_mil.folders import walk_files
from monai_mil.scans.dicom import DicomFile, DicomSlice, read_file, uid_name

_FEW_SERIES = 4


@dataclass(frozen=True)
class SeriesSummary:
    """One series of a folder, without any text a person wrote.

    Attributes:
        series_uid: SeriesInstanceUID.
        modality: as the header says, ``"CT"``, ``"SEG"``, ...
        slices: its CT slices; for anything else its files.
        thickness: every SliceThickness that occurs, mm, ascending.
        is_localizer: every image is a localizer (scout).
    """

    series_uid: str
    modality: str
    slices: int
    thickness: tuple[float, ...]
    is_localizer: bool = False

    def __str__(self) -> str:
        thickness = "/".join(f"{mm:g}" for mm in self.thickness[:4])
        kind = "localizer" if self.is_localizer else self.modality or "no modality"
        return (
            f"{self.series_uid or '(no UID)'}: {kind}, {self.slices} slices{f' of {thickness} mm' if thickness else ''}"
        )


def list_series(folder: str | Path) -> list[SeriesSummary]:
    """The DICOM series in a folder, CT first, then by number of slices.

    Raises:
        ScanReadError: no such folder, or a damaged CT header.
    """
    files, _ = read_folder(Path(folder))
    return _summaries(files)


def read_folder(folder: Path) -> tuple[list[DicomFile], int]:
    """Every DICOM file of ``folder``, and how many other files lie there.

    Where no image lies in the folder itself (a disc with a DICOMDIR), all folders below it are read.
    """
    if not folder.is_dir():
        raise ScanReadError(f"scan '{folder}': no such folder")
    folders = walk_files(folder, _raise_closed)
    direct = _read_all(path for _, paths in islice(folders, 1) for path in paths)
    if any(file.rows for file in direct[0]):
        return direct
    below = _read_all(path for _, paths in folders for path in paths)
    return direct[0] + below[0], direct[1] + below[1]


def _raise_closed(error: OSError) -> None:
    raise ScanReadError(f"scan folder '{error.filename}' cannot be read ({error.strerror})") from error


def choose_series(folder: Path, series_uid: str | None) -> tuple[list[DicomSlice], bool, list[str]]:
    """The CT slices of the one series to read.

    Returns:
        The slices in no special order, whether the folder has further CT series, and remarks on all that was left out.

    Raises:
        ScanReadError: there is no CT, or there are several series and ``series_uid`` names none of them.
    """
    files, not_dicom = read_folder(folder)
    images = [file for file in files if file.slices and not file.is_localizer]
    acquired = [file for file in images if not file.slices[0].is_captured]
    images = acquired or images
    if not images:
        raise ScanReadError(f"scan '{folder}': no CT slices; {_found(files, not_dicom)}")
    uids = sorted({file.series_uid for file in images})
    if series_uid is None and len(uids) == len(images) > _FEW_SERIES:
        raise ScanReadError(
            f"scan '{folder}': every one of its {len(images)} CT files has a series UID of its own, as some "
            "anonymisers write; give the slices of one series one SeriesInstanceUID"
        )
    if series_uid is None and len(uids) > 1:
        raise ScanReadError(
            f"scan '{folder}': {len(uids)} CT series in one folder; choose one with series_uid (a table's column): "
            + "; ".join(str(summary) for summary in _summaries(images))
        )
    chosen = uids[0] if series_uid is None else series_uid
    if chosen not in uids:
        raise ScanReadError(
            f"scan '{folder}': no CT series {series_uid}; it has "
            + "; ".join(str(summary) for summary in _summaries(images))
        )
    slices = [piece for file in images if file.series_uid == chosen for piece in file.slices]
    others = [file for file in files if file not in images]
    return slices, len(uids) > 1, _left_out(others, not_dicom)


def kind_of(file: DicomFile) -> str:
    """What a DICOM file is, in a word or two."""
    if file.slices and not file.slices[0].is_captured:
        return "CT localizer" if file.is_localizer else "CT"
    if file.modality not in ("", "CT", "OT") and file.modality.isalnum():
        return file.modality[:16]
    return uid_name(file.sop_class) or "DICOM object"


def _read_all(paths: Iterator[Path]) -> tuple[list[DicomFile], int]:
    records = [read_file(path) for path in paths]
    files = [record for record in records if record is not None]
    return files, len(records) - len(files)


def _summaries(files: list[DicomFile]) -> list[SeriesSummary]:
    groups: dict[tuple[str, str], list[DicomFile]] = defaultdict(list)
    for file in files:
        if file.series_uid or file.rows:
            groups[file.series_uid, file.modality].append(file)
    summaries = []
    for (uid, modality), group in groups.items():
        slices = [piece for file in group for piece in file.slices]
        thickness = sorted({piece.thickness for piece in slices if piece.thickness is not None})
        is_localizer = bool(slices) and all(piece.file.is_localizer for piece in slices)
        summaries.append(SeriesSummary(uid, modality, len(slices) or len(group), tuple(thickness), is_localizer))
    return sorted(summaries, key=lambda one: (one.modality != "CT", one.is_localizer, -one.slices, one.series_uid))


def _found(files: list[DicomFile], not_dicom: int) -> str:
    if not files and not not_dicom:
        return "the folder is empty"
    kinds = Counter(kind_of(file) for file in files)
    if not_dicom:
        kinds["not DICOM"] = not_dicom
    return "found " + ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items()))


def _left_out(files: list[DicomFile], not_dicom: int) -> list[str]:
    counts = Counter(kind_of(file) for file in files)
    remarks = [f"{count} x {kind} beside the slices ignored" for kind, count in sorted(counts.items())]
    if not_dicom:
        remarks.append(f"{not_dicom} files that are not DICOM ignored")
    return remarks

"""The series of a folder, and the one a scan is read from."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from monai_mil.errors import ScanReadError
from monai_mil.folders import walk_files
from monai_mil.scans.acquisitions import choose_acquisition
from monai_mil.scans.concatenation import check_parts
from monai_mil.scans.dicom import DicomFile, DicomSlice, as_uid, read_file, shown_uid, uid_name
from monai_mil.scans.kinds import describe_kinds
from monai_mil.scans.strays import without_strays

_FEW_SERIES = 4
_SAME_PLACE_MM = 0.01
_MODALITIES = {
    "CT", "MR", "PT", "NM", "US", "CR", "DX", "MG", "XA", "RF", "OT", "SC", "SM", "SEG", "SR", "PR", "KO", "REG", "DOC",
    "RTSTRUCT", "RTDOSE", "RTPLAN", "RTIMAGE", "RTRECORD", "ES", "GM", "XC", "OP", "OPT", "IVUS", "ECG", "FID", "ANN",
}  # fmt: skip
"""What messages show: in a damaged header anything may stand in its place."""


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
        kind = "localizer" if self.is_localizer else shown_modality(self.modality)
        return f"{shown_uid(self.series_uid)}: {kind}, {self.slices} slices{f' of {thickness} mm' if thickness else ''}"


def shown_modality(modality: str) -> str:
    """A modality as messages show it."""
    return modality if modality in _MODALITIES else "no known modality"


@dataclass(frozen=True)
class FolderContent:
    """The DICOM files of a folder, its other files, and links that lead nowhere."""

    files: list[DicomFile]
    others: list[Path]
    broken: list[Path]

    @property
    def empty(self) -> list[Path]:
        """The files without any content."""
        return [path for path in self.others if not path.stat().st_size]


@dataclass(frozen=True)
class ChosenSlices:
    """The slices a scan is made of, in no special order.

    Attributes:
        slices: at least one.
        has_others: whether there are further CT series beside them.
        remarks: on all that was left out.
    """

    slices: list[DicomSlice]
    has_others: bool
    remarks: list[str]


def list_series(folder: str | Path) -> list[SeriesSummary]:
    """The DICOM series in a folder, CT first, then by number of slices.

    Raises:
        ScanReadError: no such folder, or a damaged CT header.
    """
    return _summaries(read_folder(Path(folder)).files)


def read_folder(folder: Path, series_uid: str | None = None) -> FolderContent:
    """What lies in a folder.

    Where no image lies in the folder itself (a disc with a DICOMDIR), all folders below it are read. Else of those
    only what goes on with a series of the folder itself, and the series asked for where it lies below alone.
    """
    if not folder.is_dir():
        raise ScanReadError(f"scan '{folder}': no such folder")
    broken: list[Path] = []
    closed: list[OSError] = []
    walk = walk_files(folder, closed.append, broken.append)
    direct = _read_all(next(walk, (folder, []))[1])
    if not any(file.rows for file in direct.files):
        below = _read_all(path for _, paths in walk for path in paths)
        if closed:
            raise ScanReadError(f"scan folder '{closed[0].filename}' cannot be read ({closed[0].strerror})")
        return FolderContent(direct.files + below.files, direct.others + below.others, broken)
    below = _read_all((path for _, paths in walk for path in paths), pass_over_damaged=True)
    broken = [path for path in broken if path.parent == folder]
    further = _continuing(direct.files, below.files)
    if series_uid is not None and not any(file.series_uid == series_uid for file in direct.files):
        further = [file for file in below.files if file.series_uid == series_uid]
    return FolderContent(direct.files + further, direct.others, broken)


def _read_all(paths: Iterable[Path], *, pass_over_damaged: bool = False) -> FolderContent:
    files, others = [], []
    for path in paths:
        try:
            file = read_file(path)
        except ScanReadError:
            if not pass_over_damaged:
                raise
            continue
        if file is None:
            others.append(path)
        else:
            files.append(file)
    return FolderContent(files, others, [])


def _continuing(here: list[DicomFile], below: list[DicomFile]) -> list[DicomFile]:
    """The files below a folder that go on with a series in it."""
    found: list[DicomFile] = []
    for uid, group in by_series(here).items():
        for rest in by_folder(by_series(below).get(uid, [])).values():
            if continues(group, rest):
                found += rest
    return found


def by_series(files: Iterable[DicomFile]) -> dict[tuple[str, str, str], list[DicomFile]]:
    """CT files by patient, study and series; those that name no series are left out."""
    groups: dict[tuple[str, str, str], list[DicomFile]] = defaultdict(list)
    for file in files:
        if file.slices and not file.is_localizer and file.series_uid:
            groups[file.patient_id, file.study_uid, file.series_uid].append(file)
    return groups


def by_folder(files: Iterable[DicomFile]) -> dict[Path, list[DicomFile]]:
    """Files by the folder they lie in."""
    groups: dict[Path, list[DicomFile]] = defaultdict(list)
    for file in files:
        groups[file.path.parent].append(file)
    return groups


def continues(some: list[DicomFile], others: list[DicomFile]) -> bool:
    """Whether files of one series in two folders are parts of one scan: alike, each with its own place and number.

    Slices at the same places are a copy or another phase, in a folder of its own because it is a scan of its own.
    Numbers that begin anew are another patient's, where an anonymiser gave all series one UID.
    """
    first, second = (
        [piece for file in files for piece in file.slices if piece.origin is not None] for files in (some, others)
    )
    if not first or not second or _usual_kind(first) != _usual_kind(second):
        return False
    if {piece.file.instance_number for piece in first} & {piece.file.instance_number for piece in second} - {None}:
        return False
    frames = [{piece.file.frame_of_reference_uid for piece in part} for part in (first, second)]
    if frames[0] != frames[1] and len(frames[0]) == len(frames[1]) == 1:
        return False
    places = np.array([piece.origin for piece in first])
    return all(np.abs(places - piece.origin).max(axis=1).min() > _SAME_PLACE_MM for piece in second)


def _usual_kind(slices: list[DicomSlice]) -> tuple[object, ...]:
    """Size, direction and spacing of most slices."""
    kinds: Counter[tuple[object, ...]] = Counter()
    for piece in slices:
        turned = None if piece.orientation is None else tuple(piece.orientation.round(2).ravel().tolist())
        spacing = None if piece.spacing is None else tuple(piece.spacing.round(2).tolist())
        kinds[piece.file.rows, piece.file.columns, turned, spacing] += 1
    return kinds.most_common(1)[0][0]


def choose_series(folder: Path, series_uid: str | None = None, acquisition: str | None = None) -> ChosenSlices:
    """The CT slices of the one series, and of the one acquisition in it, to read.

    Raises:
        ScanReadError: there is no CT, or there are several series and ``series_uid`` names none of them; likewise of
            acquisitions.
    """
    series_uid = None if series_uid is None else as_uid(series_uid)
    content = read_folder(folder, series_uid)
    images = [file for file in content.files if file.slices and not file.is_localizer]
    acquired = [file for file in images if not file.slices[0].is_captured]
    images = acquired or images
    if not images:
        raise ScanReadError(f"scan '{folder}': no CT slices; {_found(content)}")
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
    one, strays = one_acquisition(str(folder), slices, acquisition)
    others = [file for file in content.files if file not in images]
    return ChosenSlices(one, len(uids) > 1, [*_places_of(slices), *strays, *_left_out(others, content)])


def one_acquisition(name: str, slices: list[DicomSlice], acquisition: str | None) -> tuple[list[DicomSlice], list[str]]:
    """The slices of one acquisition of a series, without images that are none of its slices; remarks on those.

    Raises:
        ScanReadError: there are several acquisitions, or none of that name; a part of a concatenation is missing.
    """
    check_parts({piece.file for piece in slices})
    slices, remarks = without_strays(slices)
    chosen = choose_acquisition(name, slices, acquisition)
    if len(chosen) < len(slices):
        remarks.append(f"acquisition {acquisition} was chosen: {len(slices) - len(chosen)} slices of others left out")
    return chosen, remarks


def kind_of(file: DicomFile) -> str:
    """What a DICOM file is, in a word or two."""
    if file.slices and not file.slices[0].is_captured:
        return "CT localizer" if file.is_localizer else "CT"
    if file.rows and not file.is_grey:
        return "colour picture"
    if file.modality in _MODALITIES - {"CT", "OT"}:
        return file.modality
    return uid_name(file.sop_class) or "DICOM object"


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


def _found(content: FolderContent) -> str:
    if not (content.files or content.others or content.broken):
        return "the folder is empty"
    kinds = Counter(kind_of(file) for file in content.files)
    listed = [f"{count} x {kind}" for kind, count in sorted(kinds.items())]
    if content.broken:
        listed.append(f"{len(content.broken)} x link that leads nowhere, as {content.broken[0].name}")
    if content.others:
        listed.append(f"{len(content.others)} x not DICOM: {describe_kinds(content.others)}")
    return "found " + ", ".join(listed)


def _places_of(slices: list[DicomSlice]) -> list[str]:
    folders = {piece.file.path.parent for piece in slices}
    return [f"its slices lie in {len(folders)} folders"] if len(folders) > 1 else []


def _left_out(files: list[DicomFile], content: FolderContent) -> list[str]:
    counts = Counter(kind_of(file) for file in files)
    remarks = [f"{count} x {kind} beside the slices ignored" for kind, count in sorted(counts.items())]
    if content.broken:
        remarks.append(
            f"{len(content.broken)} links in the folder lead nowhere, as {content.broken[0].name}: slices may be "
            "missing"
        )
    if content.empty:
        remarks.append(f"{len(content.empty)} files are empty, as {content.empty[0].name}: slices may be missing")
    if content.others:
        remarks.append(f"{len(content.others)} files that are not DICOM ignored")
    return remarks

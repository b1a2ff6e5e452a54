"""The scans below a folder, and the folders in which somebody may be lost."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from monai_mil.errors import ScanReadError
from monai_mil.folders import walk_files
from monai_mil.scans.dicom import DicomFile, read_file
from monai_mil.scans.kinds import is_of_a_program, may_hold_a_scan
from monai_mil.scans.masks import is_mask
from monai_mil.scans.spread import Spread, spread_series
from monai_mil.scans.twins import without_twins
from monai_mil.scans.volume import volume_suffix

_SAMPLED = 8
"""Of so many files of a series folder the headers are read, to see whether its series goes on in another folder."""
_DIRECTORY = "1.2.840.10008.1.3.10"


@dataclass(frozen=True)
class FoundScan:
    """What :func:`load_scan` takes.

    Attributes:
        path: a folder, a file of multi-frame CT or a volume file; also what holds no scan but should be told of, which
            ``load_scan`` refuses with the reason.
        series_uid: the series to take where the folder holds other scans too.
    """

    path: Path
    series_uid: str | None = None


@dataclass(frozen=True)
class ScanSearch:
    """What a folder holds; see :func:`search_scans`.

    Attributes:
        scans: sorted by path.
        left_out: sentences on what is no scan of its own: masks, and volumes made of a series that was found.
    """

    scans: tuple[FoundScan, ...]
    left_out: tuple[str, ...]


def find_scans(folder: str | Path) -> list[Path]:
    """Every scan at or below a folder, sorted: the paths of :func:`search_scans`.

    Raises:
        ScanReadError: no such folder.
    """
    return sorted({scan.path for scan in search_scans(folder).scans})


def search_scans(folder: str | Path) -> ScanSearch:
    """Look for the scans at or below a folder, so that nobody in it is lost.

    Scans are folders that hold CT slices directly, files of multi-frame CT, and volume files. Hidden ones are left out.
    A series whose slices lie in several folders is one scan, at the folder they have in common; so are the parts of a
    concatenation, at the first. Masks are no scans, and of a series and the NIfTI file made of it only the series is
    one.

    A folder that holds files and no scan counts as one where somebody may be in it whose scan was not found: it cannot
    be listed, holds damaged DICOM, DICOM of a patient without a scan, archives or other packed files, links that lead
    nowhere, or whatever else in a part of the tree without any scan. Reading it fails with the reason.

    Raises:
        ScanReadError: no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ScanReadError(f"'{folder}': no such folder")
    closed: list[Path] = []
    broken: dict[Path, list[Path]] = defaultdict(list)
    walk = walk_files(folder, lambda error: closed.append(Path(error.filename)), lambda p: broken[p.parent].append(p))
    places = [
        _look_into(parent, [path for path in paths if not path.name.startswith(".")], folder, broken.pop(parent, []))
        for parent, paths in walk
    ]
    spread = spread_series({place.path: place.sampled for place in places if place.has_slices})
    _find_in_each(places, spread)
    whole = [FoundScan(path) for place in places for path in place.scans]
    scans, twins = without_twins(folder, [*whole, *_spread_scans(spread, [scan.path for scan in whole])])
    scans += map(FoundScan, [*_lost(folder, places, spread), *closed])
    return ScanSearch(
        tuple(sorted(scans, key=lambda scan: (scan.path, scan.series_uid or ""))),
        (*_told_masks(folder, places), *twins),
    )


@dataclass
class _Place:
    """One folder: what lies directly in it."""

    path: Path
    has_slices: bool = False
    is_damaged: bool = False
    sampled: list[DicomFile] = field(default_factory=list)
    multi_frame: list[DicomFile] = field(default_factory=list)
    volumes: list[Path] = field(default_factory=list)
    masks: list[Path] = field(default_factory=list)
    not_ct: list[DicomFile] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    broken: list[Path] = field(default_factory=list)
    scans: list[Path] = field(default_factory=list)

    def suspects(self, known: set[str]) -> list[Path]:
        """The files that may hold somebody's scan: packed ones, links, DICOM of patients and studies not known."""
        strangers = [
            file.path
            for file in self.not_ct
            if file.sop_class != _DIRECTORY and not known & {file.patient_id, file.study_uid}
        ]
        return [*filter(may_hold_a_scan, self.others), *self.broken, *strangers[:1]]


def _find_in_each(places: list[_Place], spread: Spread) -> None:
    """Set the scans that lie in each folder and in no other; of the parts of a concatenation the first one is."""
    parts: set[str] = set()
    for place in places:
        if place.has_slices:
            place.scans = [*([] if place.path in spread.folders else [place.path]), *place.volumes]
            continue
        for file in sorted(place.multi_frame, key=lambda file: (file.part or 0, file.path)):
            if not file.concatenation_uid or file.concatenation_uid not in parts:
                place.scans.append(file.path)
            parts.add(file.concatenation_uid)
        place.scans += place.volumes
        if place.is_damaged and not place.scans and not place.multi_frame:
            place.scans = [place.path]


def _look_into(folder: Path, paths: list[Path], below: Path, broken: list[Path]) -> _Place:
    place = _Place(folder, broken=[path for path in broken if not path.name.startswith(".")])
    rest = []
    for path in paths:
        if volume_suffix(path) is None:
            rest.append(path)
        else:
            (place.masks if is_mask(path, below) else place.volumes).append(path)
    for index, path in enumerate(rest):
        try:
            file = read_file(path)
        except ScanReadError:
            place.is_damaged = True
            continue
        if file is None:
            place.others.append(path)
        elif not file.slices or file.is_localizer:
            place.not_ct.append(file)
        elif len(file.slices) > 1:
            place.multi_frame.append(file)
        else:
            place.has_slices = True
            place.sampled = [file, *_sample(rest[index + 1 :])]
            place.others += rest[index + 1 :]
            return place
    place.sampled = place.multi_frame
    return place


def _sample(paths: list[Path]) -> list[DicomFile]:
    """The records of some files, first and last among them."""
    step = max(1, -(-(len(paths) - 1) // (_SAMPLED - 1)))
    records = []
    for path in dict.fromkeys([*paths[::step], *paths[-1:]]):
        try:
            record = read_file(path)
        except ScanReadError:  # told when the scan is read
            continue
        if record is not None and record.slices:
            records.append(record)
    return records


def _spread_scans(spread: Spread, others: list[Path]) -> list[FoundScan]:
    """Series in several folders; they are named by their UID where other scans lie in the same part of the tree."""
    found = []
    for top, uids in spread.series.items():
        elsewhere = [path for path in spread.series if path != top]
        is_alone = len(uids) == 1 and not any(
            path == top or top in path.parents or path in top.parents for path in (*others, *elsewhere)
        )
        found += [FoundScan(top, None if is_alone else uid) for uid in uids]
    return found


def _told_masks(folder: Path, places: list[_Place]) -> list[str]:
    masks = sorted(path for place in places for path in place.masks)
    if not masks:
        return []
    return [f"folder '{folder}': {len(masks)} masks or segmentations are no scans, as {masks[0].relative_to(folder)}"]


def _lost(folder: Path, places: list[_Place], spread: Spread) -> list[Path]:
    """What holds files but no scan and may be somebody's."""
    with_scans = {place.path for place in places if place.scans or place.multi_frame or place.path in spread.folders}
    above = {parent for path in with_scans for parent in (path, *path.parents)}
    files = [file for place in places for file in place.sampled]
    known = {file.patient_id for file in files} | {file.study_uid for file in files}
    found: list[Path] = []
    for place in places:
        if place.has_slices:  # what lies beside its slices is told when they are read
            continue
        suspects = place.suspects(known - {""})
        found += suspects if place.path in above else [place.path] if suspects else []
    return list(dict.fromkeys([*found, *_without_any(folder, places, above, found)]))


def _without_any(folder: Path, places: list[_Place], above: set[Path], told: list[Path]) -> list[Path]:
    """The highest folders, below the one that is searched, that hold files but no scan at any depth.

    Not of those beside scans: what lies in ``patient/report`` belongs to the scans in ``patient``.
    """
    found = []
    for place in places:
        if place.path != folder and (place.masks or not all(map(is_of_a_program, place.others))):
            top = next(path for path in (place.path, *place.path.parents) if path.parent == folder)
            if top not in above and not any(top == path or top in path.parents for path in told):
                found.append(top)
    return found

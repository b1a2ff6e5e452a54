"""Which series or slide of what came in is read: always the same one, and it is told why."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai_mil.cohorts import find_slides
from monai_mil.deploy.job import Exit, JobError
from monai_mil.errors import CohortError, SettingsError
from monai_mil.scans import Study, StudySeries, read_study
from monai_mil.slides import slide_files

_COUNT = "slices"
_THICKNESS = "SliceThickness"
_NOT = "!"


@dataclass(frozen=True)
class Source:
    """The series or slide that a job reads.

    Attributes:
        place: what the bundle is given.
        series_uid: of a scan, the series to take at ``place``; None of a slide.
        report: what ``status.json`` says of the choice, without patient data.
        is_dicom: whether it is DICOM, so that DICOM objects can be made of it.
    """

    place: Path = field(repr=False)
    series_uid: str | None
    report: Mapping[str, Any]
    is_dicom: bool = True

    def item(self, name: str) -> dict[str, str]:
        """The case of a bundle's data list, under a name that tells nothing of where it came from."""
        if self.series_uid is None:
            return {"image": str(self.place), "slide_id": name}
        return {"image": str(self.place), "scan_id": name, "series_uid": self.series_uid}


def find_scan(place: Path, rules: Sequence[Mapping[str, Any]]) -> Source:
    """The CT series to read of all that lies at or below ``place``.

    Args:
        place: a folder, or a file of multi-frame CT.
        rules: what a series must meet, best first, see :func:`choose_series`.

    Raises:
        JobError: no series meets a rule, or the files are of several patients or studies.
        ScanReadError: a header is damaged, or a folder cannot be read.
    """
    study = read_study(place)
    for count, what in ((study.patients, "patients"), (study.studies, "studies")):
        if count > 1:
            raise JobError(Exit.INVALID_INPUT, f"the input holds files of {count} {what}; give those of one")
    chosen, rank = choose_series(study.series, rules)
    ranked = [_report(index, one, rules) for index, one in enumerate(study.series, 1)]
    if chosen is None:
        told = "; ".join(f"{one['index']}: {one['modality']}, {one['slices']} slices" for one in ranked)
        raise JobError(Exit.NO_INPUT, f"no suitable CT series in the input; it holds {told or 'no DICOM series'}")
    index = study.series.index(chosen) + 1
    reason = f"it meets rule {rank} of {len(rules)}" + _tie(study, chosen, rank, rules)
    report = {"chosen": index, "reason": reason, "series": ranked, "other_files": study.others}
    return Source(chosen.place, chosen.series_uid, report)


def choose_series(
    series: Sequence[StudySeries], rules: Sequence[Mapping[str, Any]]
) -> tuple[StudySeries | None, int | None]:
    """The CT series that meets the best rule; of several the one of most slices, lowest SeriesNumber, lowest UID.

    A rule names attributes and what they must be: of a list of texts all must be among the attribute's values, those
    with ``!`` in front must not; two numbers are the lowest and highest (null: no bound); a text is a regular
    expression that is looked for, in any case. ``slices`` is the number of CT slices, SliceThickness is known of
    multi-frame CT too, any other attribute is read from the series' first file. What no header says meets nothing.

    Returns:
        The series and the number of its rule, from 1; None where there is none.

    Raises:
        SettingsError: a rule says something else.
    """
    ranked = [(rank, one) for one in series if one.slices and (rank := _rank(one, rules)) is not None]
    if not ranked:
        return None, None
    rank, chosen = min(ranked, key=lambda found: (found[0], *_order(found[1])))
    return chosen, rank


def find_slide(place: Path) -> Source:
    """The one slide at or below ``place``.

    Raises:
        JobError: there is none, there are several, or its files are of several patients or studies.
    """
    try:
        slides = [place] if place.is_file() else find_slides(place)
    except CohortError:
        raise JobError(Exit.NO_INPUT, "no slide in the input") from None
    if len(slides) > 1:
        raise JobError(Exit.INVALID_INPUT, f"the input holds {len(slides)} slides; give one")
    files = [file for file in slide_files(slides[0]) if _is_dicom(file)]
    for keyword, what in (("PatientID", "patients"), ("StudyInstanceUID", "studies")):
        if (count := len({_text_of(file, keyword) for file in files} - {""})) > 1:
            raise JobError(Exit.INVALID_INPUT, f"the slide's files are of {count} {what}; give those of one")
    return Source(slides[0], None, {"chosen": 1, "reason": "it is the only slide"}, is_dicom=bool(files))


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _text_of(path: Path, keyword: str) -> str:
    """An attribute of a DICOM file; empty where it is not there, or the header is damaged, which the reader tells."""
    import pydicom

    try:
        with pydicom.config.disable_value_validation():
            return str(pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[keyword]).get(keyword) or "")
    except Exception:  # pydicom raises whatever its parser meets
        return ""


def _order(one: StudySeries) -> tuple[int, bool, int, str]:
    return -one.slices, one.number is None, one.number or 0, one.series_uid


def _rank(one: StudySeries, rules: Sequence[Mapping[str, Any]]) -> int | None:
    """The number of the first rule that a series meets, from 1."""
    return next((rank for rank, rule in enumerate(rules, 1) if not _unmet(one, rule)), None)


def _unmet(one: StudySeries, rule: Mapping[str, Any]) -> list[str]:
    """What a rule names that a series does not meet."""
    header = _header(one, rule)
    return [name for name, wanted in rule.items() if not _meets(name, _values(one, name, header), wanted)]


def _values(one: StudySeries, name: str, header: Mapping[str, Sequence[str]]) -> Sequence[Any]:
    if name == _COUNT:
        return [one.slices]
    if name == _THICKNESS:
        return one.thickness or ()
    return one.image_type if name == "ImageType" else header[name]


def _header(one: StudySeries, rule: Mapping[str, Any]) -> dict[str, list[str]]:
    """The values of what a rule names and :class:`StudySeries` does not know."""
    names = [name for name in rule if name not in (_COUNT, _THICKNESS, "ImageType")]
    if not names:
        return {}
    import pydicom

    with pydicom.config.disable_value_validation():
        dataset = pydicom.dcmread(one.file, stop_before_pixels=True, force=True, specific_tags=names)
        return {name: _texts(dataset.get(name)) for name in names}


def _texts(value: Any) -> list[str]:
    if value is None or value == "":
        return []
    many = isinstance(value, Sequence) and not isinstance(value, str)
    return [str(each).strip() for each in (value if many else [value])]


def _meets(name: str, values: Sequence[Any], wanted: Any) -> bool:
    if isinstance(wanted, str):
        return any(re.search(wanted, str(value), re.IGNORECASE) for value in values)
    if isinstance(wanted, list) and wanted and all(isinstance(each, str) for each in wanted):
        known = {str(value).upper() for value in values}
        return all(
            each.removeprefix(_NOT).upper() not in known if each.startswith(_NOT) else each.upper() in known
            for each in wanted
        )
    if isinstance(wanted, list) and len(wanted) == 2:
        low, high = (each if each is None else float(each) for each in wanted)
        numbers = [float(value) for value in values if _is_number(value)]
        return bool(numbers) and all(
            (low is None or number >= low) and (high is None or number <= high) for number in numbers
        )
    raise SettingsError(
        f"a rule of configs/deploy.json asks '{name}' for {wanted!r}: give texts, two numbers or a text"
    )


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _tie(study: Study, chosen: StudySeries, rank: int | None, rules: Sequence[Mapping[str, Any]]) -> str:
    """Why it is this series of those that meet the same rule."""
    others = [one for one in study.series if one is not chosen and one.slices and _rank(one, rules) == rank]
    if not others:
        return ""
    first = sorted(others, key=_order)[0]
    if first.slices < chosen.slices:
        return f", and has the most slices of the {len(others) + 1} that do"
    which = "SeriesNumber" if (first.number is None, first.number) != (chosen.number is None, chosen.number) else "UID"
    return f", and of the {len(others) + 1} that do, with as many slices, the lowest {which}"


def _report(index: int, one: StudySeries, rules: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A series in the list that ``status.json`` shows."""
    rank = _rank(one, rules) if one.slices else None
    told = {"index": index, "modality": one.modality, "number": one.number, "slices": one.slices, "files": one.files}
    told["rule"] = rank
    if one.slices and rank is None:
        told["not_met"] = [_unmet(one, rule) for rule in rules]
    return told

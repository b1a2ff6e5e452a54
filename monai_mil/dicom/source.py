"""What DICOM results refer to: the headers of the series or slide they are made of."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_mil.errors import DicomError, MonaiMILError
from monai_mil.heatmaps import SlideFrame
from monai_mil.scans import ScanFrame, as_uid, scan_files
from monai_mil.slides import slide_files

_TYPE_2 = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
)
_SEXES = ("", "M", "F", "O")
_MOMENTS = (
    ("ContentDate", "ContentTime"),
    ("AcquisitionDate", "AcquisitionTime"),
    ("SeriesDate", "SeriesTime"),
    ("StudyDate", "StudyTime"),
)
_NO_MOMENT = ("19000101", "000000")


@dataclass(frozen=True, eq=False)
class DicomSource:
    """The instances that results are made of, without their pixels; made by :func:`scan_source`, :func:`slide_source`.

    Attributes:
        name: of the case, for errors.
        headers: of a series every instance, of a slide its finest level; what the standard asks for and the source
            lacks (attributes of type 2) is blank in them.
        odd: elements that highdicom takes for wrong, as they stand in the source: every object gets them back.
        is_slide: whether it is a slide.
    """

    name: str
    headers: tuple[Any, ...]
    odd: tuple[Any, ...] = ()
    is_slide: bool = False

    @property
    def first(self) -> Any:
        """The header that objects take patient, study and the like from."""
        return self.headers[0]

    @property
    def moment(self) -> tuple[str, str]:
        """Date and time that the source says of its content, which its results have too: a re-run is the same then."""
        for date_name, time_name in _MOMENTS:
            date = _date(self.first.get(date_name))
            if date:
                return date, _time(self.first.get(time_name)) or _NO_MOMENT[1]
        return _NO_MOMENT


def scan_source(frame: ScanFrame) -> DicomSource:
    """The series of a scan, read again from the file or folder that ``load_scan`` read.

    Args:
        frame: of the scan, as ``load_scan``, a bag or a heatmap has it.

    Raises:
        DicomError: it is no DICOM, is not there any more, or lacks a UID that results must name.

    Examples:
        >>> from monai_mil.dicom import scan_source
        >>> from monai_mil.scans import load_scan
        >>> from monai_mil.synthetic import make_scan_cohort
        >>> cohort = make_scan_cohort(folder, num_scans=4, slices=(6, 6), size=64, fractions=(1, 0, 0))
        >>> source = scan_source(load_scan(next((folder / "scans").iterdir())).frame)
        >>> len(source.headers), str(source.first.Modality)
        (6, 'CT')
    """
    where, wanted = f"scan '{frame.scan_id}'", frame.source.sop_uids
    if not any(wanted):
        raise DicomError(f"{where}: no DICOM objects, for it is no DICOM; give the DICOM series")
    if frame.path is None or not Path(frame.path).exists():
        raise DicomError(f"{where}: no DICOM objects, for its series is not at '{frame.path}' any more; put it back")
    try:
        paths = scan_files(frame.path, frame.series_uid or None, frame.acquisition or None)
    except MonaiMILError as error:
        raise DicomError(f"{where}: no DICOM objects: {error}") from error
    with lenient():
        found = {as_uid(header.get("SOPInstanceUID")): header for header in map(_header, paths)}
    missing = [uid for uid in wanted if uid not in found]
    if missing:
        raise DicomError(
            f"{where}: no DICOM objects, for {len(missing)} of its {len(wanted)} slices are not at '{frame.path}' any "
            "more; predict it again"
        )
    return _checked(where, frame.scan_id, [found[uid] for uid in dict.fromkeys(wanted)])


def slide_source(frame: SlideFrame) -> DicomSource:
    """The finest level of a DICOM slide.

    Args:
        frame: of the slide, as a heatmap has it.

    Raises:
        DicomError: it is no DICOM, is not there any more, or lacks a UID that results must name.
    """
    where = f"slide '{frame.slide_id}'"
    if frame.slide_path is None or not Path(frame.slide_path).exists():
        raise DicomError(f"{where}: no DICOM objects, for it is not at '{frame.slide_path}' any more; put it back")
    files = [path for path in slide_files(frame.slide_path) if _is_dicom(path)]
    if not files:
        raise DicomError(f"{where}: no DICOM objects, for it is no DICOM; give the DICOM slide")
    with lenient():
        levels = [header for header in map(_header, files) if "VOLUME" in header.get("ImageType", ())]
        levels.sort(key=lambda header: -_size(header)[0])
    if not levels or _size(levels[0]) != frame.level0_size:
        raise DicomError(f"{where}: no DICOM objects, for '{frame.slide_path}' is another slide now; predict it again")
    return _checked(where, frame.slide_id, levels[:1], is_slide=True)


@contextmanager
def lenient() -> Iterator[None]:
    """Take the source's values as they are, and let nobody quote them.

    pydicom would refuse those that break a rule of the standard; its warnings and highdicom's hold them, the patient's
    name too.
    """
    import pydicom

    logger = logging.getLogger("highdicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with pydicom.config.disable_value_validation(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _header(path: Path) -> Any:
    import pydicom

    try:
        with lenient():
            return pydicom.dcmread(path, stop_before_pixels=True, force=True)
    except Exception:  # pydicom raises whatever its parsers meet; its words may quote the header
        raise DicomError(f"'{path}': its DICOM header cannot be read; copy the file again") from None


def _size(header: Any) -> tuple[int, int]:
    return int(header.get("TotalPixelMatrixColumns") or 0), int(header.get("TotalPixelMatrixRows") or 0)


def _is_dicom(path: Path) -> bool:
    from pydicom.misc import is_dicom

    return bool(is_dicom(path))


def _checked(where: str, name: str, headers: list[Any], is_slide: bool = False) -> DicomSource:
    """A source whose headers name what every object must name."""
    with lenient():
        for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
            if any(not header.get(keyword) or as_uid(header.get(keyword)) != header.get(keyword) for header in headers):
                raise DicomError(f"{where}: no DICOM objects, for its header has no valid {keyword}; export it again")
        for header in headers:
            header.Modality = header.get("Modality") or ("SM" if is_slide else "CT")
            for keyword in _TYPE_2:
                if keyword not in header:
                    setattr(header, keyword, None if keyword.endswith(("Date", "Time")) else "")
        return DicomSource(name, tuple(headers), tuple(_made_plain(headers)), is_slide)


def _made_plain(headers: list[Any]) -> Iterable[Any]:
    """Blank what highdicom would not take; give the elements as they stood."""
    for keyword in ("PatientBirthDate", "StudyDate", "StudyTime", "PatientSex"):
        value = headers[0].get(keyword)
        right = {"Date": _date, "Time": _time}.get(keyword[-4:], lambda text: text if text in _SEXES else "")
        if value and not right(str(value)):
            yield deepcopy(headers[0][keyword])
            for header in headers:
                setattr(header, keyword, "")


def _date(value: Any) -> str:
    """A date as the standard writes it, or ``""``."""
    text = str(value or "").strip()
    return text if len(text) == 8 and text.isdecimal() and "01" <= text[4:6] <= "12" and text[6:] <= "31" else ""


def _time(value: Any) -> str:
    """A time as the standard writes it, or ``""``."""
    text = str(value or "").strip()
    whole, _, parts = text.partition(".")
    fits = whole.isdecimal() and len(whole) in (2, 4, 6) and whole[:2] < "24" and whole[2:4] < "60"
    return text if fits and (not parts or parts.isdecimal()) else ""

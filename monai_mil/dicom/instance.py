"""What all objects share: the source's words, dates and characters, and UIDs that depend on all that is in them."""

from __future__ import annotations

import hashlib
import json
import uuid
from io import BytesIO
from pathlib import Path
from typing import Any

from monai_mil import __version__
from monai_mil.dicom.algorithm import RESEARCH, Algorithm
from monai_mil.dicom.source import DicomSource, lenient
from monai_mil.dicom.terms import PRIVATE
from monai_mil.files import replacing

SERIES_NUMBERS = {"SR": 9001, "SEG": 9002, "FRACTIONAL": 9003, "PM": 9004, "ANN": 9005, "SC": 9006}
_SERIES, _INSTANCE, _DIMENSIONS = "2.25.1", "2.25.2", "2.25.3"
"""Stand for the object's own UIDs until all else that is in it is known."""
_OF_NOW = (
    *("InstanceCreationDate", "InstanceCreationTime", "DateOfSecondaryCapture", "TimeOfSecondaryCapture"),
    "ContributionDateTime",
)
_BULK = ("PixelData", "FloatPixelData")
_OF_ALL = ("TimezoneOffsetFromUTC",)
_OF_IMAGES = ("BodyPartExamined", "Laterality")
_TELLS_THE_SIDE = ("Laterality", "BodyPartExamined", "SpecimenDescriptionSequence")
_TEXTS = ("LO", "LT", "SH", "ST", "UC", "UT")
_NAMESPACE = uuid.UUID("5b0c2c57-7d1c-5b39-9f0d-2f6c1c5a4f10")


def derived_uid(*parts: Any) -> str:
    """A UID that the same parts always give, and no others."""
    told = hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()
    return f"2.25.{uuid.uuid5(_NAMESPACE, told).int}"


def constructor_arguments(source: DicomSource, algorithm: Algorithm, kind: str, what: str) -> dict[str, Any]:
    """What every constructor of highdicom is given.

    Args:
        source: what the object is made of.
        algorithm: what made it.
        kind: a key of ``SERIES_NUMBERS``.
        what: the object in a word or two, for the series' description.
    """
    date, time = source.moment
    return {
        "series_instance_uid": _SERIES,
        "series_number": SERIES_NUMBERS[kind],
        "sop_instance_uid": _INSTANCE,
        "instance_number": 1,
        "series_description": series_description(what),
        "specific_character_set": None,
        "content_date": date,
        "content_time": time,
        **algorithm.equipment,
    }


def series_description(what: str) -> str:
    """``AI <what>, research use only``, of at most 64 characters."""
    end = f", {RESEARCH}"
    return f"AI {what}"[: 64 - len(end)].rstrip() + end


def referenced_key(source: DicomSource, algorithm: Algorithm) -> list[Any]:
    """What every UID depends on beside the content: the source's UIDs, the weights, the configuration, the version."""
    instances = sorted(str(header.SOPInstanceUID) for header in source.headers)
    series = str(source.first.StudyInstanceUID), str(source.first.SeriesInstanceUID)
    return [*series, instances, algorithm.name, algorithm.weights, algorithm.configuration, __version__]


def write_instance(path: Path, made: Any, source: DicomSource, algorithm: Algorithm, kind: str) -> Path:
    """Complete an object of highdicom's and write it whole, or leave the file that is there.

    Patient, study, dates and character set are the source's; nothing is of the time at which it is written; its UIDs
    are made of the source's, of the algorithm and of all that is in it.

    Raises:
        OutputError: it cannot be written.
    """
    with lenient():
        _complete(made, source, kind)
        _name(made, source, algorithm, kind)
        with replacing(path) as temporary:
            made.save_as(temporary, enforce_file_format=True)
    return path


def _complete(made: Any, source: DicomSource, kind: str) -> None:
    first = source.first
    made.copy_patient_and_study_information(first)
    for element in source.odd:
        made.add(element)
    for keyword in _OF_ALL if kind in ("SR", "ANN") else (*_OF_ALL, *_OF_IMAGES):
        if keyword in first and keyword not in made:
            made.add(first[keyword])
    if kind in ("SC", "ANN") and not set(_TELLS_THE_SIDE) & set(made.dir()):
        made.Laterality = None
    made.ContentQualification = "RESEARCH"
    made.walk(_without_now)
    if PRIVATE in _values(made, ("CodingSchemeDesignator",)):
        made.CodingSchemeIdentificationSequence = [_own_scheme()]
    _set_characters(made, first)


def _own_scheme() -> Any:
    from pydicom.dataset import Dataset

    scheme = Dataset()
    scheme.CodingSchemeDesignator, scheme.CodingSchemeName = PRIVATE, "monai-mil"
    scheme.CodingSchemeResponsibleOrganization = "monai-mil"
    return scheme


def _values(dataset: Any, keywords: tuple[str, ...] = (), kinds: tuple[str, ...] = ()) -> set[str]:
    """What the elements of some keywords or value representations say, at any depth."""
    found: set[str] = set()

    def collect(_: Any, element: Any) -> None:
        if element.keyword in keywords or element.VR in kinds:
            found.add(str(element.value))

    dataset.walk(collect)
    return found


def _without_now(dataset: Any, element: Any) -> None:
    if element.keyword in _OF_NOW:
        del dataset[element.tag]


def _set_characters(made: Any, first: Any) -> None:
    """The source's character set, or Unicode where a text of ours has characters that it lacks."""
    from pydicom.charset import convert_encodings

    own = first.get("SpecificCharacterSet")
    made.pop("SpecificCharacterSet", None)
    encodings = convert_encodings(own)
    ours = _values(made, kinds=_TEXTS) - _values(first, kinds=_TEXTS)
    fits = all(any(_fits(text, encoding) for encoding in encodings) for text in ours)
    if own is not None or not fits:
        made.SpecificCharacterSet = own if fits else "ISO_IR 192"


def _fits(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeError, LookupError):
        return False
    return True


def _name(made: Any, source: DicomSource, algorithm: Algorithm, kind: str) -> None:
    """Give the object its UIDs."""
    dimensions = made.get("DimensionOrganizationSequence")
    own = {str(dimensions[0].DimensionOrganizationUID): _DIMENSIONS} if dimensions else {}
    _replace_uids(made, own)
    parts = [kind, *referenced_key(source, algorithm), _content_digest(made)]
    names = {one: derived_uid(place, *parts) for place, one in enumerate((_SERIES, _INSTANCE, _DIMENSIONS))}
    _replace_uids(made, names)
    made.file_meta.MediaStorageSOPInstanceUID = names[_INSTANCE]
    made.file_meta.ImplementationClassUID = derived_uid("implementation")
    made.file_meta.ImplementationVersionName = f"MONAI_MIL {__version__}"[:16]


def _replace_uids(made: Any, names: dict[str, str]) -> None:
    def replace(_: Any, element: Any) -> None:
        if element.VR == "UI" and isinstance(element.value, str) and element.value in names:
            element.value = names[element.value]

    made.walk(replace)


def _content_digest(made: Any) -> str:
    """A hash of all that will be written."""
    from pydicom.filebase import DicomIO
    from pydicom.filewriter import write_dataset

    bulk = {keyword: made[keyword] for keyword in _BULK if keyword in made}
    for keyword in bulk:
        del made[keyword]
    written = BytesIO()
    buffer = DicomIO(written)
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_dataset(buffer, made)
    digest = hashlib.sha256(written.getvalue())
    for keyword, element in bulk.items():
        digest.update(keyword.encode())
        digest.update(element.value)
        made.add(element)
    return digest.hexdigest()

"""The headers of DICOM files: one record a file and one a slice; no pixels are read."""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from monai_mil.errors import ScanReadError
from monai_mil.scans.attributes import (
    number_if_any,
    numbers_of,
    raw_value,
    seconds_of,
    texts_of,
    texts_of_numbers,
    whole_number,
)

CT_CLASSES = {
    "",  # public challenge files lack it
    "1.2.840.10008.5.1.4.1.1.2",  # CT Image Storage
    "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced CT
    "1.2.840.10008.5.1.4.1.1.2.2",  # Legacy Converted Enhanced CT
}
_CAPTURES = "1.2.840.10008.5.1.4.1.1.7"  # Secondary Capture, and its multi-frame kinds below it
_UID = re.compile(r"(?=.{3,64}$)[0-9]+(\.[0-9]+)+")
_COLOURS = ("PALETTE", "RGB", "YBR", "HSV", "ARGB", "CMYK")
_DEFLATED = "1.2.840.10008.1.2.1.99"
_GEOMETRY = [
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
]
_FRAMES = ["NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"]
_IDENTITY = [
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "PatientID",
]
_KIND = ["Modality", "ImageType", "SeriesNumber", "InstanceNumber", "SliceLocation", "PhotometricInterpretation"]
_WHEN = ["AcquisitionNumber", "TemporalPositionIdentifier", "AcquisitionDateTime", "AcquisitionDate", "AcquisitionTime"]
_PARTS = ["ConcatenationUID", "InConcatenationNumber", "InConcatenationTotalNumber"]
_BITS = ["Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"]
_VALUES = ["RescaleSlope", "RescaleIntercept", "RescaleType", "PixelPaddingValue", "PixelPaddingRangeLimit"]
_LOSSES = ["LossyImageCompression"]
_KEYWORDS = [*_GEOMETRY, *_FRAMES, *_IDENTITY, *_KIND, *_WHEN, *_PARTS, *_BITS, *_VALUES, *_LOSSES]


@dataclass(frozen=True, eq=False)
class DicomFile:
    """What one DICOM file says about itself.

    Attributes:
        pixel_offset: where the file's PixelData element begins.
        syntax: UID of the transfer syntax, or ``""``.
        image_type: the values of ImageType, in capitals.
        concatenation_uid: what its parts have in common where one multi-frame image was stored in several files.
        part: which of those parts it is, from 1, or None.
        parts: how many there are, or None.
        padding: lowest and highest stored value that stand for "no measurement", or None.
        is_lossy: whether its values were once compressed with losses.
        slices: the CT slices in the file, one a frame; none where it is no CT image.
    """

    path: Path
    syntax: str
    pixel_offset: int
    sop_class: str
    sop_uid: str
    study_uid: str
    series_uid: str
    frame_of_reference_uid: str
    patient_id: str = field(repr=False)
    modality: str
    image_type: tuple[str, ...]
    instance_number: int | None
    concatenation_uid: str
    part: int | None
    parts: int | None
    frames: int
    rows: int
    columns: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    padding: tuple[int, int] | None
    is_lossy: bool = False
    series_number: int | None = None
    slices: tuple[DicomSlice, ...] = ()

    @property
    def is_grey(self) -> bool:
        """Whether its values mean grey, not the colours of a palette."""
        return not self.photometric.startswith(_COLOURS)

    @property
    def is_localizer(self) -> bool:
        """Whether it is a scout."""
        return "LOCALIZER" in self.image_type


@dataclass(frozen=True, eq=False)
class DicomSlice:
    """One CT slice as its header describes it; None where the header is silent.

    Attributes:
        file: the file that holds it.
        frame: its 1-based frame in that file.
        origin: ImagePositionPatient, ``[3]``, LPS, mm.
        orientation: ImageOrientationPatient, ``[2, 3]``.
        spacing: PixelSpacing: mm between rows, mm between columns.
        location: SliceLocation, mm.
        acquisition: AcquisitionNumber.
        phase: TemporalPositionIdentifier or TemporalPositionIndex.
        time: when it was acquired, seconds from the beginning of its day, or of some year.
        has_rescaling: whether slope and intercept stand there; else they are 1 and 0.
    """

    file: DicomFile
    frame: int
    origin: np.ndarray | None
    orientation: np.ndarray | None
    spacing: np.ndarray | None
    thickness: float | None
    distance: float | None
    location: float | None
    slope: float
    intercept: float
    unit: str
    acquisition: int | None = None
    phase: int | None = None
    time: float | None = None
    has_rescaling: bool = True

    @property
    def is_captured(self) -> bool:
        """Whether it was stored as a Secondary Capture."""
        return self.file.sop_class not in CT_CLASSES

    @property
    def name(self) -> str:
        """The file's name, with the frame where it has several."""
        return f"{self.file.path.name} (frame {self.frame})" if self.file.frames > 1 else self.file.path.name


def read_file(path: Path) -> DicomFile | None:
    """The record of one DICOM file, or None where ``path`` is not DICOM.

    Raises:
        ScanReadError: a CT image whose header is damaged, or a file that cannot be opened.
    """
    import pydicom

    start = b""
    try:
        with path.open("rb") as stream:
            start = stream.read(140)
            if not _looks_like_dicom(start):
                return None
            stream.seek(0)
            # pydicom's warnings quote the values they find odd, which in a damaged header are the patient's name too
            with pydicom.config.disable_value_validation():
                dataset = pydicom.dcmread(stream, stop_before_pixels=True, force=True, specific_tags=_KEYWORDS)
                file = _record(path, dataset, stream.tell())
            is_whole = file is None or not file.slices or file.syntax == _DEFLATED or bool(stream.read(8))
    except ScanReadError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise ScanReadError(f"scan file '{path}' cannot be read ({error.strerror})") from error
        if start[128:132] != b"DICM":
            return None
        # pydicom raises whatever its parsers meet; the text may quote the header, so it is not passed on.
        raise _damaged(path) from None
    if not is_whole:
        raise ScanReadError(f"scan file '{path}': it is cut off or has no pixel data; copy or export the file again")
    return file


def uid_name(uid: str) -> str:
    """The name of a UID of the standard, or ``""``; what stands in its place in a damaged header is quoted nowhere."""
    import pydicom

    known = pydicom.uid.UID(uid, validation_mode=pydicom.config.IGNORE)
    return str(known.name) if known.is_valid and known.name != known else ""


def as_uid(value: Any) -> str:
    """A UID as it stands, ``""`` for none; for text that is none, one made of it, which is the same for the same text.

    In a damaged header anything may stand in its place, the patient's name too: that reaches no message and no bag.

    Examples:
        >>> from monai_mil.scans import as_uid
        >>> as_uid("1.2.840.10008.1.2"), as_uid(None), as_uid("Doe^Jane")
        ('1.2.840.10008.1.2', '', '2.25.339242931035301343683336265380693991191')
    """
    text = str(value or "").strip(" \0")
    if not text or _UID.fullmatch(text):
        return text
    return f"2.25.{int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], 'big')}"


def shown_uid(uid: str) -> str:
    """A UID as messages show it."""
    return uid or "(no UID)"


def _damaged(path: Path) -> ScanReadError:
    return ScanReadError(f"scan file '{path}': its DICOM header is damaged; remove the file or export it again")


def _looks_like_dicom(start: bytes) -> bool:
    """Whether the preamble is there, or the file plausibly begins with a data element of group 2 or 8."""
    if start[128:132] == b"DICM":
        return True
    if len(start) < 12:
        return False
    group, element = struct.unpack_from("<HH", start)
    if group not in (0x0002, 0x0008) or element > 0x2000:
        return False
    explicit = start[4:6].isalpha() and start[4:6].isupper()
    return explicit or struct.unpack_from("<I", start, 4)[0] <= 1024


def _record(path: Path, dataset: Any, offset: int) -> DicomFile | None:
    meta = getattr(dataset, "file_meta", {})
    modality = str(dataset.get("Modality") or "").strip().upper()
    sop_class = str(dataset.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID") or "")
    if sop_class not in CT_CLASSES and (meta.get("MediaStorageSOPClassUID") or "-") in CT_CLASSES:
        raise _damaged(path)  # cut off within the UID
    if sop_class and sop_class in CT_CLASSES:
        modality = modality or "CT"
    if not modality and not sop_class:
        return None
    allocated = int(dataset.get("BitsAllocated") or 16)
    stored = int(dataset.get("BitsStored") or allocated)
    file = DicomFile(
        path=path,
        syntax=str(meta.get("TransferSyntaxUID") or ""),
        pixel_offset=offset,
        sop_class=sop_class,
        sop_uid=as_uid(dataset.get("SOPInstanceUID") or meta.get("MediaStorageSOPInstanceUID")),
        study_uid=as_uid(dataset.get("StudyInstanceUID")),
        series_uid=as_uid(dataset.get("SeriesInstanceUID")),
        frame_of_reference_uid=as_uid(dataset.get("FrameOfReferenceUID")),
        patient_id=str(dataset.get("PatientID") or ""),
        modality=modality,
        image_type=tuple(text.strip().upper() for text in texts_of(dataset.get("ImageType"))),
        instance_number=whole_number(raw_value(dataset, "InstanceNumber")),
        concatenation_uid=as_uid(dataset.get("ConcatenationUID")),
        part=whole_number(raw_value(dataset, "InConcatenationNumber")),
        parts=whole_number(raw_value(dataset, "InConcatenationTotalNumber")),
        frames=whole_number(raw_value(dataset, "NumberOfFrames")) or 1,
        rows=int(dataset.get("Rows") or 0),
        columns=int(dataset.get("Columns") or 0),
        photometric=str(dataset.get("PhotometricInterpretation") or "MONOCHROME2").strip().upper(),
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=int(dataset.get("HighBit") or stored - 1),
        signed=bool(dataset.get("PixelRepresentation")),
        padding=_padding(dataset, allocated),
        is_lossy=str(dataset.get("LossyImageCompression") or "").strip() == "01",
        series_number=whole_number(raw_value(dataset, "SeriesNumber")),
    )
    if sop_class and sop_class in CT_CLASSES and not (modality and file.rows and file.columns):
        raise _damaged(path)
    is_image = file.rows > 0 and file.columns > 0 and file.is_grey and int(dataset.get("SamplesPerPixel") or 1) == 1
    is_captured = sop_class.startswith(_CAPTURES) and _is_placed(dataset)
    if modality == "CT" and (sop_class in CT_CLASSES or is_captured) and is_image:
        object.__setattr__(file, "slices", tuple(_slices(dataset, file)))
    return file


def _is_placed(dataset: Any) -> bool:
    """Whether a Secondary Capture has all that a CT slice needs: its place, its spacing and its rescaling."""
    needed = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept")
    return all(texts_of_numbers(raw_value(dataset, keyword)) for keyword in needed)


def _slices(dataset: Any, file: DicomFile) -> Iterator[DicomSlice]:
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if file.frames > 1 and len(per_frame) != file.frames:
        raise ScanReadError(
            f"scan file '{file.path}': {file.frames} frames but positions of {len(per_frame)}; "
            f"it is no Enhanced CT that can be placed in space, export the series as single slices"
        )
    for index in range(file.frames):
        places = (per_frame[index] if per_frame else None, shared)

        def find(sequence: str, keyword: str, of_file: str | None = None, places: tuple[Any, ...] = places) -> Any:
            for place in places:
                item = (place.get(sequence) or [None])[0] if place is not None else None
                value = None if item is None else raw_value(item, keyword)
                if value is not None:
                    return value
            return raw_value(dataset, of_file or keyword)

        def numbers(sequence: str, keyword: str, count: int, find: Any = find) -> np.ndarray | None:
            return numbers_of(file.path, keyword, find(sequence, keyword), count)

        orientation = numbers("PlaneOrientationSequence", "ImageOrientationPatient", 6)
        slope = numbers("PixelValueTransformationSequence", "RescaleSlope", 1)
        intercept = numbers("PixelValueTransformationSequence", "RescaleIntercept", 1)
        yield DicomSlice(
            file=file,
            frame=index + 1,
            origin=numbers("PlanePositionSequence", "ImagePositionPatient", 3),
            orientation=None if orientation is None else orientation.reshape(2, 3),
            spacing=numbers("PixelMeasuresSequence", "PixelSpacing", 2),
            thickness=number_if_any(find("PixelMeasuresSequence", "SliceThickness")),
            distance=number_if_any(find("PixelMeasuresSequence", "SpacingBetweenSlices")),
            location=number_if_any(raw_value(dataset, "SliceLocation")),
            slope=1.0 if slope is None else float(slope[0]),
            intercept=0.0 if intercept is None else float(intercept[0]),
            unit=str(find("PixelValueTransformationSequence", "RescaleType") or ""),
            acquisition=whole_number(find("FrameContentSequence", "FrameAcquisitionNumber", "AcquisitionNumber")),
            phase=whole_number(find("FrameContentSequence", "TemporalPositionIndex", "TemporalPositionIdentifier")),
            time=seconds_of(dataset, find("FrameContentSequence", "FrameAcquisitionDateTime", "AcquisitionDateTime")),
            has_rescaling=slope is not None and intercept is not None,
        )


def _padding(dataset: Any, bits_allocated: int) -> tuple[int, int] | None:
    """The range of padding in the pixels' own signedness, which the VR of its attributes often is not."""
    found = [dataset.get(name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    ends = [_as_stored(value, bits_allocated, bool(dataset.get("PixelRepresentation"))) for value in found]
    first, last = ends
    if first is None:
        return None
    return (first, first) if last is None else (min(first, last), max(first, last))


def _as_stored(value: Any, bits: int, signed: bool) -> int | None:
    if not isinstance(value, int):
        return None
    modulo = value % (1 << bits)
    return modulo - (1 << bits) if signed and modulo >= 1 << (bits - 1) else modulo

"""The headers of DICOM files: one record a file and one a slice; no pixels are read."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_mil.errors import ScanReadError

CT_CLASSES = {
    "",  # public challenge files lack it
    "1.2.840.10008.5.1.4.1.1.2",  # CT Image Storage
    "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced CT
    "1.2.840.10008.5.1.4.1.1.2.2",  # Legacy Converted Enhanced CT
}
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
_KIND = ["Modality", "ImageType", "InstanceNumber", "AcquisitionNumber", "SliceLocation", "PhotometricInterpretation"]
_BITS = ["Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"]
_VALUES = ["RescaleSlope", "RescaleIntercept", "RescaleType", "PixelPaddingValue", "PixelPaddingRangeLimit"]
_KEYWORDS = [*_GEOMETRY, *_FRAMES, *_IDENTITY, *_KIND, *_BITS, *_VALUES]


@dataclass(frozen=True, eq=False)
class DicomFile:
    """What one DICOM file says about itself.

    Attributes:
        pixel_offset: where the file's PixelData element begins.
        syntax: UID of the transfer syntax, or ``""``.
        padding: lowest and highest stored value that stand for "no measurement", or None.
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
    patient_id: str
    modality: str
    is_localizer: bool
    instance_number: int | None
    acquisition_number: int | None
    frames: int
    rows: int
    columns: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    padding: tuple[int, int] | None
    slices: tuple[DicomSlice, ...] = ()


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
    if not modality and not sop_class:
        return None
    allocated = int(dataset.get("BitsAllocated") or 16)
    stored = int(dataset.get("BitsStored") or allocated)
    file = DicomFile(
        path=path,
        syntax=str(meta.get("TransferSyntaxUID") or ""),
        pixel_offset=offset,
        sop_class=sop_class,
        sop_uid=str(dataset.get("SOPInstanceUID") or meta.get("MediaStorageSOPInstanceUID") or ""),
        study_uid=str(dataset.get("StudyInstanceUID") or ""),
        series_uid=str(dataset.get("SeriesInstanceUID") or ""),
        frame_of_reference_uid=str(dataset.get("FrameOfReferenceUID") or ""),
        patient_id=str(dataset.get("PatientID") or ""),
        modality=modality,
        is_localizer="LOCALIZER" in _texts(dataset.get("ImageType")),
        instance_number=_integer(dataset, "InstanceNumber"),
        acquisition_number=_integer(dataset, "AcquisitionNumber"),
        frames=int(dataset.get("NumberOfFrames") or 1),
        rows=int(dataset.get("Rows") or 0),
        columns=int(dataset.get("Columns") or 0),
        photometric=str(dataset.get("PhotometricInterpretation") or "MONOCHROME2"),
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=int(dataset.get("HighBit") or stored - 1),
        signed=bool(dataset.get("PixelRepresentation")),
        padding=_padding(dataset),
    )
    if sop_class and sop_class in CT_CLASSES and not (modality and file.rows and file.columns):
        raise _damaged(path)
    is_image = file.rows > 0 and file.columns > 0 and int(dataset.get("SamplesPerPixel") or 1) == 1
    if modality == "CT" and sop_class in CT_CLASSES and is_image:
        object.__setattr__(file, "slices", tuple(_slices(dataset, file)))
    return file


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

        def find(sequence: str, keyword: str, places: tuple[Any, ...] = places) -> Any:
            for place in places:
                item = (place.get(sequence) or [None])[0] if place is not None else None
                if item is not None and item.get(keyword) is not None:
                    return item.get(keyword)
            return dataset.get(keyword)

        orientation = _numbers(find("PlaneOrientationSequence", "ImageOrientationPatient"), 6)
        slope = _number(find("PixelValueTransformationSequence", "RescaleSlope"))
        intercept = _number(find("PixelValueTransformationSequence", "RescaleIntercept"))
        yield DicomSlice(
            file=file,
            frame=index + 1,
            origin=_numbers(find("PlanePositionSequence", "ImagePositionPatient"), 3),
            orientation=None if orientation is None else orientation.reshape(2, 3),
            spacing=_numbers(find("PixelMeasuresSequence", "PixelSpacing"), 2),
            thickness=_number(find("PixelMeasuresSequence", "SliceThickness")),
            distance=_number(find("PixelMeasuresSequence", "SpacingBetweenSlices")),
            location=_number(dataset.get("SliceLocation")),
            slope=1.0 if slope is None else slope,
            intercept=0.0 if intercept is None else intercept,
            unit=str(find("PixelValueTransformationSequence", "RescaleType") or ""),
        )


def _padding(dataset: Any) -> tuple[int, int] | None:
    first, last = (dataset.get(name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit"))
    if not isinstance(first, int):
        return None
    return (min(first, last), max(first, last)) if isinstance(last, int) else (first, first)


def _numbers(value: Any, count: int) -> np.ndarray | None:
    if value is None or value == "" or len(value) == 0:
        return None
    numbers = np.array([float(number) for number in value])
    if numbers.shape != (count,):
        raise ValueError(f"{count} numbers expected")
    return numbers


def _number(value: Any) -> float | None:
    return None if value is None or value == "" else float(value)


def _integer(dataset: Any, keyword: str) -> int | None:
    try:
        value = dataset.get(keyword)
        return None if value is None or value == "" else int(value)
    except (TypeError, ValueError):
        return None


def _texts(value: Any) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else [str(text) for text in value]

"""A synthetic CT series as DICOM: one CT Image per slice."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from monai_mil.files import replacing
from monai_mil.scans import ScanFrame

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset

_CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
_EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"


class SyntheticSeries:
    """Writes the slices of one scan.

    Args:
        frame: the scan's geometry and UIDs.
        slice_mm: thickness of a slice.
        patient_id: of a patient who does not exist.
        padding: HU outside the field of view; below -1024 the pixels are signed and the value is declared.
    """

    def __init__(self, frame: ScanFrame, slice_mm: float, patient_id: str, padding: int) -> None:
        self.frame = frame
        self._tags = _series_tags(frame, slice_mm, patient_id, padding)

    def write(self, path: Path, hu: np.ndarray, index: int, number: int) -> None:
        """Write slice ``index``, HU ``[rows, columns]``, with InstanceNumber ``number``."""
        dataset = _instance(self._tags, hu, self.frame, index, number)
        with replacing(path) as partial:
            _save(dataset, partial)


def synthetic_uid(seed: int, *kind: object) -> str:
    """A UID that the same arguments always give."""
    from pydicom.uid import generate_uid

    return str(generate_uid(entropy_srcs=[f"monai-mil synthetic scan {seed} {kind}"]))


def _series_tags(frame: ScanFrame, slice_mm: float, patient_id: str, padding: int) -> dict[str, object]:
    """The tags all instances of a series share."""
    padded = padding < -1024
    tags = {
        "SOPClassUID": _CT_IMAGE_STORAGE,
        "SpecificCharacterSet": "ISO_IR 100",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "StudyInstanceUID": frame.study_uid,
        "SeriesInstanceUID": frame.series_uid,
        "FrameOfReferenceUID": frame.frame_of_reference_uid,
        "PatientName": f"Synthetic^{patient_id}",
        "PatientID": patient_id,
        "PatientBirthDate": "",
        "PatientSex": "O",
        "StudyDate": "20200101",
        "StudyTime": "120000",
        "ContentDate": "20200101",
        "ContentTime": "120000",
        "StudyID": "1",
        "AccessionNumber": "",
        "ReferringPhysicianName": "",
        "StudyDescription": "Synthetic chest",
        "SeriesDescription": "Synthetic axial",
        "Modality": "CT",
        "Manufacturer": "monai-mil",
        "ManufacturerModelName": "synthetic thorax",
        "BodyPartExamined": "CHEST",
        "PatientPosition": "HFS",
        "PositionReferenceIndicator": "",
        "SeriesNumber": 2,
        "AcquisitionNumber": 1,
        "KVP": 120,
        "ConvolutionKernel": "SOFT",
        "SliceThickness": slice_mm,
        "PixelSpacing": [round(value, 8) for value in frame.spacing],
        "ImageOrientationPatient": [float(value) for value in frame.orientation.ravel()],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": frame.size[0],
        "Columns": frame.size[1],
        "BitsAllocated": 16,
        "BitsStored": 16 if padded else 12,
        "HighBit": 15 if padded else 11,
        "PixelRepresentation": int(padded),
        "RescaleIntercept": 0 if padded else -1024,
        "RescaleSlope": 1,
        "RescaleType": "HU",
        "WindowCenter": [40, -600],
        "WindowWidth": [400, 1500],
    }
    return tags | ({"PixelPaddingValue": padding} if padded else {})


def _instance(series: dict[str, object], hu: np.ndarray, frame: ScanFrame, i: int, number: int) -> FileDataset:
    """One CT Image, uncompressed."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(_CT_IMAGE_STORAGE)
    meta.MediaStorageSOPInstanceUID = UID(frame.sop_uids[i])
    meta.TransferSyntaxUID = UID(_EXPLICIT_LITTLE_ENDIAN)
    meta.ImplementationClassUID = UID("2.25.191263370331")
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    for keyword, value in series.items():
        setattr(dataset, keyword, value)
    dataset.SOPInstanceUID = frame.sop_uids[i]
    dataset.InstanceNumber = number
    dataset.ImagePositionPatient = [round(float(value), 6) for value in frame.origins[i]]
    dataset.SliceLocation = round(float(frame.origins[i, 2]), 6)
    stored = hu.astype(np.int32) - int(dataset.RescaleIntercept)
    dataset.PixelData = stored.astype("<i2" if dataset.PixelRepresentation else "<u2").tobytes()
    return dataset


def _save(dataset: FileDataset, path: Path) -> None:
    """Write a whole DICOM file with either generation of pydicom."""
    import pydicom

    if int(pydicom.__version__.split(".")[0]) >= 3:
        dataset.save_as(path, enforce_file_format=True)
    else:
        dataset.is_little_endian, dataset.is_implicit_VR = True, False
        dataset.save_as(path, write_like_original=False)

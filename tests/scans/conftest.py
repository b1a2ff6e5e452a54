"""Small CT series whose geometry and pixels are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

AXIAL = (1.0, 0, 0, 0, 1.0, 0)
SERIES = "1.2.826.0.1.3680043.8.498.1"


def phantom(n: int = 8, rows: int = 12, columns: int = 16, seed: int = 0) -> np.ndarray:
    """Random Hounsfield units of -1000 to 1999, int16 ``[n, rows, columns]``."""
    return np.random.default_rng(seed).integers(-1000, 2000, (n, rows, columns)).astype(np.int16)


def slice_dataset(stored: np.ndarray, **attributes: Any) -> FileDataset:
    """One CT slice of unsigned 16-bit values with intercept -1024; ``attributes`` override, None removes."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    values: dict[str, Any] = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2",
        "SOPInstanceUID": generate_uid(),
        "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.2",
        "SeriesInstanceUID": SERIES,
        "FrameOfReferenceUID": "1.2.826.0.1.3680043.8.498.3",
        "PatientName": "Doe^Jane",
        "PatientID": "SECRET-17",
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "InstanceNumber": 1,
        "ImagePositionPatient": [0.0, 0.0, 0.0],
        "ImageOrientationPatient": list(AXIAL),
        "PixelSpacing": [0.5, 0.5],
        "SliceThickness": 2.0,
        "Rows": stored.shape[-2],
        "Columns": stored.shape[-1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": stored.dtype.itemsize * 8,
        "BitsStored": stored.dtype.itemsize * 8,
        "HighBit": stored.dtype.itemsize * 8 - 1,
        "PixelRepresentation": int(stored.dtype.kind == "i"),
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
    }
    for keyword, value in (values | attributes).items():
        if value is not None:
            setattr(dataset, keyword, value)
    meta.MediaStorageSOPClassUID = getattr(dataset, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.2")
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.PixelData = stored.tobytes()
    dataset["PixelData"].VR = "OW"
    return dataset


def save(dataset: FileDataset, path: Path, *, preamble: bool = True) -> Path:
    """Write a dataset, under pydicom 2.4 and 3 alike; without ``preamble`` there is no file header either."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = dataset.file_meta
    little = meta.TransferSyntaxUID != ExplicitVRBigEndian
    implicit = meta.TransferSyntaxUID == ImplicitVRLittleEndian
    start = b"\0" * 128 if preamble else None
    copy = FileDataset("", dataset, start, meta if preamble else None, implicit, little)
    if int(pydicom.__version__.split(".")[0]) >= 3:
        encoding = {} if preamble else {"implicit_vr": implicit, "little_endian": little}
        copy.save_as(path, enforce_file_format=preamble, **encoding)
    else:
        copy.save_as(path, write_like_original=not preamble)
    return path


def write_series(
    folder: Path,
    hu: np.ndarray,
    origins: Sequence[Sequence[float]] | np.ndarray | None = None,
    *,
    shuffle: bool = True,
    change: Callable[[int, FileDataset], None] | None = None,
    **attributes: Any,
) -> Path:
    """A series of single slices, 2 mm apart along z where no origins are given; file order is not slice order.

    ``change(i, dataset)`` may alter slice ``i`` before it is written.
    """
    n = len(hu)
    origins = np.array([[0, 0, 2.0 * i] for i in range(n)]) if origins is None else np.asarray(origins, float)
    names = np.random.default_rng(1).permutation(n) if shuffle else np.arange(n)
    for i in range(n):
        stored = (hu[i].astype(np.int32) + 1024).astype(np.uint16)
        numbered = {"InstanceNumber": n - i, "ImagePositionPatient": [float(value) for value in origins[i]]}
        dataset = slice_dataset(stored, **(numbered | attributes))
        if change is not None:
            change(i, dataset)
        save(dataset, folder / f"IM{names[i]:04d}")
    return folder


@pytest.fixture
def highdicom():
    """The judge of geometry; it needs pydicom 3, which the package itself does not."""
    return pytest.importorskip("highdicom", exc_type=ImportError, reason="highdicom needs pydicom 3")

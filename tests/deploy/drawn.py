"""A drawn chest as a hospital's archive sends it: a study with names in every place that has one."""

from __future__ import annotations

from pathlib import Path

import pydicom

from tests.scans.chest import write_dicom
from tests.scans.conftest import AXIAL

NAME = "Yamada^Tarou=山田^太郎=やまだ^たろう"
PATIENT = {
    "SpecificCharacterSet": ["ISO_IR 100", "ISO 2022 IR 87"],
    "PatientName": NAME,
    "PatientID": "SECRET-17",
    "PatientBirthDate": "19700102",
    "PatientSex": "O",
    "AccessionNumber": "ACC-4711",
    "ReferringPhysicianName": "Referrer^Rita",
    "StudyID": "SID-9",
    "StudyDate": "20240102",
    "StudyTime": "101112",
    "StudyDescription": "Chest of Tarou",
    "SeriesNumber": 4,
    "SeriesDescription": "Lung of Tarou",
    "Manufacturer": "Drawn",
}


def draw_study(folder: Path, iop=AXIAL, **facts) -> Path:
    """The chest as one series of 24 slices below ``folder``, in folders named after the patient."""
    series = write_dicom(folder / "YAMADA_TAROU" / "SECRET-17", iop, **facts)
    for path in series.iterdir():
        dataset = pydicom.dcmread(path)
        for keyword, value in PATIENT.items():
            setattr(dataset, keyword, value)
        dataset.save_as(path)
    return folder

"""Headers with random faults: an error of the project's own within seconds, and nobody's name anywhere."""

import gzip
import time
import warnings

import nibabel
import numpy as np
import pytest

from monai_mil.cohorts import scan_datalist
from monai_mil.errors import MonaiMILError
from monai_mil.scans import load_scan
from tests.scans.conftest import phantom, write_series

NAMES = ("Doe", "Jane", "SECRET")
SECONDS = 20
N = 60


def spoiled(content: bytes, random: np.random.Generator, first: int, last: int) -> bytes:
    """Some bytes of a header replaced, removed or put in, or the file cut off."""
    made = bytearray(content)
    for position in random.integers(first, last, random.integers(1, 5)).tolist():
        match random.choice(6, p=[0.35, 0.25, 0.2, 0.03, 0.02, 0.15]):
            case 0:
                made[position] = random.integers(256)
            case 1:
                made[position : position + 2] = random.bytes(2)
            case 2:
                made[position : position + 4] = [b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"][random.integers(3)]
            case 3:
                del made[position : position + random.integers(1, 9)]
            case 4:
                made[position:position] = random.bytes(int(random.integers(1, 9)))
            case 5:
                made[position : position + 8] = b"Doe^Jane"
    return bytes(made[: random.integers(first, len(made))] if random.random() < 0.05 else made)


def attempt(folder, reads, said):
    """Read what lies in the folder every way; adds all that is said."""
    begun = time.perf_counter()
    for read in reads:
        try:
            said.extend(read().remarks)
        except MonaiMILError as error:
            said.append(str(error))
        except AttributeError:
            pass  # a data list has no remarks
    assert time.perf_counter() - begun < SECONDS


@pytest.mark.parametrize("part", range(3))
def test_spoiled_dicom_headers(tmp_path, capfd, caplog, part):
    caplog.set_level("DEBUG")
    random = np.random.default_rng(part)
    folder = write_series(tmp_path / "case", phantom(2, 6, 8), AcquisitionNumber=1, AcquisitionTime="101500")
    path = folder / "IM0001"
    whole = path.read_bytes()
    said: list[str] = []
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(N):
            path.write_bytes(spoiled(whole, random, 128, len(whole) - 90))
            attempt(folder, [lambda: load_scan(folder), lambda: load_scan(path), lambda: scan_datalist(tmp_path)], said)
    check(said, warned, capfd, caplog)
    assert len(set(said)) > 10


@pytest.mark.parametrize("packed", [False, True])
def test_spoiled_nifti_headers(tmp_path, capfd, caplog, packed):
    caplog.set_level("DEBUG")
    random = np.random.default_rng(packed)
    image = nibabel.Nifti1Image(phantom(3, 6, 8).T, np.diag([-0.5, -0.5, 2.0, 1.0]))
    image.header["descrip"], image.header["db_name"], image.header["aux_file"] = b"Doe^Jane", b"SECRET-17", b"Jane"
    nibabel.save(image, tmp_path / "a.nii")
    whole = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii").unlink()
    path = tmp_path / ("a.nii.gz" if packed else "a.nii")
    said: list[str] = []
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(N):
            content = spoiled(whole, random, 0, 352)
            path.write_bytes(gzip.compress(content, 1) if packed else content)
            attempt(tmp_path, [lambda: load_scan(path), lambda: scan_datalist(tmp_path)], said)
    check(said, warned, capfd, caplog)
    assert len(set(said)) > 5


def check(said, warned, capfd, caplog):
    shown = capfd.readouterr()
    texts = [*said, *(str(one.message) for one in warned), caplog.text, shown.out, shown.err]
    for name in NAMES:
        assert not any(name in text for text in texts), [text for text in texts if name in text][:1]

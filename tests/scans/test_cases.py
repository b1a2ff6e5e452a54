"""The drawn cases of shared/cases/ct.py: every voxel against the value that is right at its place."""

import importlib.util
import sys

import numpy as np
import pytest

from monai_mil.errors import ScanReadError
from monai_mil.scans import find_scans, has_doubtful_units, load_scan, search_scans
from tests.conftest import shared


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """The module that draws them, and the folder they are drawn in."""
    folder = tmp_path_factory.mktemp("cases")
    spec = importlib.util.spec_from_file_location("drawn_ct_cases", shared("cases/ct.py"))
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ct.py", str(folder), "none"])
        spec.loader.exec_module(module)
    for case in module.CASES:
        if case.__name__ != "series_uid_of_every_file":  # 300 files; test_load.py has that kind with 30
            case()
    return module, folder


def truth(module, scan):
    """The right value of every voxel of a scan, by where it lies."""
    frame = scan.frame
    row, column = np.indices(frame.size)[..., None]
    plane = column * frame.spacing[1] * frame.orientation[0] + row * frame.spacing[0] * frame.orientation[1]
    return module.hu(frame.origins[:, None, None] + plane)


@pytest.mark.parametrize(
    ("name", "shape", "told"),
    [
        ("plain", (24, 64, 64), ""),
        ("tiny_drift", (24, 64, 64), ""),
        ("gantry_tilt", (24, 64, 64), "gantry tilt"),
        ("overlay_in_bit_15", (24, 64, 64), "above BitsStored were ignored"),
        ("secondary_capture_class", (24, 64, 64), "Secondary Capture"),
        ("series_over_two_folders", (24, 64, 64), "its slices lie in 2 folders"),
        ("prone", (24, 64, 64), ""),
        ("sagittal_third_axis", None, ""),
        ("rounded_positions", (120, 64, 64), ""),
        ("masks_beside", (24, 64, 64), ""),
        ("no_modality", (24, 64, 64), ""),
        ("decimal_comma", (24, 64, 64), ""),
        ("gzip_named_nii", (24, 64, 64), ""),
    ],
)
def test_every_voxel_has_its_value(cases, name, shape, told):
    module, folder = cases
    (path,) = find_scans(folder / name)
    scan = load_scan(path)
    if shape is not None:
        assert scan.hu.shape == shape
    assert np.array_equal(scan.hu, truth(module, scan))
    assert told in "; ".join(scan.remarks)


def test_padding_of_the_other_signedness_is_padding(cases):
    module, folder = cases
    scan = load_scan(folder / "signed_padding_of_unsigned_pixels")
    right = truth(module, scan)
    row, column = np.indices((64, 64)) - 31.5
    outside = row**2 + column**2 > 31**2
    assert (scan.hu[:, outside] == -1024).all()
    assert np.array_equal(scan.hu[:, ~outside], right[:, ~outside])


def test_masks_are_told(cases):
    (told,) = search_scans(cases[1] / "masks_beside").left_out
    assert "2 masks or segmentations are no scans" in told


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("one_slice_without_rescale", r"1 of 24 slices lack RescaleSlope or RescaleIntercept \(0007\.dcm\)"),
        ("two_passes", r"13 of acquisition 1 \(-48 to 0 mm\), 17 of acquisition 2 \(-16\.5 to 47\.5 mm\)"),
    ],
)
def test_what_is_no_single_scan_is_an_error_that_says_why(cases, name, message):
    with pytest.raises(ScanReadError, match=message):
        load_scan(cases[1] / name)


def test_each_of_two_passes_is_read_alone(cases):
    module, folder = cases
    for acquisition, count in (("1", 13), ("2", 17)):
        scan = load_scan(folder / "two_passes", acquisition=acquisition)
        assert len(scan) == count
        assert np.array_equal(scan.hu, truth(module, scan))


def test_values_without_rescale_are_told_and_not_repaired(cases):
    module, folder = cases
    scan = load_scan(folder / "metal_without_rescale")
    right = truth(module, scan)
    assert scan.hu.max() == 3071 + 1024
    metal = scan.hu == 4095
    assert np.array_equal(scan.hu[~metal], right[~metal] + 1024)
    assert "no slice has RescaleSlope" in scan.remarks[0]
    assert has_doubtful_units(scan.hu)


def test_shares_of_a_window_are_no_hounsfield_units(cases):
    scan = load_scan(cases[1] / "zero_to_one" / "ct.nii.gz")
    assert has_doubtful_units(scan.hu)
    assert "may be no Hounsfield units" in scan.remarks[0]

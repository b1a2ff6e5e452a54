"""Images inside a series that are none of its slices are left out by what they are, and told."""

import numpy as np
import pytest

from monai_mil.errors import ScanReadError
from monai_mil.scans import load_scan
from tests.scans.conftest import phantom, save, slice_dataset, write_series

CORONAL = [1.0, 0, 0, 0, 0, -1.0]


def with_strays(folder, hu, strays, **attributes):
    write_series(folder, hu, **attributes)
    for index, stray in enumerate(strays):
        rows = stray.get("Rows", hu.shape[1])
        stored = np.full((rows, hu.shape[2]), 2000 + index, np.uint16)
        save(slice_dataset(stored, **({"InstanceNumber": 90 + index} | stray)), folder / f"stray{index}")
    return folder


DOSE = {"ImageType": ["DERIVED", "SECONDARY", "OTHER", "CT_SOM5 PROT"], "ImagePositionPatient": None}
SCREEN = {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"], "ImagePositionPatient": [0, 0, 4.0]}
REFORMAT = {"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"], "ImagePositionPatient": [0, 0, 5.0]}


@pytest.mark.parametrize(
    ("strays", "told"),
    [
        ([{"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}], "1 x CT localizer beside the slices ignored"),
        ([DOSE], "1 images of the series left out, dose pages or screen saves: stray0"),
        (
            [{"ImageType": ["DERIVED", "SECONDARY"], "ImagePositionPatient": None}],
            "derived, without a place: stray0",
        ),
        ([SCREEN], "dose pages or screen saves: stray0"),
        ([REFORMAT, REFORMAT], "2 images of the series left out, reformats or projections (ImageType): stray0, stray1"),
        ([{"ImageOrientationPatient": CORONAL}], "of another orientation than most: stray0"),
        ([{"ImageType": ["DERIVED", "SECONDARY"], "Rows": 30}], "derived, and of another size: stray0"),
        (
            [{"ImageType": ["DERIVED", "PRIMARY", "AXIAL"], "ImagePositionPatient": [0, 0, 4.0]}],
            "derived, where a slice lies already: stray0",
        ),
        (
            [{"SliceThickness": 5.0, "ImagePositionPatient": [0, 0, z]} for z in (2.5, 7.5)],
            "of another SliceThickness, between the others: stray0, stray1",
        ),
    ],
)
def test_what_is_no_slice_is_left_out_and_told(tmp_path, strays, told):
    hu = phantom(8)
    scan = load_scan(with_strays(tmp_path, hu, strays))
    assert np.array_equal(scan.hu, hu)
    assert any(told in remark for remark in scan.remarks)


def test_a_series_of_reformats_only_is_a_scan(tmp_path):
    hu = phantom(6)
    assert np.array_equal(load_scan(write_series(tmp_path, hu, ImageType=REFORMAT["ImageType"])).hu, hu)


def test_zones_of_another_thickness_stay(tmp_path):
    z = [*range(0, 20, 5), *range(20, 32), *range(32, 50, 5)]

    def zone(i, dataset):
        dataset.SliceThickness = 1.0 if 20 <= z[i] < 32 else 5.0

    scan = load_scan(write_series(tmp_path, phantom(len(z)), [[0, 0, value] for value in z], change=zone))
    assert len(scan) == len(z)


def test_an_acquisition_of_another_thickness_is_to_be_chosen_and_not_left_out(tmp_path):
    hu = phantom(8)
    strays = [{"SliceThickness": 5.0, "ImagePositionPatient": [0, 0, z], "AcquisitionNumber": 2} for z in (2.5, 7.5)]

    def first(i, dataset):
        dataset.AcquisitionNumber = 1

    with_strays(tmp_path, hu, strays, change=first)
    with pytest.raises(ScanReadError, match=r"8 of acquisition 1 .*, 2 of acquisition 2"):
        load_scan(tmp_path)
    assert np.array_equal(load_scan(tmp_path, acquisition="1").hu, hu)
    assert len(load_scan(tmp_path, acquisition="2")) == 2


def test_an_image_that_would_leave_a_hole_is_no_stray_but_at_fault(tmp_path):
    def turned(i, dataset):
        if i == 4:
            dataset.ImageOrientationPatient = CORONAL

    with pytest.raises(ScanReadError, match="2 orientations"):
        load_scan(write_series(tmp_path, phantom(8), change=turned))


def test_a_series_with_everything_in_it_lists_its_phases_and_each_is_exact(tmp_path):
    first, second = phantom(8), phantom(8, seed=1)

    def numbered(number):
        return lambda i, dataset: setattr(dataset, "AcquisitionNumber", number)

    with_strays(tmp_path, first, [DOSE, SCREEN, REFORMAT, {"ImageOrientationPatient": CORONAL}], change=numbered(1))
    for path in write_series(tmp_path / "more", second, change=numbered(2)).iterdir():
        path.rename(tmp_path / f"more_{path.name}")
    with pytest.raises(ScanReadError, match=r"8 of acquisition 1 .*, 8 of acquisition 2"):
        load_scan(tmp_path)
    assert np.array_equal(load_scan(tmp_path, acquisition="1").hu, first)
    scan = load_scan(tmp_path, acquisition="2")
    assert np.array_equal(scan.hu, second)
    assert len([remark for remark in scan.remarks if "images of the series left out" in remark]) == 3

import dataclasses
import json
import math

import nibabel
import numpy as np
import pytest

from monai_mil.errors import ScanReadError
from monai_mil.scans import Scan, ScanFrame

AXIAL = np.array([[1.0, 0, 0], [0, 1.0, 0]])


def frame(z=(0.0, 2.0, 4.0, 6.0), *, y=None, orientation=AXIAL, spacing=(0.5, 0.8), size=(3, 5)) -> ScanFrame:
    origins = np.array([[10.0, 20.0 + (0 if y is None else y[i]), value] for i, value in enumerate(z)])
    n = len(origins)
    return ScanFrame(
        "case",
        "folder",
        size,
        spacing,
        orientation,
        origins,
        tuple(f"1.2.{i}" for i in range(n)),
        (1,) * n,
        "s",
        "t",
        "f",
    )


def test_the_affine_maps_column_row_and_slice_to_ras():
    x, y, z, _ = frame().affine @ [2, 1, 3, 1]
    assert (x, y, z) == pytest.approx((-(10 + 2 * 0.8), -(20 + 1 * 0.5), 6.0))


def test_nibabel_sees_the_voxel_sizes_in_the_order_of_the_transposed_volume():
    scan = Scan(frame(), np.zeros((4, 3, 5), np.int16))
    image = nibabel.Nifti1Image(scan.hu.T, scan.affine)
    assert image.header.get_zooms() == pytest.approx((0.8, 0.5, 2.0))


def test_a_gantry_tilt_is_a_shear_of_the_affine():
    tan = math.tan(math.radians(18.5))
    tilted = frame((0, 2, 4), y=[0, 2 * tan, 4 * tan])
    assert tilted.tilt_degrees == pytest.approx(18.5)
    assert tilted.is_regular
    assert tilted.affine @ [0, 0, 2, 1] == pytest.approx([-10, -(20 + 4 * tan), 4, 1])
    assert frame().tilt_degrees == 0


def test_two_spacings_have_no_affine_but_one_per_slice():
    uneven = frame((0, 2, 4, 9, 14))
    assert uneven.spacings() == ((2, 2.0), (2, 5.0))
    assert not uneven.is_regular
    with pytest.raises(ScanReadError, match="2 x 2 mm, then 2 x 5 mm"):
        uneven.affine  # noqa: B018
    assert uneven.slice_affine(3) @ [0, 0, 0, 1] == pytest.approx([-10, -20, 9, 1])


def test_slices_that_shift_sideways_unevenly_are_not_regular():
    assert not frame((0, 2, 4, 6), y=[0, 0, 1, 0]).is_regular


def test_positions_lie_along_the_normal():
    coronal = frame(orientation=np.array([[1.0, 0, 0], [0, 0, -1.0]]))
    assert coronal.normal == pytest.approx([0, 1, 0])
    assert coronal.positions_mm == pytest.approx(np.full(4, 20.0))


def test_a_frame_survives_json_exactly():
    original = frame((0, math.pi, 2 * math.pi))
    again = ScanFrame.from_json(original.to_json())
    assert np.array_equal(again.origins, original.origins)
    assert np.array_equal(again.orientation, original.orientation)
    assert (again.size, again.spacing, again.sop_uids) == (original.size, original.spacing, original.sop_uids)
    assert again.to_json() == original.to_json()
    assert "patient" not in json.loads(original.to_json())


def test_one_slice_is_regular_and_has_an_affine():
    single = frame((5,))
    assert single.spacings() == ()
    assert single.is_regular
    assert single.affine[:3, 2] == pytest.approx([0, 0, 1])
    assert dataclasses.replace(single, thickness=2.5).affine[:3, 2] == pytest.approx([0, 0, 2.5])


def test_a_frame_cannot_be_changed_or_be_inconsistent():
    original = frame()
    with pytest.raises(ValueError, match="read-only"):
        original.origins[0, 0] = 1
    with pytest.raises(ValueError, match="sop_uids"):
        ScanFrame("c", None, (3, 5), (1, 1), AXIAL, np.zeros((2, 3)), ("",), (1,))


def test_a_scan_must_fit_its_frame_and_never_shows_the_patient():
    scan = Scan(frame(), np.zeros((4, 3, 5), np.int16), patient_id="DOE^JOHN")
    assert "DOE" not in repr(scan) + scan.frame.to_json()
    with pytest.raises(ValueError, match="frame describes"):
        Scan(frame(), np.zeros((4, 5, 3), np.int16))

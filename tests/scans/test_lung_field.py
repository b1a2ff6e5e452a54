import json

import numpy as np
import pytest

from monai_mil.errors import NoLungsError, ScanReadError
from monai_mil.scans import LungField, load_scan, lung_mask
from tests.scans.test_lung import scan_of


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 5), (4, 16, 16)])
def test_a_packed_mask_is_the_mask(shape):
    mask = np.random.default_rng(0).random(shape) < 0.5
    field = LungField.from_json(json.loads(json.dumps(LungField.pack(mask, "threshold").to_json())))
    assert (field.method, field.shape) == ("threshold", shape)
    np.testing.assert_array_equal(np.stack([field.inside(index) for index in range(shape[0])]), mask)


def test_the_lungs_of_a_patient_take_little_room(chest_series):
    scan = load_scan(chest_series)
    field = LungField.find(scan, "threshold")
    assert len(field.packed) < 2000 * len(scan)
    middle = len(scan) // 2
    np.testing.assert_array_equal(field.inside(middle), lung_mask(scan)[middle])


def test_a_scan_without_lungs_is_named_and_has_a_status():
    scan = scan_of(np.full((3, 20, 20), 40, np.int16))
    with pytest.raises(NoLungsError, match=r"scan 'scan': no lungs were found \(method 'threshold'\)") as caught:
        LungField.find(scan, "threshold")
    assert caught.value.status == "no lungs"
    assert isinstance(caught.value, ScanReadError)

"""Masks as labels."""

import nibabel
import numpy as np
import pytest

from monai_mil.embedding import MaskLabeld
from monai_mil.errors import CohortError


@pytest.mark.parametrize(("voxel", "label"), [(0, 0), (1, 1), (2, 1), (255, 1)])
def test_any_voxel_makes_a_scan_positive(tmp_path, voxel, label):
    mask = np.zeros((5, 4, 3), np.uint8)
    mask[4, 3, 2] = voxel
    nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), tmp_path / "m.nii.gz")
    given = {"label": str(tmp_path / "m.nii.gz"), "image": "scan"}
    assert MaskLabeld("label")(given) == {"label": label, "image": "scan"}
    assert given["label"] == str(tmp_path / "m.nii.gz")


@pytest.mark.parametrize("label", [0, 1, np.int64(1)])
def test_a_number_stays(label):
    assert MaskLabeld("label")({"label": label})["label"] == label


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_a_mask_that_cannot_be_read_is_named(tmp_path, content):
    path = tmp_path / "m.nii.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CohortError, match=r"mask '.*m\.nii\.gz' cannot be read"):
        MaskLabeld("label")({"label": path})

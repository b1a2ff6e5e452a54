"""Masks that annotators send: whether they mark anything, and whether they are of their scan."""

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from monai_mil.errors import AnnotationError
from monai_mil.label.masks import check_size, has_finding


@pytest.fixture
def write(tmp_path):
    def written(name, voxels):
        path = tmp_path / name
        if name.endswith(".bin"):
            path.write_bytes(voxels.tobytes())
        else:
            sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path))
        return path

    return written


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".bin"])
def test_a_mask_has_a_finding_where_one_voxel_is_marked(write, ending):
    voxels = np.zeros((3, 4, 5), np.uint8)
    assert not has_finding(write(f"empty{ending}", voxels))
    voxels[1, 2, 3] = 1
    assert has_finding(write(f"marked{ending}", voxels))


def test_what_is_no_mask_is_told(write, tmp_path):
    with pytest.raises(AnnotationError, match=r"mask 'none\.bin': cannot be read \(it holds no voxel\)"):
        has_finding(write("none.bin", np.zeros(0, np.uint8)))
    text = tmp_path / "text.nrrd"
    text.write_text("no mask")
    with pytest.raises(AnnotationError, match=r"mask 'text\.nrrd': cannot be read"):
        has_finding(text)


def test_a_mask_of_another_scan_is_told_by_its_number_of_voxels(write, tmp_path):
    scan = write("scan.nii.gz", np.zeros((3, 4, 5), np.int16))
    for name, kind in (("a.nrrd", np.uint8), ("b.bin", np.uint8), ("c.bin", np.uint16)):
        check_size(write(name, np.zeros((3, 4, 5), kind)), scan)
    check_size(write("d.nrrd", np.zeros((1, 1, 1), np.uint8)), tmp_path)  # a folder of slices
    for name in ("other.nrrd", "other.bin"):
        with pytest.raises(AnnotationError, match=rf"mask '{name}' has 40 voxels, its scan 60;"):
            check_size(write(name, np.zeros((2, 4, 5), np.uint8)), scan)
    text = tmp_path / "text.nrrd"
    text.write_text("no mask")
    with pytest.raises(AnnotationError, match=r"mask 'text\.nrrd': cannot be compared with its scan"):
        check_size(text, scan)

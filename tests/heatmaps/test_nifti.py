import tarfile
import tracemalloc

import nibabel
import numpy as np
import pytest

from monai_mil.errors import ScanReadError
from monai_mil.heatmaps import ScanHeatmap, export_nifti
from monai_mil.scans import load_scan
from tests.conftest import shared
from tests.heatmaps.examples import scan_frame, scan_heatmap

UNEVEN = np.r_[np.arange(6) * 4.0, 20 + np.arange(1, 6) * 7.0]


def middle(affine, size, layer):
    return (affine @ [(size[1] - 1) / 2, (size[0] - 1) / 2, layer, 1])[:3]


@pytest.mark.parametrize("tilt", [0.0, 0.3])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nibabel_reads_the_scores_where_the_slices_lie(tmp_path, tilt, suffix):
    heatmap = scan_heatmap(scan_frame(tilt=tilt))
    image = nibabel.load(export_nifti(heatmap, tmp_path / f"a{suffix}"))
    voxels = np.asarray(image.dataobj)
    assert voxels.shape == (32, 24, 10)
    assert voxels.dtype == np.float32
    np.testing.assert_array_equal(voxels, np.broadcast_to(heatmap.scores, (32, 24, 10)))
    highest = int(voxels[0, 0].argmax())
    exact = middle(heatmap.frame.slice_affine(heatmap.peak), heatmap.frame.size, 0)
    np.testing.assert_allclose(middle(image.affine, heatmap.frame.size, highest), exact, atol=1e-4)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert bool(image.header["qform_code"]) == (tilt == 0)


def test_cells_lie_on_their_pixels(tmp_path):
    scores = np.random.default_rng(0).random((10, 3, 5))
    heatmap = ScanHeatmap(scan_frame(), scores)
    voxels = nibabel.load(export_nifti(heatmap, tmp_path / "a.nii.gz")).get_fdata()
    for index in range(10):
        np.testing.assert_array_equal(voxels[..., index].T, heatmap.slice_map(index))


@pytest.mark.parametrize("tilt", [0.0, 0.3])
def test_uneven_slices_go_on_a_grid_of_their_smallest_spacing(tmp_path, tilt):
    heatmap = scan_heatmap(scan_frame(UNEVEN, tilt=tilt))
    image = nibabel.load(export_nifti(heatmap, tmp_path / "a.nii.gz"))
    column = image.get_fdata()[0, 0]
    for layer, score in enumerate(column):
        at = 4.0 * layer
        nearest = np.abs(UNEVEN - at).argmin()
        assert score == heatmap.scores[nearest]
        exact = middle(heatmap.frame.slice_affine(nearest), heatmap.frame.size, 0)
        drift = np.array([0, -tilt, 1]) * (at - UNEVEN[nearest])
        np.testing.assert_allclose(middle(image.affine, heatmap.frame.size, layer), exact + drift, atol=1e-4)
    assert set(column.astype(np.float32)) == set(heatmap.scores), "no slice is lost"
    assert image.header["descrip"].item() == b"nearest slice of uneven spacing; attention"


def test_slices_beside_one_line_are_refused(tmp_path):
    frame = scan_frame(UNEVEN)
    origins = frame.origins.copy()
    origins[3, 0] += 5
    with pytest.raises(ScanReadError, match=r"lie up to 5\.0 mm beside one straight line"):
        export_nifti(scan_heatmap(scan_frame(UNEVEN, origins=origins)), tmp_path / "a.nii.gz")


def test_memory_does_not_grow_with_the_number_of_slices(tmp_path):
    frame = scan_frame(np.arange(300.0), size=(512, 512))
    heatmap = ScanHeatmap(frame, np.arange(300 * 4).reshape(300, 2, 2))
    tracemalloc.start()
    path = export_nifti(heatmap, tmp_path / "a.nii.gz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 4 * 512 * 512, "a few slices of the 300"
    assert nibabel.load(path).shape == (512, 512, 300)


def test_the_same_heatmap_is_the_same_file(tmp_path):
    first, second = (export_nifti(scan_heatmap(), tmp_path / f"{name}.nii.gz").read_bytes() for name in "ab")
    assert first == second


def test_the_grid_is_that_of_an_independent_segmentation(tmp_path):
    archive = shared("data/ct_totalsegmentator/example_ct_dicom.tar")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    frame = load_scan(tmp_path / "example_ct_dicom").frame
    ours = nibabel.load(export_nifti(scan_heatmap(frame), tmp_path / "a.nii.gz"))
    theirs = nibabel.load(shared("data/ct_totalsegmentator/example_seg_dicom.nii.gz"))
    assert ours.shape == theirs.shape
    # they store rows from the back to the front: the same voxels, the other way round
    flipped = ours.affine @ np.array([[1, 0, 0, 0], [0, -1, 0, ours.shape[1] - 1], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    np.testing.assert_allclose(flipped, theirs.affine, atol=1e-4)

import dataclasses
import tarfile
import tracemalloc
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from monai_mil.errors import ScanReadError
from monai_mil.heatmaps import ScanHeatmap, export_nifti, export_nifti_mask
from monai_mil.scans import Turn, load_scan
from monai_mil.scans.orientation import turned
from tests.conftest import shared
from tests.heatmaps.examples import scan_frame, scan_heatmap
from tests.scans.chest import LESION, slice_origins, write_dicom, write_volume

COS, SIN = np.cos(np.deg2rad(15)), np.sin(np.deg2rad(15))
NORMAL = np.array([SIN * COS, -SIN, COS * COS])
LONG = np.array([COS, 0, -SIN])
UNEVEN = np.r_[np.arange(6) * 4.0, 20 + np.arange(1, 6) * 7.0]


def middle(affine, size, layer):
    return (affine @ [(size[1] - 1) / 2, (size[0] - 1) / 2, layer, 1])[:3]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nibabel_reads_the_scores_where_the_slices_lie(tmp_path, suffix):
    heatmap = scan_heatmap(scan_frame())
    image = nibabel.load(export_nifti(heatmap, tmp_path / f"a{suffix}"))
    voxels = np.asarray(image.dataobj)
    assert voxels.shape == (32, 24, 10)
    assert voxels.dtype == np.float32
    np.testing.assert_array_equal(voxels, np.broadcast_to(heatmap.scores, (32, 24, 10)))
    highest = int(voxels[0, 0].argmax())
    exact = middle(heatmap.frame.slice_affine(heatmap.peak), heatmap.frame.size, 0)
    np.testing.assert_allclose(middle(image.affine, heatmap.frame.size, highest), exact, atol=1e-4)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert image.header["qform_code"] == image.header["sform_code"] == 1


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
    voxels, found = np.asarray(image.dataobj), []
    for layer in range(voxels.shape[2]):
        at = 4.0 * layer
        nearest = np.abs(UNEVEN - at).argmin()
        exact = middle(heatmap.frame.slice_affine(nearest), heatmap.frame.size, 0)
        drift = np.array([0, -tilt, 1]) * (at - UNEVEN[nearest])
        column, row, place, _ = np.linalg.inv(image.affine) @ [*(exact + drift), 1]
        assert place == pytest.approx(layer, abs=1e-4)
        found.append(voxels[round(column), round(row), layer])
        assert found[-1] == heatmap.scores[nearest]
    assert set(found) == set(heatmap.scores), "no slice is lost"
    descrip = image.header["descrip"].item().decode()
    assert descrip.endswith("nearest slice of uneven spacing; attention")
    assert descrip.startswith("resampled to right angles") == bool(tilt)


def by_simpleitk(path):
    """Voxels as ITK reads them, ``[layers, rows, columns]``, and the affine by which it places them, LPS."""
    image = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed").ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return pytest.importorskip("SimpleITK", reason="SimpleITK is not installed").GetArrayFromImage(image), affine


def by_itk(path):
    itk = pytest.importorskip("itk", reason="the extra 'itk' is not installed")
    image = itk.imread(str(path))
    affine = np.eye(4)
    affine[:3, :3] = itk.array_from_matrix(image.GetDirection()) * np.array(image.GetSpacing())
    affine[:3, 3] = list(image.GetOrigin())
    return itk.array_from_image(image), affine


AWAY = {"plain": Turn(), "prone": Turn((0, 1, 2), (False, True, True)), "coronal": Turn((1, 0, 2), (True, True, False))}


@pytest.mark.parametrize("read", [by_simpleitk, by_itk])
@pytest.mark.parametrize("drift", [0.0, 0.0007, 0.3])
@pytest.mark.parametrize("shape", AWAY)
def test_itk_finds_every_voxel_at_its_place(tmp_path, read, drift, shape):
    n, size, spacing = 30, (24, 32), (0.8, 0.5)
    z = np.arange(n) * 4.0 - 60
    frame = scan_frame(z, size, tilt=drift, spacing=spacing)
    cells = np.fromfunction(lambda k, r, c: 10 * k + r / 10 + c / 100, (n, 32, 32))
    stored = dataclasses.replace(turned(frame, AWAY[shape]), turned_from=None, turn=None)
    heatmap = ScanHeatmap(turned(stored, stored.lps_turn()), cells)
    path = export_nifti(heatmap, tmp_path / "a.nii.gz")
    voxels, affine = read(path)
    most = 0.05 if drift < 0.3 else 1e-3
    for index in range(0, n, 7):
        for row, column in ((12, index), (1, 0), (22, 31)):
            point = frame.origins[index] + (column * 0.5, row * 0.8, 0)
            place = np.linalg.inv(affine) @ [*point, 1]
            if drift < 0.3:
                assert np.abs((affine @ [*place[:3].round(), 1])[:3] - point).max() < most
                assert voxels[tuple(place[2::-1].round().astype(int))] == heatmap.slice_map(index)[row, column]
            else:
                value = map_coordinates(voxels, place[2::-1, None], order=1)
                assert value == pytest.approx(heatmap.slice_map(index)[row, column], abs=0.01)
    image = nibabel.load(path)
    if drift < 0.3:
        np.testing.assert_allclose(image.affine, heatmap.frame.source.affine, atol=1e-4)
        assert voxels.shape == heatmap.frame.source.shape
    assert (b"right angles" in image.header["descrip"].item()) == (drift == 0.3)
    assert np.abs(image.get_sform() - image.get_qform()).max() <= most


def test_rounded_positions_keep_the_source_s_slices(tmp_path):
    exact = np.arange(120) * 0.625 - 37
    heatmap = scan_heatmap(scan_frame(exact.round(1)))
    image = nibabel.load(export_nifti(heatmap, tmp_path / "a.nii.gz"))
    assert image.shape == (32, 24, 120)
    np.testing.assert_array_equal(np.asarray(image.dataobj)[0, 0], heatmap.scores)
    places = [(image.affine @ [0, 0, layer, 1])[2] for layer in range(120)]
    assert np.abs(places - exact).max() < 0.03
    assert image.header["descrip"].item() == b"uneven slices as even ones; attention"


def test_a_missing_slice_is_no_rounding(tmp_path):
    heatmap = scan_heatmap(scan_frame([*range(8), *range(9, 17)]))
    assert nibabel.load(export_nifti(heatmap, tmp_path / "a.nii.gz")).shape[2] == 17


@pytest.mark.parametrize("cut", [{}, {"flips": (0, 1)}, {"axes": (2, 0, 1), "flips": (1,)}, {"axes": (1, 2, 0)}])
def test_a_volume_s_heatmap_lies_on_its_own_grid(tmp_path, cut):
    path = write_volume(tmp_path / "scan.nii.gz", **cut)
    source, scan = nibabel.load(path), load_scan(path)
    heatmap = ScanHeatmap(scan.frame, scan.hu)  # a cell a pixel
    image = nibabel.load(export_nifti(heatmap, tmp_path / "a.nii.gz"))
    assert np.array_equal(image.affine, source.affine)
    assert np.array_equal(image.get_fdata(), source.get_fdata())
    mask = nibabel.load(export_nifti_mask(replace(heatmap, threshold=500.0), tmp_path / "mask.nii.gz"))
    assert np.array_equal(mask.get_fdata(), source.get_fdata() > 500)


def test_uneven_slices_that_are_sheared_and_not_axial_are_refused(tmp_path):
    iop, kept = (1, 0, 0, 0, 0, -1), [*range(12), *range(12, 24, 2)]
    scans = {
        name: load_scan(write_dicom(tmp_path / name, iop, origins=slice_origins(iop, drift=drift)[kept]))
        for name, drift in (("upright", (0, 0, 0)), ("tilted", (0, 0, -0.2)))
    }
    upright, tilted = (ScanHeatmap(scan.frame, scan.frame.positions_mm) for scan in scans.values())
    with pytest.raises(ScanReadError, match="uneven, sheared and not axial"):
        export_nifti(tilted, tmp_path / "a.nii.gz")
    voxels, affine = by_simpleitk(export_nifti(upright, tmp_path / "a.nii.gz"))
    assert voxels.shape == (23, 64, 64)
    row, place = 10, affine @ [0, 10, 5, 1]
    assert voxels[5, row, 0] == pytest.approx(place[2], abs=1e-3)


ACQUISITIONS = {
    "prone": {"iop": (-1, 0, 0, 0, -1, 0)},
    "coronal": {"iop": (1, 0, 0, 0, 0, -1), "n": 40},
    "sagittal": {"iop": (0, 1, 0, 0, 0, -1), "n": 48},
    "coronal with a tilted gantry": {"iop": (1, 0, 0, 0, 0, -1), "n": 40, "drift": (0, 0, -0.2)},
    "oblique": {"iop": (*LONG, *np.cross(NORMAL, LONG))},
    "gantry tilt": {"iop": (1, 0, 0, 0, COS, SIN), "drift": (0, SIN, 1 / COS - COS)},
}


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_the_peak_is_where_the_lesion_is_however_the_scan_was_acquired(tmp_path, name):
    scan = load_scan(write_dicom(tmp_path / "scan", **ACQUISITIONS[name]))
    side = max(scan.frame.size)
    top, left = (side - scan.frame.size[0]) // 2, (side - scan.frame.size[1]) // 2
    cells = np.pad(scan.hu, ((0, 0), (top, side - scan.frame.size[0] - top), (left, side - scan.frame.size[1] - left)))
    heatmap = ScanHeatmap(scan.frame, cells)
    voxels, affine = by_simpleitk(export_nifti(heatmap, tmp_path / "a.nii.gz"))
    layer, row, column = np.unravel_index(voxels.argmax(), voxels.shape)
    off = (affine @ [column, row, layer, 1])[:3] - LESION
    assert np.abs(np.linalg.inv(affine)[:3, :3] @ off).max() <= 1


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

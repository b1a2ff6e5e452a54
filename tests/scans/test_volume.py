"""NIfTI and ITK volumes: whatever way their axes run, the same scan comes out."""

import gzip
import itertools

import nibabel
import numpy as np
import pytest

from monai_mil.errors import ScanReadError
from monai_mil.scans import load_scan, volume_scan
from tests.scans.conftest import phantom

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
AFFINE = LPS_TO_RAS @ np.array([[0.6, 0, 0, -50], [0, 0.9, 0, -70], [0, 0, 3.0, 11], [0, 0, 0, 1]])  # as DICOM has it


def saved(path, array, affine=AFFINE):
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def reoriented(array, affine, axes, flips):
    """The same volume with its array axes permuted and mirrored."""
    array, affine = array.transpose(axes), affine[:, [*axes, 3]].copy()
    for axis in flips:
        affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
        affine[:3, axis] *= -1
        array = np.flip(array, axis)
    return array, affine


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", [(), (0,), (1, 2), (0, 1, 2)])
def test_every_order_of_axes_gives_the_same_slices(tmp_path, axes, flips):
    hu = phantom(5, 6, 7)
    array, affine = reoriented(hu.T, AFFINE, axes, flips)
    scan = load_scan(saved(tmp_path / "a.nii.gz", np.ascontiguousarray(array), affine))
    assert np.array_equal(scan.hu, hu)
    assert scan.affine == pytest.approx(AFFINE, abs=1e-4)
    assert scan.frame.spacing == pytest.approx((0.9, 0.6))
    assert scan.frame.sop_uids == ("",) * 5


def test_volumes_are_cut_into_axial_slices_whatever_their_third_axis(tmp_path):
    array, affine = reoriented(phantom(5, 6, 7).T, np.diag([-1.0, -1, 1, 1]), (0, 2, 1), (2,))
    scan = load_scan(saved(tmp_path / "a.nii", np.ascontiguousarray(array), affine))
    assert np.array_equal(scan.hu, phantom(5, 6, 7))
    assert scan.frame.orientation == pytest.approx(np.eye(3)[:2])
    assert scan.frame.source.affine == pytest.approx(affine)
    assert np.array_equal(scan.frame.to_source(scan.hu), array.T)
    assert scan.frame.source.shape == array.T.shape


def test_a_sheared_gantry_tilt_survives_nifti(tmp_path):
    affine = AFFINE.copy()
    affine[1, 2] = 0.8
    scan = load_scan(saved(tmp_path / "a.nii", phantom(5).T.copy(), affine))
    assert scan.affine == pytest.approx(affine, abs=1e-4)
    assert scan.frame.tilt_degrees == pytest.approx(np.degrees(np.arctan(0.8 / 3)), abs=0.01)


def test_stored_scale_is_applied(tmp_path):
    image = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), AFFINE)
    image.header.set_slope_inter(2, -100)
    nibabel.save(image, tmp_path / "a.nii")
    scan = load_scan(tmp_path / "a.nii")
    judge = nibabel.load(tmp_path / "a.nii").get_fdata()
    assert sorted(scan.hu.ravel()) == sorted(judge.ravel())
    assert judge.max() == -54


@pytest.mark.parametrize(("value", "kind"), [(17.0, np.int16), (17.5, np.float32)])
def test_whole_numbers_stored_as_floats_become_int16(tmp_path, value, kind):
    scan = load_scan(saved(tmp_path / "a.nii", np.full((2, 3, 4), value, np.float32)))
    assert scan.hu.dtype == kind
    assert (scan.hu == value).all()


def test_padding_and_missing_numbers_become_air(tmp_path):
    array = np.full((2, 3, 4), 40.5, np.float32)
    array[0, 0, :] = (np.nan, -3024, np.inf, 7)
    scan = load_scan(saved(tmp_path / "a.nii", array))
    assert scan.hu.min() == -1024
    assert (scan.hu == -1024).sum() == 3
    assert any("lowest -3024" in remark for remark in scan.remarks)


def test_what_is_no_volume_is_refused(tmp_path):
    with pytest.raises(ScanReadError, match="no volume of three axes"):
        load_scan(saved(tmp_path / "4d.nii", np.zeros((2, 3, 4, 5), np.int16)))
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(saved(tmp_path / "whole.nii.gz", phantom(9).T.copy()).read_bytes()[:900])
    with pytest.raises(ScanReadError, match=r"broken\.nii\.gz' cannot be read"):
        load_scan(broken)
    (tmp_path / "text.nii").write_text("no volume")
    with pytest.raises(ScanReadError, match=r"text\.nii' cannot be read"):
        load_scan(tmp_path / "text.nii")
    sheared = AFFINE.copy()
    sheared[0, 1] = 0.5
    with pytest.raises(ScanReadError, match="sheared within the slices"):
        load_scan(saved(tmp_path / "sheared.nii", phantom(3).T.copy(), sheared))


@pytest.mark.parametrize("suffix", ["mha", "mhd", "nrrd"])
def test_itk_formats_give_the_same_scan_as_nifti(tmp_path, suffix):
    itk = pytest.importorskip("itk", reason="the extra 'itk' is not installed")
    hu = phantom(5, 6, 7)
    image = itk.image_from_array(hu)
    image.SetSpacing([0.6, 0.9, 3.0])
    image.SetOrigin([-50.0, -70.0, 11.0])
    image.SetDirection(np.diag([1.0, 1.0, 1.0]))
    itk.imwrite(image, str(tmp_path / f"a.{suffix}"))
    scan = load_scan(tmp_path / f"a.{suffix}")
    assert scan.scan_id == "a"
    assert np.array_equal(scan.hu, hu)
    assert scan.affine == pytest.approx(AFFINE)


def test_a_damaged_itk_file_is_refused(tmp_path):
    pytest.importorskip("itk", reason="the extra 'itk' is not installed")
    (tmp_path / "a.mha").write_text("no volume")
    with pytest.raises(ScanReadError, match=r"a\.mha' cannot be read as \.mha"):
        load_scan(tmp_path / "a.mha")


def test_a_flipped_bit_of_a_compressed_volume_is_noticed(tmp_path):
    path = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(phantom(9).T, np.eye(4)), path)
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # of the checksum itself: every voxel still decodes
    path.write_bytes(content)
    with pytest.raises(ScanReadError, match=r"scan\.nii\.gz' cannot be read"):
        load_scan(path)


def test_forms_of_a_nifti_header_that_disagree_are_told(tmp_path):
    image = nibabel.Nifti1Image(phantom(4).T, np.eye(4))
    image.set_qform(np.eye(4), code=1)
    image.set_sform(np.diag([-1.0, 1, 1, 1]), code=2)
    nibabel.save(image, tmp_path / "scan.nii")
    (remark,) = load_scan(tmp_path / "scan.nii").remarks
    assert "sform and qform" in remark
    image.set_sform(np.eye(4), code=2)
    nibabel.save(image, tmp_path / "same.nii")
    assert load_scan(tmp_path / "same.nii").remarks == ()


@pytest.mark.parametrize("sform", [0, 1, 2, 4])
@pytest.mark.parametrize("qform", [0, 1, 3])
def test_every_combination_of_form_codes_gives_the_right_place(tmp_path, sform, qform):
    affine = np.diag([-0.5, -0.5, 2.0, 1.0])
    affine[:3, 3] = 10, 20, 30
    voxels = phantom(6)
    image = nibabel.Nifti1Image(voxels.T, affine)
    image.set_sform(affine, sform)
    image.set_qform(affine, qform)
    nibabel.save(image, tmp_path / "ct.nii.gz")
    scan = load_scan(tmp_path / "ct.nii.gz")
    if sform or qform:
        assert np.array_equal(scan.hu, voxels)
        assert scan.affine == pytest.approx(affine)
        assert scan.remarks == ()
    else:
        assert "the NIfTI header has no orientation" in scan.remarks[0]


def test_bytes_behind_the_data_are_told_and_do_no_harm(tmp_path):
    nibabel.save(nibabel.Nifti1Image(phantom(6).T, np.diag([-0.5, -0.5, 2.0, 1.0])), tmp_path / "ct.nii.gz")
    whole = (tmp_path / "ct.nii.gz").read_bytes()
    (tmp_path / "ct.nii.gz").write_bytes(whole + b"Doe^Jane")
    scan = load_scan(tmp_path / "ct.nii.gz")
    assert np.array_equal(scan.hu, phantom(6))
    assert scan.remarks == ("bytes behind the end of the compressed data were ignored",)


def test_a_nifti_header_in_metres_is_read_in_mm(tmp_path):
    image = nibabel.Nifti1Image(phantom(4).T, np.diag([0.001, 0.001, 0.0025, 1]))
    image.header.set_xyzt_units("meter")
    nibabel.save(image, tmp_path / "scan.nii")
    scan = load_scan(tmp_path / "scan.nii")
    assert scan.frame.spacings() == ((3, 2.5),)
    assert "meters" in scan.remarks[0]


def broken(path, change, sform=1, qform=1):
    """A volume whose header is changed after it was written."""
    image = nibabel.Nifti1Image(phantom(5).T.copy(), AFFINE)
    image.set_qform(AFFINE, qform)
    image.set_sform(AFFINE, sform)
    nibabel.save(image, path)
    content = bytearray(path.read_bytes())
    header = nibabel.Nifti1Header(bytes(content[:348]), check=False)
    for name, value in change.items():
        header[name] = value
    content[:348] = header.binaryblock
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"srow_x": 0, "srow_y": 0, "srow_z": 0}, "the sform of the NIfTI header is no invertible matrix: the qform"),
        ({"srow_x": np.nan}, "the sform of the NIfTI header is no invertible matrix: the qform was taken"),
        ({"quatern_b": 2.0}, "the qform of the NIfTI header is no invertible matrix: the sform was taken"),
        ({"quatern_b": np.nan}, "the qform of the NIfTI header is no invertible matrix: the sform was taken"),
        ({"xyzt_units": 7}, "in a unit that there is not: taken as mm"),
    ],
)
def test_one_sound_form_of_a_nifti_header_is_enough(tmp_path, change, told):
    scan = load_scan(broken(tmp_path / "scan.nii", change))
    np.testing.assert_allclose(scan.affine, AFFINE, atol=1e-4)
    assert any(told in remark for remark in scan.remarks)


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (2, 1), (4, 2)])
def test_either_form_places_a_nifti_volume(tmp_path, codes):
    scan = load_scan(broken(tmp_path / "scan.nii", {}, *codes))
    np.testing.assert_allclose(scan.affine, AFFINE, atol=1e-4)
    assert [remark for remark in scan.remarks if "NIfTI" in remark] == []


def test_no_sound_form_of_a_nifti_header_is_an_error(tmp_path):
    with pytest.raises(ScanReadError, match="not invertible; write the volume with its geometry"):
        load_scan(broken(tmp_path / "scan.nii", {"srow_x": 0}, qform=0))


@pytest.mark.parametrize("space", ["left-posterior-superior", "right-anterior-superior", "LAS", ""])
def test_a_nrrd_volume_lies_in_its_space_or_says_that_it_names_none(tmp_path, space):
    pytest.importorskip("itk", reason="the extra 'itk' is not installed")
    hu = phantom(5, 6, 7)
    header = f"""NRRD0004
type: short
dimension: 3
{f"space: {space}" if space else "space dimension: 3"}
sizes: 7 6 5
space directions: (0.6,0,0) (0,0.9,0) (0,0,3)
endian: little
encoding: raw
space origin: (-50,-70,11)

"""
    (tmp_path / "a.nrrd").write_bytes(header.encode() + hu.tobytes())
    scan = load_scan(tmp_path / "a.nrrd")
    left, back = (space in ("", "left-posterior-superior", "LAS"), space in ("", "left-posterior-superior"))
    assert np.array_equal(scan.hu, hu[:, :: 1 if back else -1, :: 1 if left else -1])
    stored = np.diag([-1.0 if left else 1.0, -1.0 if back else 1.0, 1, 1]) @ LPS_TO_RAS @ AFFINE
    np.testing.assert_allclose(scan.frame.source.affine, stored, atol=1e-9)
    assert any("names no space of the patient" in remark for remark in scan.remarks) == (not space)


def test_a_volume_of_thick_coronal_slices_is_told(tmp_path):
    array, affine = reoriented(phantom(6, 5, 7).T, LPS_TO_RAS @ np.diag([0.8, 3.0, 0.8, 1]), (2, 0, 1), (1,))
    scan = load_scan(saved(tmp_path / "a.nii", np.ascontiguousarray(array), affine))
    assert np.array_equal(scan.hu, phantom(6, 5, 7))
    assert "comes in coronal slices: cut into 6 axial ones, without resampling" in scan.remarks
    assert any("3 mm between rows, 0.8 mm between columns" in remark for remark in scan.remarks)


def test_a_volume_of_one_slice_keeps_its_grid(tmp_path):
    for flips in ((), (0,), (0, 1, 2)):
        array, affine = reoriented(phantom(1, 6, 7).T, AFFINE, (0, 1, 2), flips)
        scan = load_scan(saved(tmp_path / "a.nii", np.ascontiguousarray(array), affine))
        assert np.array_equal(scan.hu, phantom(1, 6, 7))
        np.testing.assert_allclose(scan.frame.source.affine, affine, atol=1e-5)
        np.testing.assert_allclose(scan.affine, AFFINE, atol=1e-5)


def test_a_volume_in_memory_is_the_scan_of_its_file(tmp_path):
    array, affine = reoriented(phantom(5, 6, 7).T, AFFINE, (2, 0, 1), (1,))
    scan = volume_scan(array, affine, "S-1")
    assert np.array_equal(scan.hu, load_scan(saved(tmp_path / "a.nii", np.ascontiguousarray(array), affine)).hu)
    assert (scan.scan_id, scan.frame.path) == ("S-1", None)
    with pytest.raises(ScanReadError, match=r"scan 'S-1': int16 of shape \(2, 5, 7, 6\) is no volume of three axes"):
        volume_scan(np.stack([array, array]), affine, "S-1")


def test_a_gzip_that_goes_on_behind_its_volume_is_read_no_further(tmp_path, monkeypatch):
    path = tmp_path / "ct.nii.gz"
    image = nibabel.Nifti1Image(phantom(6).T, np.diag([-0.5, -0.5, 2.0, 1.0]))
    path.write_bytes(gzip.compress(image.to_bytes() + bytes(1 << 22), 1))
    assert load_scan(path).hu.shape == phantom(6).shape
    monkeypatch.setattr("monai_mil.scans.volume._MOST_BEHIND", 1 << 20)
    with pytest.raises(ScanReadError, match=r"ct\.nii\.gz' cannot be read as \.nii\.gz"):
        load_scan(path)


def test_a_volume_larger_than_its_gzip_can_hold_is_refused_before_anything_is_allocated(tmp_path):
    header = nibabel.Nifti1Header()
    header.set_data_shape((30_000, 30_000, 30_000))
    (tmp_path / "ct.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(1000)))
    with pytest.raises(ScanReadError, match=r"ct\.nii\.gz' cannot be read .*damaged or cut off"):
        load_scan(tmp_path / "ct.nii.gz")

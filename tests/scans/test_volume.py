"""NIfTI and ITK volumes: whatever way their axes run, the same scan comes out."""

import itertools
import struct

import nibabel
import numpy as np
import pytest

from monai_mil.errors import ScanReadError
from monai_mil.scans import load_scan
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


def test_isotropic_volumes_are_cut_along_their_third_axis(tmp_path):
    array, affine = reoriented(phantom(5, 6, 7).T, np.diag([-1.0, -1, 1, 1]), (0, 2, 1), ())
    scan = load_scan(saved(tmp_path / "a.nii", np.ascontiguousarray(array), affine))
    assert len(scan) == 6  # coronal
    assert np.abs(scan.frame.normal).argmax() == 1
    assert scan.frame.orientation == pytest.approx(np.array([[1.0, 0, 0], [0, 0, -1.0]]))  # head up, as DICOM shows it


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
    affine = np.diag([-0.5, -0.75, 2.0, 1.0])
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


def test_an_sform_of_zeros_is_not_taken(tmp_path):
    affine = np.diag([-0.5, -0.75, 2.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(phantom(6).T, affine), tmp_path / "ct.nii")
    content = bytearray((tmp_path / "ct.nii").read_bytes())
    content[252:256] = struct.pack("<hh", 1, 1)  # both codes
    content[280:328] = bytes(48)
    (tmp_path / "ct.nii").write_bytes(content)
    scan = load_scan(tmp_path / "ct.nii")
    assert np.array_equal(scan.hu, phantom(6))
    assert scan.affine == pytest.approx(affine)
    assert "sform of the NIfTI header maps everything to a plane" in scan.remarks[0]


def test_bytes_behind_the_data_are_told_and_do_no_harm(tmp_path):
    nibabel.save(nibabel.Nifti1Image(phantom(6).T, np.diag([-0.5, -0.75, 2.0, 1.0])), tmp_path / "ct.nii.gz")
    whole = (tmp_path / "ct.nii.gz").read_bytes()
    (tmp_path / "ct.nii.gz").write_bytes(whole + b"Doe^Jane")
    scan = load_scan(tmp_path / "ct.nii.gz")
    assert np.array_equal(scan.hu, phantom(6))
    assert scan.remarks == ("bytes behind the end of the compressed data were ignored",)


@pytest.mark.parametrize(
    ("space", "origin", "told"),
    [
        ("space: left-posterior-superior", (-10, -20, 30), None),
        ("space: LPS", (-10, -20, 30), None),
        ("space: right-anterior-superior", (10, 20, 30), None),
        ("space: scanner-xyz", (-10, -20, 30), "none of a patient"),
        ("space dimension: 3", (-10, -20, 30), "names no space"),
    ],
)
def test_the_space_of_a_nrrd_file_is_followed_or_told(tmp_path, space, origin, told):
    pytest.importorskip("itk", reason="the extra 'itk' is not installed")
    sign = -1 if "right" in space else 1
    directions = f"({0.5 * sign},0,0) (0,{0.75 * sign},0) (0,0,2)"
    head = (
        f"NRRD0004\ntype: short\ndimension: 3\n{space}\nsizes: 16 12 6\nspace directions: {directions}\n"
        f"endian: little\nencoding: raw\nspace origin: ({','.join(map(str, origin))})\n\n"
    )
    (tmp_path / "ct.nrrd").write_bytes(head.encode() + phantom(6).tobytes())
    scan = load_scan(tmp_path / "ct.nrrd")
    assert np.array_equal(scan.hu, phantom(6))
    assert scan.frame.origins[0].tolist() == [-10, -20, 30]
    assert scan.frame.spacing == (0.75, 0.5)
    assert [told in remark for remark in scan.remarks] == ([] if told is None else [True])


def test_a_nifti_header_in_metres_is_read_in_mm(tmp_path):
    image = nibabel.Nifti1Image(phantom(4).T, np.diag([0.001, 0.001, 0.0025, 1]))
    image.header.set_xyzt_units("meter")
    nibabel.save(image, tmp_path / "scan.nii")
    scan = load_scan(tmp_path / "scan.nii")
    assert scan.frame.spacings() == ((3, 2.5),)
    assert "meters" in scan.remarks[0]

"""The scans of a folder: what is one, what is none, and that nobody is lost."""

import gzip
import shutil
import zipfile

import nibabel
import numpy as np
import pytest

from monai_mil.errors import ScanReadError
from monai_mil.scans import find_scans, load_scan, scan_files, search_scans
from tests.scans.conftest import phantom, save, slice_dataset, write_series

AFFINE = np.diag([-0.5, -0.5, 2.0, 1.0])
SCOUT = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
MR = {"Modality": "MR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"}


def write_nifti(path, values, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def labels(n=8, kind=np.uint8, count=3):
    return np.random.default_rng(0).integers(0, count, (16, 12, n)).astype(kind)


def test_masks_are_no_scans_and_told(tmp_path):
    ct = write_nifti(tmp_path / "s1" / "ct.nii.gz", phantom().T)
    write_nifti(tmp_path / "s1" / "segmentations" / "liver.nii.gz", labels(count=2))
    write_nifti(tmp_path / "s1" / "segmentations" / "absent.nii.gz", np.zeros((16, 12, 8), np.uint8))
    write_nifti(tmp_path / "s1" / "organs.nii.gz", labels(kind=np.int16, count=118))
    write_nifti(tmp_path / "s1" / "lesion.nii", labels(kind=np.float32))
    (tmp_path / "s1" / "Lungs.seg.nrrd").write_bytes(b"NRRD0004\n")
    search = search_scans(tmp_path)
    assert [scan.path for scan in search.scans] == [ct]
    (told,) = search.left_out
    assert "5 masks or segmentations are no scans, as s1/Lungs.seg.nrrd" in told


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("labels/ct.nii.gz", phantom().T),  # whatever its folder is called, it has air
        ("picture.nii.gz", np.arange(16 * 12 * 8).reshape(16, 12, 8).astype(np.uint8)),  # 256 grey values
        ("unshifted.nii.gz", (phantom() + 1024).T),
        ("share.nii", np.random.default_rng(0).random((16, 12, 8)).astype(np.float32)),
        ("constant.nii", np.zeros((16, 12, 8), np.int16)),
    ],
)
def test_what_has_the_values_of_a_picture_is_no_mask(tmp_path, name, values):
    assert find_scans(tmp_path) == []
    path = write_nifti(tmp_path / name, values)
    assert find_scans(tmp_path) == [path]


@pytest.mark.parametrize("order", ["in turn", "shuffled"])
def test_a_series_in_two_folders_is_one_scan(tmp_path, order):
    hu = phantom(24)
    made = write_series(tmp_path / "made", hu)
    files = sorted(made.iterdir())
    for index, path in enumerate(files):
        folder = tmp_path / "disc" / f"DIR{(index // 12) if order == 'in turn' else index % 2:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / f"{index:08d}")
    assert find_scans(tmp_path / "disc") == [tmp_path / "disc"]
    scan = load_scan(tmp_path / "disc")
    assert np.array_equal(scan.hu, hu)
    assert "its slices lie in 2 folders" in scan.remarks
    assert len(scan_files(tmp_path / "disc")) == 24


def test_a_series_that_goes_on_below_its_folder_is_read_whole(tmp_path):
    hu = phantom(8)
    write_series(tmp_path / "case", hu, shuffle=False)
    write_series(tmp_path / "case" / "other", phantom(3, seed=3), SeriesInstanceUID="1.2.8")
    (tmp_path / "case" / "more").mkdir()
    for path in sorted((tmp_path / "case").glob("IM*"))[4:]:
        path.rename(tmp_path / "case" / "more" / path.name)
    assert np.array_equal(load_scan(tmp_path / "case", series_uid=None).hu, hu)


def test_a_series_over_folders_below_another_series_is_found_by_its_uid(tmp_path):
    write_series(tmp_path, phantom(3, seed=3), SeriesInstanceUID="1.2.9")
    made = write_series(tmp_path / "made", phantom(6), SeriesInstanceUID="1.2.3")
    for index, path in enumerate(sorted(made.iterdir())):
        (tmp_path / f"DIR{index // 3}").mkdir(exist_ok=True)
        path.rename(tmp_path / f"DIR{index // 3}" / path.name)
    made.rmdir()
    found = [(scan.path, scan.series_uid) for scan in search_scans(tmp_path).scans]
    assert found == [(tmp_path, None), (tmp_path, "1.2.3")]
    assert len(load_scan(tmp_path)) == 3
    assert np.array_equal(load_scan(tmp_path, series_uid="1.2.3").hu, phantom(6))


def test_damage_below_a_series_folder_is_no_fault_of_the_series(tmp_path):
    write_series(tmp_path / "case", phantom(3))
    for path in write_series(tmp_path / "case" / "old", phantom(3, seed=1)).iterdir():
        path.write_bytes(path.read_bytes()[:-300])
    assert np.array_equal(load_scan(tmp_path / "case").hu, phantom(3))


def test_series_over_folders_beside_others_are_named_by_their_uid(tmp_path):
    first, second = phantom(6), phantom(6, seed=1)
    write_series(tmp_path / "made", first, SeriesInstanceUID="1.2.3", shuffle=False)
    write_series(tmp_path / "alone", second, SeriesInstanceUID="1.2.4", PatientID="OTHER")
    for index, path in enumerate(sorted((tmp_path / "made").iterdir())):
        (tmp_path / f"DIR{index // 3}").mkdir(exist_ok=True)
        path.rename(tmp_path / f"DIR{index // 3}" / path.name)
    (tmp_path / "made").rmdir()
    search = search_scans(tmp_path)
    assert [(scan.path, scan.series_uid) for scan in search.scans] == [(tmp_path, "1.2.3"), (tmp_path / "alone", None)]
    assert np.array_equal(load_scan(tmp_path, series_uid="1.2.3").hu, first)


def test_an_anonymiser_that_gives_everybody_one_uid_makes_no_scan_of_two_patients(tmp_path):
    write_series(tmp_path / "a", phantom(4))
    write_series(tmp_path / "b", phantom(4, seed=1), [[0, 0, 8 + 2 * i] for i in range(4)])  # numbers begin anew
    assert find_scans(tmp_path) == [tmp_path / "a", tmp_path / "b"]


@pytest.mark.parametrize("change", [{"PatientID": "OTHER"}, {}, {"StudyInstanceUID": "1.2.77"}])
def test_slices_at_the_same_places_in_two_folders_are_two_scans(tmp_path, change):
    write_series(tmp_path / "a", phantom(4))
    write_series(tmp_path / "b", phantom(4, seed=1), **change)
    assert find_scans(tmp_path) == [tmp_path / "a", tmp_path / "b"]


def test_a_series_and_the_nifti_made_of_it_are_one_scan(tmp_path):
    hu = phantom(8)
    series = write_series(tmp_path / "P1" / "dicom", hu)
    frame_affine = load_scan(series).affine
    flipped = frame_affine @ np.array([[1, 0, 0, 0], [0, -1, 0, 11], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    write_nifti(tmp_path / "P1" / "ct.nii.gz", hu.T[:, ::-1], flipped)  # as dcm2niix turns it
    other = write_nifti(tmp_path / "P1" / "other.nii.gz", phantom(8, seed=1).T, frame_affine)
    search = search_scans(tmp_path)
    assert [scan.path for scan in search.scans] == [series, other]
    (told,) = search.left_out
    assert "ct.nii.gz': made of the series in" in told


def test_the_same_pixels_in_folders_of_a_cohort_are_scans_of_their_own(tmp_path):
    series = write_series(tmp_path / "P1", phantom(8))
    volume = write_nifti(tmp_path / "P2" / "ct.nii.gz", phantom(8).T, load_scan(series).affine)
    assert find_scans(tmp_path) == [series]  # a folder with DICOM, one with NIfTI: one patient's
    other = write_series(tmp_path / "P3", phantom(8, seed=1))
    assert find_scans(tmp_path) == [series, volume, other]
    beside = write_nifti(tmp_path / "P3.nii.gz", phantom(8, seed=1).T, load_scan(other).affine)
    assert find_scans(tmp_path) == [series, volume, other]
    assert str(beside) in search_scans(tmp_path).left_out[0]


def empty(folder):
    folder.mkdir(parents=True)
    return folder


def archive(folder):
    with zipfile.ZipFile(empty(folder) / "scan.zip", "w") as file:
        file.writestr("IM0", "x")


def packed(folder):
    for path in write_series(folder, phantom(3)).iterdir():
        path.with_suffix(".dcm.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()


def pair(folder):
    nibabel.save(nibabel.Nifti1Pair(phantom().T, np.eye(4)), empty(folder) / "scan.img")


def scouts(folder):
    write_series(folder, phantom(2), ImageType=SCOUT, PatientID="ONLY-SCOUTS", StudyInstanceUID="1.2.5")


def captures(folder):
    shot = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "PixelSpacing": None}
    write_series(folder, phantom(2), PatientID="SHOTS", StudyInstanceUID="1.2.6", **shot)


def magnetic(folder):
    write_series(folder, phantom(2), PatientID="MR-ONLY", StudyInstanceUID="1.2.7", **MR)


def linked(folder):
    (empty(folder) / "IM0").symlink_to("../gone/IM0")


def text(folder):
    (empty(folder) / "report.pdf").write_bytes(b"%PDF-1.7")


def masks(folder):
    write_nifti(folder / "segmentations" / "liver.nii.gz", labels())


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (archive, r"1 x not DICOM: 1 \.zip \(an archive: unpack it\)"),
        (packed, r"3 \.dcm\.gz \(a packed file: unpack it\)"),
        (pair, r"a pair of files of Analyze or NIfTI: write it as \.nii\.gz"),
        (scouts, "2 x CT localizer"),
        (captures, "2 x Secondary Capture Image Storage"),
        (magnetic, "2 x MR"),
        (linked, "1 x link that leads nowhere, as IM0"),
        (text, r"1 \.pdf"),
        (masks, r"1 \.nii\.gz"),
    ],
)
def test_a_folder_with_files_and_no_scan_is_found_so_that_it_is_reported(tmp_path, write, reason):
    good = write_series(tmp_path / "P1" / "series", phantom(3))
    write(tmp_path / "P2" / "data")
    (lost,) = [path for path in find_scans(tmp_path) if path != good]
    assert lost in (tmp_path / "P2", tmp_path / "P2" / "data", tmp_path / "P2" / "data" / "segmentations")
    with pytest.raises(ScanReadError, match=reason):
        load_scan(lost)


def test_what_belongs_to_a_patient_who_was_found_is_not_reported(tmp_path):
    series = write_series(tmp_path / "P1" / "series", phantom(3))
    write_series(tmp_path / "P1" / "scout", phantom(1), ImageType=SCOUT)
    write_series(tmp_path / "elsewhere", phantom(1), **MR)  # of the same patient
    text(tmp_path / "P1" / "report")
    (tmp_path / "bags").mkdir()
    (tmp_path / "bags" / "P1.h5").write_bytes(b"x")
    (tmp_path / "readme.txt").write_text("x")
    assert find_scans(tmp_path) == [series]


def test_packed_files_and_broken_links_beside_volumes_are_named_one_by_one(tmp_path):
    ct = write_nifti(tmp_path / "a.nii.gz", phantom().T)
    archive(tmp_path / "made")
    shutil.move(tmp_path / "made" / "scan.zip", tmp_path / "b.zip")
    (tmp_path / "made").rmdir()
    (tmp_path / "c.nii.gz").symlink_to("gone.nii.gz")
    (tmp_path / "table.csv.gz").write_bytes(gzip.compress(b"a,b"))
    assert find_scans(tmp_path) == [ct, tmp_path / "b.zip", tmp_path / "c.nii.gz"]
    with pytest.raises(ScanReadError, match=r"b\.zip': an archive: unpack it"):
        load_scan(tmp_path / "b.zip")
    with pytest.raises(ScanReadError, match=r"c\.nii\.gz': a link to 'gone\.nii\.gz', which is not there"):
        load_scan(tmp_path / "c.nii.gz")


def test_links_that_lead_nowhere_among_the_slices_are_told(tmp_path):
    series = write_series(tmp_path / "series", phantom(3))
    (series / "IM9").symlink_to("gone")
    assert find_scans(tmp_path) == [series]
    assert any("1 links in the folder lead nowhere, as IM9" in remark for remark in load_scan(series).remarks)


def test_a_dicom_segmentation_is_no_scan(tmp_path):
    series = write_series(tmp_path / "P1" / "ct", phantom(3))
    seg = slice_dataset(phantom(1)[0].astype(np.uint16), Modality="SEG", SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4")
    save(seg, tmp_path / "P1" / "seg" / "seg.dcm")
    assert find_scans(tmp_path) == [series]

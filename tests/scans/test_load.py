"""Geometry of real and synthetic series, highdicom and nibabel being the judges."""

import gzip
import json
import math
import os
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from monai_mil.errors import ScanReadError
from monai_mil.scans import as_uid, find_scans, load_scan
from tests.conftest import shared
from tests.scans.conftest import AXIAL, phantom, save, slice_dataset, write_series

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
TAN = math.tan(math.radians(20))
GEOMETRIES = {
    "straight": {},
    "anisotropic pixels": {"PixelSpacing": [0.9, 0.6]},
    "coronal": {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1], "step": (0, 2.5, 0)},
    "sagittal": {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1], "step": (3.0, 0, 0)},
    "reversed normal": {"ImageOrientationPatient": [1, 0, 0, 0, -1, 0]},
    "descending": {"step": (0, 0, -2.0)},
    "oblique": {"ImageOrientationPatient": [0.6, 0.8, 0, -0.8, 0.6, 0], "step": (0, 0, 1.5)},
    "gantry tilt": {"step": (0, 2 * TAN, 2.0)},
}


def oracle(highdicom, folder, **options):
    datasets = [pydicom.dcmread(path) for path in folder.iterdir()]
    return highdicom.get_volume_from_series(datasets, **options)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_series_lies_where_highdicom_says(highdicom, tmp_path, name):
    attributes = dict(GEOMETRIES[name])
    step = np.array(attributes.pop("step", (0, 0, 2.0)))
    origins = np.array([-20.0, 30.0, 7.0]) + np.arange(8)[:, None] * step
    hu = phantom()
    scan = load_scan(write_series(tmp_path / "case", hu, origins, **attributes))
    known = {tuple(origin): values for origin, values in zip(origins.round(6), hu, strict=True)}
    stored = scan.frame.to_source(scan.hu)
    for i, origin in enumerate(scan.frame.source.origins.round(6)):
        assert np.array_equal(stored[i], known[tuple(origin)])
    assert scan.frame.axis_codes == "LPS"
    assert np.all(np.diff(scan.frame.positions_mm) > 0)

    if name == "gantry tilt":
        assert scan.frame.tilt_degrees == pytest.approx(20)
        assert any("20.0 degrees" in remark for remark in scan.remarks)
        return
    judge = oracle(highdicom, tmp_path / "case")
    voxel = np.array([[3, 1, 2, 1], [5, 4, 7, 1]]).T  # slice, row, column
    lps = judge.affine @ voxel
    indices = np.linalg.inv(LPS_TO_RAS @ scan.frame.affine) @ lps
    for (c, r, s, _), (i, j, k, _) in zip(indices.T.round(6), voxel.T, strict=True):
        assert scan.hu[int(s), int(r), int(c)] == judge.array[i, j, k]


def test_a_tilted_series_lies_where_highdicom_says_each_slice_does(highdicom, tmp_path):
    origins = np.arange(6)[:, None] * np.array([0, 2 * TAN, 2.0])
    scan = load_scan(write_series(tmp_path / "case", phantom(6), origins, PixelSpacing=[0.9, 0.6]))
    for i in range(6):
        judge = highdicom.spatial.PixelToReferenceTransformer(origins[i], AXIAL, [0.9, 0.6])
        ras = scan.frame.slice_affine(i) @ [4, 2, 0, 1]
        assert (LPS_TO_RAS @ ras)[:3] == pytest.approx(judge(np.array([[4, 2]]))[0])
        assert ras == pytest.approx(scan.frame.affine @ [4, 2, i, 1])


def test_slices_keep_their_identity(tmp_path):
    folder = write_series(tmp_path / "case", phantom())
    scan = load_scan(folder)
    by_uid = {d.SOPInstanceUID: d for d in map(pydicom.dcmread, folder.iterdir())}
    for i, uid in enumerate(scan.frame.sop_uids):
        assert by_uid[uid].ImagePositionPatient == pytest.approx(scan.frame.origins[i])
        assert np.array_equal(by_uid[uid].pixel_array.astype(int) - 1024, scan.hu[i])
    assert (scan.scan_id, scan.frame.path) == ("case", str(folder))
    assert scan.hu.dtype == np.int16


def test_the_patient_stands_in_one_field_only(tmp_path, recwarn, caplog):
    scan = load_scan(write_series(tmp_path / "case", phantom()))
    assert scan.patient_id == "SECRET-17"
    told = [repr(scan), scan.frame.to_json(), *scan.remarks, *caplog.messages, *(str(w.message) for w in recwarn)]
    assert not any("SECRET" in text or "Doe" in text for text in told)


def test_a_name_planted_where_it_does_not_belong_reaches_no_message_and_no_bag(tmp_path, recwarn, caplog, capfd):
    from monai_mil.embedding import embed_scans

    planted = ("SeriesInstanceUID", "FrameOfReferenceUID", "StudyInstanceUID", "RescaleType")
    with pydicom.config.disable_value_validation():
        images = dict.fromkeys(planted, "Doe^Jane") | {"ImageType": ["ORIGINAL", "Doe^Jane"]}
        folder = write_series(tmp_path / "case", phantom(), **images)
        for number, path in enumerate(sorted(folder.iterdir())):
            dataset = pydicom.dcmread(path)
            dataset.SOPInstanceUID = f"Doe^Jane {number}"
            dataset.save_as(path)
    scan = load_scan(folder, series_uid="Doe^Jane")
    assert scan.frame.series_uid == as_uid("Doe^Jane")
    assert len(set(scan.frame.sop_uids)) == len(scan)
    report = embed_scans([folder], tmp_path / "bags")
    assert report.failed == ()
    kept = [path.read_bytes() for path in (tmp_path / "bags").rglob("*") if path.is_file()]
    told = [repr(scan), scan.frame.to_json(), *scan.remarks, *caplog.messages, *(str(w.message) for w in recwarn)]
    assert not any("Doe" in text for text in (*told, *capfd.readouterr()))
    assert not any(b"Doe" in content for content in kept)


@pytest.mark.parametrize("uid", ["1.2.840.10008.1.2", "2.25.1", ""])
def test_a_uid_stays_as_it_is(uid):
    assert as_uid(uid) == uid


@pytest.mark.parametrize("text", ["Doe^Jane", "19700101", "1.2." + "3" * 64, "1..2"])
def test_what_is_no_uid_becomes_one_that_tells_the_same_apart(text):
    made = as_uid(text)
    assert pydicom.uid.UID(made).is_valid
    assert text not in made
    assert made == as_uid(text + " ") != as_uid(text + "2")


def test_all_28_slices_of_the_tilted_head_are_read_and_accounted_for(head_series):
    scan = load_scan(head_series)
    assert len(scan) == len(set(scan.frame.sop_uids)) == 28
    assert scan.frame.tilt_degrees == pytest.approx(18.5, abs=0.01)
    runs = scan.frame.spacings()
    assert [count for count, _ in runs] == [13, 1, 13]
    assert [mm for _, mm in runs] == pytest.approx([4.0, 1.08, 7.0], abs=0.01)
    assert not scan.frame.is_regular
    told = "\n".join(scan.remarks)
    assert "18.5 degrees" in told
    assert "14 x 4 mm, 14 x 7 mm" in told
    assert "lowest -1500" in told
    assert scan.hu.min() == -1024
    with pytest.raises(ScanReadError, match="unevenly spaced"):
        scan.affine  # noqa: B018


def test_the_nodule_lies_where_the_readers_say(chest_series):
    scan = load_scan(chest_series)
    truth = json.loads(shared("data/ct_chest_lidc0314/annotation.json").read_text())
    nodule = truth["nodules"][0]
    assert len(scan) == truth["n_slices"]
    column, row, index, _ = np.linalg.inv(scan.affine) @ (LPS_TO_RAS @ [*nodule["centre_mm"], 1])
    i, j, k = round(index), round(row), round(column)
    assert scan.hu[i, j - 2 : j + 3, k - 2 : k + 3].mean() == pytest.approx(66, abs=40)
    assert max(scan.hu[i, j, k - 15], scan.hu[i, j, k + 15]) < -600  # lung on both sides

    low, high = nodule["bbox_low_mm"][2], nodule["bbox_high_mm"][2]
    inside = {uid for uid, z in zip(scan.frame.sop_uids, scan.frame.origins[:, 2], strict=True) if low <= z <= high}
    names = truth["positive_slices"]
    assert inside == {pydicom.dcmread(chest_series / name).SOPInstanceUID for name in names}


def test_jpeg_2000_and_its_segmentation_share_one_grid(abdomen_series):
    scan = load_scan(abdomen_series)
    path = shared("data/ct_totalsegmentator/example_seg_dicom.nii.gz")
    labels = load_scan(path)
    assert labels.frame.size == scan.frame.size
    assert labels.affine == pytest.approx(scan.affine, abs=1e-3)
    assert 20 < np.median(scan.hu[labels.hu == 5]) < 160  # liver
    image = nibabel.load(path)
    back = np.linalg.inv(image.affine) @ scan.affine
    assert np.abs(back.round(3)[:3, :3]).sum() == pytest.approx(3, abs=0.01)


def test_a_uid_that_de_identification_emptied_is_taken_from_the_files_header(abdomen_series):
    files = [pydicom.dcmread(path, stop_before_pixels=True) for path in abdomen_series.iterdir()]
    assert not any(file.SOPInstanceUID for file in files)
    assert set(load_scan(abdomen_series).frame.sop_uids) == {str(f.file_meta.MediaStorageSOPInstanceUID) for f in files}


def test_a_scan_goes_to_nifti_and_back(abdomen_series, tmp_path):
    scan = load_scan(abdomen_series)
    nibabel.save(nibabel.Nifti1Image(scan.hu.T, scan.affine), tmp_path / "copy.nii.gz")
    again = load_scan(tmp_path / "copy.nii.gz")
    assert np.array_equal(again.hu, scan.hu)
    assert again.affine == pytest.approx(scan.affine, abs=1e-3)


def test_real_volumes_keep_their_place(tmp_path):
    path = shared("data/ct_totalsegmentator/example_ct.nii.gz")
    image, scan = nibabel.load(path), load_scan(path)
    stored = np.asarray(image.dataobj)
    for voxel in ((5, 7, 9), (60, 50, 100)):
        c, r, s, _ = (np.linalg.inv(scan.affine) @ image.affine @ [*voxel, 1]).round().astype(int)
        assert scan.hu[s, r, c] == max(stored[voxel], -1024)


def test_one_slice_is_a_scan(tmp_path):
    scan = load_scan(write_series(tmp_path / "case", phantom(1), SliceThickness=2.5))
    assert len(scan) == 1
    assert np.linalg.norm(scan.affine[:3, 2]) == pytest.approx(2.5)


def test_a_file_without_preamble_is_read_and_text_is_not(tmp_path):
    folder = write_series(tmp_path / "case", phantom(3))
    bare = slice_dataset(np.full((12, 16), 1024, np.uint16), ImagePositionPatient=[0, 0, 6.0])
    save(bare, folder / "bare", preamble=False)
    (folder / "notes.txt").write_text("CT of a patient, nothing to read here" * 10)
    (folder / "zeros").write_bytes(bytes(4096))
    (folder / "empty").touch()
    scan = load_scan(folder)
    assert len(scan) == 4
    assert (scan.hu[3] == 0).all()
    assert "3 files that are not DICOM ignored" in scan.remarks


def test_what_load_scan_takes_is_found(tmp_path):
    write_series(tmp_path / "a" / "series", phantom(2))
    write_series(tmp_path / "a" / "scout", phantom(1), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 3, 3), np.int16), np.eye(4)), tmp_path / "b.nii.gz")
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / ".hidden").mkdir()
    write_series(tmp_path / ".hidden", phantom(1))
    assert find_scans(tmp_path) == [tmp_path / "a" / "series", tmp_path / "b.nii.gz"]
    assert find_scans(tmp_path / "a" / "series") == [tmp_path / "a" / "series"]
    assert [load_scan(path).scan_id for path in find_scans(tmp_path)] == ["series", "b"]
    with pytest.raises(ScanReadError, match="no such folder"):
        find_scans(tmp_path / "absent")


@pytest.mark.parametrize("name", ["n" * 300, "/".join(["deep" * 20] * 60), "with\0zero"])
def test_a_path_that_no_disk_takes_is_not_there(tmp_path, name):
    with pytest.raises(ScanReadError, match="no such file or folder"):
        load_scan(tmp_path / name)


def test_a_link_to_a_folder_above_is_not_followed_round_and_round(tmp_path):
    series = write_series(tmp_path / "patient" / "series", phantom(3))
    (series / "back").symlink_to("..")
    (series / "nowhere").symlink_to("gone")
    assert find_scans(tmp_path) == [series]
    assert len(load_scan(tmp_path / "patient")) == 3


def test_a_pipe_in_a_folder_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "A pipe")
    write_series(tmp_path, phantom(3))
    assert find_scans(tmp_path) == [tmp_path]


def test_a_series_of_damaged_files_only_is_found_so_that_it_is_reported(tmp_path):
    for path in write_series(tmp_path / "cut", phantom(3)).iterdir():
        path.write_bytes(path.read_bytes()[: -2 * 12 * 16 - 30])
    assert find_scans(tmp_path) == [tmp_path / "cut"]


def test_a_folder_that_cannot_be_listed_is_found_so_that_it_is_reported(tmp_path, monkeypatch):
    closed = write_series(tmp_path / "closed", phantom(3))
    listed = os.scandir

    def scandir(path):
        if Path(path) == closed:  # what the system says to everybody but root
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert find_scans(tmp_path) == [closed]
    with pytest.raises(ScanReadError, match=r"closed' cannot be read \(Permission denied\)"):
        load_scan(closed)


def test_a_series_that_names_no_modality_is_ct_by_its_class(tmp_path):
    hu = phantom(3)
    assert np.array_equal(load_scan(write_series(tmp_path, hu, Modality=None)).hu, hu)


def spoil(path, before, after):
    content = path.read_bytes()
    assert content.count(before) == 1
    path.write_bytes(content.replace(before, after))


def test_a_decimal_comma_is_understood_and_what_is_not_needed_may_be_no_number(tmp_path):
    hu = phantom(3)
    folder = write_series(tmp_path, hu, PixelSpacing=["0.75", "0.75"], SliceLocation="12.5")
    for path in folder.iterdir():
        spoil(path, b"0.75\\0.75", b"0,75\\0,75")
        spoil(path, b"12.5", b"N/A ")
    scan = load_scan(folder)
    assert np.array_equal(scan.hu, hu)
    assert scan.frame.spacing == (0.75, 0.75)


def test_what_is_needed_and_no_number_is_named_with_its_value_and_nothing_a_person_wrote(tmp_path):
    folder = write_series(tmp_path, phantom(2), PixelSpacing=["0.75", "0.75"], shuffle=False)
    spoil(folder / "IM0000", b"0.75\\0.75", b"N/A\\0.75 ")
    with pytest.raises(ScanReadError, match=r"IM0000': PixelSpacing is 'N/A.0.75', not 2 numbers; export"):
        load_scan(folder)
    spoil(folder / "IM0000", b"N/A\\0.75 ", b"Doe^John  ")
    with pytest.raises(ScanReadError, match=r"IM0000': PixelSpacing is text, not 2 numbers"):
        load_scan(folder)


def test_a_uid_for_every_file_is_told_in_one_line(tmp_path):
    def own(i, dataset):
        dataset.SeriesInstanceUID = f"1.2.3.{i}"

    folder = write_series(tmp_path, phantom(30), change=own)
    with pytest.raises(ScanReadError, match="every one of its 30 CT files has a series UID of its own") as caught:
        load_scan(folder)
    assert len(str(caught.value)) < 300


SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def test_ct_stored_as_secondary_capture_is_read_where_it_has_a_place(tmp_path):
    hu = phantom(3)
    scan = load_scan(write_series(tmp_path / "placed", hu, SOPClassUID=SECONDARY_CAPTURE))
    assert np.array_equal(scan.hu, hu)
    assert any("Secondary Capture" in remark for remark in scan.remarks)
    with pytest.raises(ScanReadError, match="3 x Secondary Capture Image Storage"):
        load_scan(write_series(tmp_path / "shot", hu, SOPClassUID=SECONDARY_CAPTURE, PixelSpacing=None))


def test_a_compressed_nifti_is_known_by_its_content(tmp_path):
    voxels = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image):
        nibabel.save(kind(voxels, np.diag([1, 1, 2, 1.0])), tmp_path / "plain.nii")
        (tmp_path / "packed.nii").write_bytes(gzip.compress((tmp_path / "plain.nii").read_bytes()))
        assert np.array_equal(load_scan(tmp_path / "packed.nii").hu, load_scan(tmp_path / "plain.nii").hu)

import numpy as np
import pydicom
import pytest

from monai_mil.bags import BagFile, BagInfo
from monai_mil.cohorts import bag_datalist, find_slides, named_slides, read_cohort, slide_datalist
from monai_mil.errors import CohortError
from monai_mil.names import file_stem


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "inner").mkdir()
    for name in ("b.svs", "a.ome.tif", "inner/c.NDPI", ".hidden.svs", "notes.txt", "x.y.h5", "inner/z.h5"):
        (tmp_path / name).touch()
    return tmp_path


def test_slides_are_found_at_any_depth_in_order(folder):
    assert find_slides(folder) == [folder / "a.ome.tif", folder / "b.svs", folder / "inner" / "c.NDPI"]
    assert [item["slide_id"] for item in slide_datalist(folder)] == ["a", "b", "c"]
    assert slide_datalist(folder / "b.svs") == [{"image": str(folder / "b.svs"), "slide_id": "b"}]


def test_two_slides_of_one_name_are_refused_since_their_results_would_overwrite_each_other(folder):
    (folder / "b.tif").touch()
    with pytest.raises(CohortError, match=r"b\.svs' and '.*b\.tif' have one name, 'b'"):
        slide_datalist(folder)


def test_slides_of_one_name_in_two_folders_are_named_by_their_place(folder):
    (folder / "inner" / "b.tif").touch()
    assert [item["slide_id"] for item in slide_datalist(folder)] == ["a", "b", "inner_b", "c"]


def test_folders_given_together_name_their_slides_from_what_they_have_in_common(tmp_path):
    for name in ("batch1/HE_1.tif", "batch2/deep/HE_1.tif", "batch2/HE_2.tif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = named_slides([tmp_path / "batch1", tmp_path / "batch2", tmp_path / "batch1" / "HE_1.tif"])
    assert [name for name, _ in found] == ["batch1_HE_1", "HE_2", "batch2_deep_HE_1"]


def test_slides_are_known_in_any_case_and_without_a_suffix_by_their_content(tmp_path):
    for name in ("A.SVS", "b.Ome.TIF", "c.qptiff", "d.BTF"):
        (tmp_path / name).touch()
    for name, content in (
        ("nameless", b"II*\0 ..."),
        ("2.25.17", b"MM\0+ ..."),
        ("readme", b"text"),
        ("e.log", b"II*\0"),
    ):
        (tmp_path / name).write_bytes(content)
    assert [path.name for path in find_slides(tmp_path)] == [
        "2.25.17",
        "A.SVS",
        "b.Ome.TIF",
        "c.qptiff",
        "d.BTF",
        "nameless",
    ]


def write_dicom(path, series, modality="SM"):
    header = pydicom.Dataset()
    header.SOPClassUID, header.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.77.1.6", f"{series}.{len(path.name)}.7"
    header.SeriesInstanceUID, header.Modality = series, modality
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path, enforce_file_format=True)


def test_a_dicom_slide_is_found_once_however_many_files_it_has(tmp_path):
    for name, series in (("one/a.dcm", "1.2.1"), ("one/bb", "1.2.1"), ("two/c.dcm", "1.2.2"), ("two/dd.dcm", "1.2.3")):
        write_dicom(tmp_path / name, series)
    write_dicom(tmp_path / "two" / "ct.dcm", "1.2.9", modality="CT")
    write_dicom(tmp_path / "single" / "1.2.4.55", "1.2.4")
    names = [path.relative_to(tmp_path).as_posix() for path in find_slides(tmp_path)]
    assert names == ["one", "single/1.2.4.55", "two/c.dcm", "two/dd.dcm"]


def test_a_damaged_dicom_file_is_found_so_that_it_is_reported(tmp_path):
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM\x02\x00\x00\x00UL\x04\x00\xff")
    write_dicom(tmp_path / "b.dcm", "1.2.1")
    assert [path.name for path in find_slides(tmp_path)] == ["a.dcm", "b.dcm"]


def test_links_are_followed_round_no_circle_and_told_where_they_are_broken(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "linked.svs").touch()
    (folder / "patient").symlink_to(elsewhere)
    (folder / "inner" / "up").symlink_to(folder)
    (folder / "gone").symlink_to(elsewhere / "nothing")
    names = [path.relative_to(folder).as_posix() for path in find_slides(folder)]
    assert names == ["a.ome.tif", "b.svs", "gone", "inner/c.NDPI", "patient/linked.svs"]


def test_names_mean_the_same_in_every_unicode_form(tmp_path):
    """A Mac writes an u umlaut as two characters, a keyboard as one."""
    composed, decomposed = "M\u00fcller", "Mu\u0308ller"
    (tmp_path / f"{decomposed}.svs").touch()
    assert [item["slide_id"] for item in slide_datalist(tmp_path)] == [composed]
    (tmp_path / f"{decomposed}.h5").touch()
    (tmp_path / "cohort.csv").write_text(f"slide_id,path,label\n{composed},{composed}.svs,a\n", encoding="utf-8")
    cohort = read_cohort(tmp_path / "cohort.csv")
    assert cohort.slides[0].path == tmp_path / f"{decomposed}.svs"
    assert cohort.datalist(bag_dir=tmp_path)[0]["image"] == str(tmp_path / f"{decomposed}.h5")
    (tmp_path / "cohort.csv").write_text(f"slide_id,path,label\n{decomposed},{decomposed}.svs,a\n", encoding="utf-8")
    assert read_cohort(tmp_path / "cohort.csv").slides[0].slide_id == composed


def test_bags_are_those_of_the_folder_itself(folder):
    assert bag_datalist(folder) == [{"image": str(folder / "x.y.h5"), "slide_id": "x.y"}]
    assert bag_datalist(folder, "scan_id") == [{"image": str(folder / "x.y.h5"), "scan_id": "x.y"}]


def test_a_bag_of_a_shortened_name_says_its_own_unless_it_is_damaged(tmp_path):
    name = "S" * 251
    BagFile.write(tmp_path / f"{file_stem(name)}.h5", np.ones((1, 2)), np.zeros((1, 2), int), BagInfo(name))
    assert [item["slide_id"] for item in bag_datalist(tmp_path)] == [name]
    (tmp_path / f"{file_stem(name)}.h5").write_bytes(b"no bag")
    assert [item["slide_id"] for item in bag_datalist(tmp_path)] == [file_stem(name)]


def test_folders_without_slides_or_bags_are_named(tmp_path):
    with pytest.raises(CohortError, match=r"no slides \(files ending with \.svs"):
        find_slides(tmp_path)
    with pytest.raises(CohortError, match=r"no bags \(files ending with \.h5, or CLAM's \.pt\)"):
        bag_datalist(tmp_path)
    with pytest.raises(CohortError, match="nowhere' is no folder; name the folder that holds the bags"):
        bag_datalist(tmp_path / "nowhere")
    with pytest.raises(CohortError, match="nowhere' is no folder; name the folder that holds the slides"):
        find_slides(tmp_path / "nowhere")

"""What the reader of scans finds, doubts and leaves out reaches whoever embeds them."""

import csv
import shutil
import sys

import nibabel
import numpy as np
import pytest

from monai_mil.bags import BagFile, LoadBagd
from monai_mil.cohorts import read_cohort, scan_datalist
from monai_mil.embedding import EmbedScand, embed_scans
from monai_mil.errors import ScanReadError, SettingsError
from monai_mil.savers import Case
from monai_mil.savers.prediction import read_prediction
from tests.embedding.scans import SliceStatistics, write_nifti
from tests.scans.conftest import phantom, write_series


@pytest.fixture
def encoder(tmp_path):
    return SliceStatistics(tmp_path / "log")


@pytest.fixture
def two_phases(tmp_path):
    """One series of two phases, the second 100 HU brighter."""

    def change(i, dataset):
        dataset.AcquisitionNumber = 1 + i // 5

    hu = np.concatenate([phantom(5), np.minimum(phantom(5) + 100, 1900)])
    return write_series(tmp_path / "scans" / "P1", hu, [[0, 0, 2.0 * (i % 5)] for i in range(10)], change=change)


def failed(folder):
    with (folder / "failed.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_one_of_several_acquisitions_is_chosen_by_an_option_or_a_column(two_phases, encoder, tmp_path):
    (result,) = embed_scans(two_phases, tmp_path / "bags", encoder, progress=False).results
    assert "5 of acquisition 1" in result.error
    table = tmp_path / "cohort.csv"
    table.write_text(f"scan_id,path,acquisition\na,{two_phases},1\nb,{two_phases},2.0\nc,{two_phases},\n")
    report = embed_scans(table, tmp_path / "bags", encoder, acquisition="2", progress=False)
    assert [one.status for one in report.results] == ["embedded"] * 3
    bags = {}
    for name in "abc":
        with BagFile(tmp_path / "bags" / f"{name}.h5") as bag:
            bags[name] = bag.info.scan.acquisition, LoadBagd("image")({"image": bag.path})["image"].numpy()
    assert [bags[name][0] for name in "abc"] == ["1", "2", "2"]
    assert np.array_equal(bags["b"][1], bags["c"][1])
    assert not np.array_equal(bags["a"][1], bags["b"][1])
    items = read_cohort(table, labels=()).datalist()
    assert [item["acquisition"] for item in items] == ["1", "2", ""]
    embed = EmbedScand(encoder=encoder)
    assert np.array_equal(embed(items[1])["image"].numpy(), bags["b"][1])
    with pytest.raises(ScanReadError, match="choose one with acquisition"):
        embed(items[2])
    written = read_cohort(read_cohort(table, labels=()).write(tmp_path / "again.csv"), labels=())
    assert [slide.acquisition for slide in written.slides] == ["1", "2", None]
    table.write_text(f"scan_id,path,acquisition\na,{two_phases},2\n")
    (result,) = embed_scans(table, tmp_path / "bags", encoder, progress=False).results
    assert "acquisition 1 instead of 2" in result.error


def test_values_that_may_be_no_hounsfield_units_are_an_error_unless_accepted_or_windowed(encoder, tmp_path):
    values = np.random.default_rng(0).random((16, 20, 4)).astype(np.float32)
    path = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values, np.diag([0.8, 0.8, 2.5, 1.0])), path)
    for chosen in ({}, {"preset": "lung"}, {"preset": "40/400"}):
        (result,) = embed_scans(path, tmp_path / "bags", encoder, progress=False, **chosen).results
        assert "may be no Hounsfield units; export it in HU" in result.error
        assert "--accept-units" in result.error
    for name, chosen in (("accepted", {"accept_units": True}), ("window", {"preset": "0.5/1"})):
        (result,) = embed_scans(path, tmp_path / name, encoder, progress=False, **chosen).results
        assert result.status == "embedded"
        assert "may be no Hounsfield units" in result.remarks[0]
    with pytest.raises(ScanReadError, match="may be no Hounsfield units"):
        EmbedScand(encoder=encoder)({"image": path})
    assert len(EmbedScand(encoder=encoder, accept_units=True)({"image": path})["coords"]) == 4


def test_a_series_without_rescaling_is_told_why_its_values_are_in_doubt(encoder, tmp_path):
    def change(i, dataset):
        del dataset.RescaleSlope, dataset.RescaleIntercept

    folder = write_series(tmp_path / "scan", phantom(4) + 1024, change=change)
    (result,) = embed_scans(folder, tmp_path / "bags", encoder, progress=False).results
    assert "may be no Hounsfield units (no slice has RescaleSlope and RescaleIntercept" in result.error


def test_nobody_is_lost_and_the_last_line_counts_everybody(encoder, tmp_path, capfd):
    scans = tmp_path / "scans"
    write_nifti(scans / "a" / "ct.nii.gz", 4)
    shutil.copytree(
        write_series(tmp_path / "made", phantom(2), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), scans / "b"
    )
    (scans / "c").mkdir()
    (scans / "c" / "scan.zip").write_bytes(b"PK")
    report = embed_scans(scans, tmp_path / "bags", encoder)
    assert [result.status for result in report.results] == ["embedded", "failed", "failed"]
    assert capfd.readouterr().err.strip().splitlines()[-1] == "3 scans found: 1 embedded, 2 left out"
    rows = failed(tmp_path / "bags")
    assert [(row["scan_id"], row["status"]) for row in rows] == [("b", "unreadable"), ("c", "unreadable")]
    assert "2 x CT localizer" in rows[0]["message"]
    assert "an archive: unpack it" in rows[1]["message"]
    shutil.rmtree(scans / "b")
    shutil.rmtree(scans / "c")
    embed_scans(scans, tmp_path / "bags", encoder)
    assert capfd.readouterr().err.strip().splitlines()[-1] == "1 scan found: 0 embedded, 1 kept, 0 left out"
    assert not (tmp_path / "bags" / "failed.csv").exists()


def test_the_reader_s_remarks_stand_in_the_bag_and_in_the_prediction_the_gravest_first(encoder, tmp_path):
    hu = phantom(6)
    folder = write_series(tmp_path / "scan", hu, RescaleSlope=None, RescaleIntercept=None)
    (folder / "notes.txt").write_text("x" * 200)
    report = embed_scans(folder, tmp_path / "bags", encoder, accept_units=True, progress=False)
    said = report.results[0].remarks
    assert [remark[:20] for remark in said[:2]] == ["no slice has Rescale", "no pixel is darker t"]
    assert said[-1] == "1 files that are not DICOM ignored"
    (kept,) = embed_scans(folder, tmp_path / "bags", encoder, accept_units=True, progress=False).results
    assert (kept.status, kept.remarks) == ("kept", said)
    bag = tmp_path / "bags" / "scan.h5"
    with BagFile(bag) as opened:
        assert opened.info.remarks == said
    loaded = LoadBagd("image")({"image": bag, "scan_id": "scan"})
    direct = EmbedScand(encoder=encoder, accept_units=True)({"image": folder, "scan_id": "scan"})
    for item in (loaded, direct):
        prediction = read_prediction(Case.of(item | {"pred": np.array([0.2, 0.8])}), ["normal", "tumor"], False)
        assert prediction.row()["remarks"] == "; ".join(said)


def test_what_is_grave_comes_before_what_is_rare(encoder, tmp_path, capfd):
    for index in range(4):
        folder = write_series(tmp_path / "scans" / str(index), phantom(3), PatientID=str(index), RescaleType="US")
        if index == 2:
            (folder / "notes.txt").write_text("x" * 200)
    embed_scans(tmp_path / "scans", tmp_path / "bags", encoder)
    shown = capfd.readouterr().err
    assert shown.index("4 scans, as 0: RescaleType US") < shown.index("2: 1 files that are not DICOM ignored")


def test_masks_beside_a_scan_are_left_out_of_a_data_list_and_told(tmp_path, caplog):
    write_nifti(tmp_path / "s1" / "ct.nii.gz", 4)
    (tmp_path / "s1" / "segmentations").mkdir()
    mask = nibabel.Nifti1Image(np.eye(8, dtype=np.uint8)[..., None].repeat(4, 2), np.eye(4))
    nibabel.save(mask, tmp_path / "s1" / "segmentations" / "liver.nii.gz")
    assert [item["scan_id"] for item in scan_datalist(tmp_path)] == ["s1_ct"]
    assert "1 masks or segmentations are no scans" in caplog.text


def test_series_over_folders_beside_others_are_embedded_by_their_uid(encoder, tmp_path):
    scans = tmp_path / "scans"
    for uid in ("1.2.3", "1.2.4"):
        hu = phantom(6, seed=int(uid[-1]))
        made = write_series(tmp_path / uid, hu, SeriesInstanceUID=uid, PatientID=uid, StudyInstanceUID=uid)
        for index, path in enumerate(sorted(made.iterdir())):
            (scans / f"DIR{uid[-1]}{index // 3}").mkdir(parents=True, exist_ok=True)
            path.rename(scans / f"DIR{uid[-1]}{index // 3}" / path.name)
    items = scan_datalist(scans)
    assert [(item["scan_id"], item["series_uid"]) for item in items] == [
        ("scans_1.2.3", "1.2.3"),
        ("scans_1.2.4", "1.2.4"),
    ]
    report = embed_scans(scans, tmp_path / "bags", encoder, progress=False)
    assert [(one.status, one.instances) for one in report.results] == [("embedded", 6), ("embedded", 6)]


@pytest.mark.parametrize(
    ("package", "name", "options"), [("lungmask", "scan.nii.gz", {"lungs": "lungmask"}), ("itk", "scan.mha", {})]
)
def test_a_missing_package_is_one_error_before_any_scan_is_read(encoder, tmp_path, monkeypatch, package, name, options):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SettingsError, match="pip install"):
        embed_scans([tmp_path / name] * 2, tmp_path / "bags", encoder, progress=False, **options)
    if options:
        with pytest.raises(SettingsError, match="lungmask"):
            EmbedScand(encoder=encoder, **options)
    assert not (tmp_path / "bags").exists()

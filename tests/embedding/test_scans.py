import json
import re
import shutil
import signal
import sys
import time
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from monai.data import decollate_batch
from monai.transforms import Compose, Resize

from monai_mil.bags import BagFile, LoadBagd, collate_bags
from monai_mil.cohorts import SliceLabelsd, read_cohort, scan_datalist
from monai_mil.embedding import EmbedScand, embed_scan, embed_scans
from monai_mil.errors import BagError, CohortError, OutputError, ScanReadError, SettingsError
from monai_mil.scans import (
    Depth,
    LungField,
    find_preset,
    fit_statistics,
    list_series,
    load_scan,
    lung_mask,
    prepare_slices,
    slice_preset,
)
from monai_mil.synthetic.scan_cohort import lesion_truth, make_scan_cohort
from tests.embedding.counting import encoded
from tests.embedding.scans import SliceStatistics, write_nifti
from tests.processes import start


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A folder with three volumes of 5, 6 and 7 slices, one of them in a folder of its own."""
    folder = tmp_path_factory.mktemp("scans")
    write_nifti(folder / "a.nii.gz", 5, seed=1)
    write_nifti(folder / "b.nii", 6, seed=2)
    write_nifti(folder / "more" / "a.nii.gz", 7, seed=3)
    return folder


@pytest.fixture
def encoder(tmp_path):
    return SliceStatistics(tmp_path / "log")


def test_scans_of_a_folder_are_named_by_where_they_lie(scans):
    assert [item["scan_id"] for item in scan_datalist(scans)] == ["a", "b", "more_a"]
    assert scan_datalist(scans / "b.nii") == [{"image": str(scans / "b.nii"), "scan_id": "b"}]


def test_two_scans_of_one_name_are_refused_in_a_data_list(scans, tmp_path):
    shutil.copytree(scans, tmp_path / "scans")
    shutil.copy(scans / "b.nii", tmp_path / "scans" / "more_a.nii")
    with pytest.raises(CohortError, match=r"more_a\.nii' get one name, 'more_a'"):
        scan_datalist(tmp_path / "scans")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CohortError, match="empty': no scans"):
        scan_datalist(tmp_path / "empty")


@pytest.mark.parametrize("grid", [None, (3, 3)])
def test_a_bag_of_a_scan_knows_every_slice(scans, tmp_path, grid):
    encoder = SliceStatistics(tmp_path / "log", grid=grid)
    report = embed_scans(scans, tmp_path / "bags", encoder, "chest_rsna", chunk=4, progress=False)
    assert [(result.case_id, result.instances) for result in report.results] == [("a", 5), ("b", 6), ("more_a", 7)]
    scan = load_scan(scans / "more" / "a.nii.gz")
    with BagFile(tmp_path / "bags" / "more_a.h5") as bag:
        expected = torch.cat(list(embed_scan(scan, encoder, slice_preset("chest_rsna"), chunk=100)))
        np.testing.assert_array_equal(bag.features(), expected.numpy())
        assert bag.coords.tolist() == [[index, 0] for index in range(7)]
        assert bag.info.slide_id == bag.info.scan.scan_id == "more_a"
        assert bag.info.preset == slice_preset("chest_rsna").record()
        assert (bag.info.encoder, bag.info.encoder_digest, bag.info.tile_size) == ("statistics", "s0", None)
        np.testing.assert_array_equal(bag.info.scan.origins, scan.frame.origins)
        np.testing.assert_array_equal(bag.extra("positions_mm"), scan.frame.positions_mm)
        assert bag.extra("sop_uids").tolist() == [""] * 7


def test_a_second_run_encodes_nothing(scans, encoder, tmp_path):
    embed_scans(scans, tmp_path / "bags", encoder, progress=False)
    report = embed_scans(scans, tmp_path / "bags", encoder, progress=False)
    assert [result.status for result in report.results] == ["kept"] * 3
    assert encoded(encoder.log) == 5 + 6 + 7


@pytest.mark.usefixtures("fork_server")
def test_a_killed_run_goes_on_with_the_scans_that_are_missing(scans, tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from monai_mil.embedding import embed_scans\n"
        "from tests.embedding.scans import SliceStatistics\n"
        "class Slow(SliceStatistics):\n"
        "    def encode(self, slices): time.sleep(0.2); return super().encode(slices)\n"
        f"embed_scans({str(scans)!r}, {str(tmp_path / 'bags')!r}, Slow(Path({str(tmp_path / 'log')!r})), chunk=1, "
        "progress=False)"
    )
    process = start("-c", script)
    deadline = time.monotonic() + 60
    while encoded(tmp_path / "log") < 7 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "bags").glob("*.h5")] == ["a.h5"], "whole or absent"
    report = embed_scans(scans, tmp_path / "bags", SliceStatistics(tmp_path / "log"), progress=False)
    assert [result.status for result in report.results] == ["kept", "embedded", "embedded"]


def test_a_scan_that_cannot_be_read_stops_nothing(scans, encoder, tmp_path, capfd):
    (tmp_path / "broken.nii.gz").write_bytes(b"no volume")
    places = [tmp_path / "broken.nii.gz", scans / "a.nii.gz", tmp_path / "missing", scans / "more" / "a.nii.gz"]
    report = embed_scans(places, tmp_path / "bags", encoder)
    assert [result.status for result in report.results] == ["failed", "embedded", "failed", "failed"]
    for result, message in zip(report.failed, ["cannot be read", "no such file", "is taken by"], strict=True):
        assert result.path in result.error
        assert message in result.error
    assert "3 of 4 scans failed" in capfd.readouterr().err
    record = json.loads(report.manifest.read_text())
    assert [scan["scan_id"] for scan in record["scans"]] == ["broken", "a", "missing", "a"]
    assert record["scans"][1]["slices"] == 5
    assert record["settings"]["preset"]["name"] == "chest_rsna"


def test_what_a_scan_s_reader_did_is_told_and_kept_in_the_manifest(scans, encoder, tmp_path, capfd):
    report = embed_scans(scans / "a.nii.gz", tmp_path / "bags", encoder)
    assert report.results[0].remarks == load_scan(scans / "a.nii.gz").remarks
    shown = capfd.readouterr().err
    for remark in report.results[0].remarks:
        assert remark in shown
    assert json.loads(report.manifest.read_text())["scans"][0]["remarks"] == list(report.results[0].remarks)


def test_a_bag_of_another_preset_is_neither_reused_nor_lost(scans, encoder, tmp_path):
    path = scans / "a.nii.gz"
    embed_scans(path, tmp_path, encoder, "chest_rsna", progress=False)
    before = (tmp_path / "a.h5").read_bytes()
    report = embed_scans(path, tmp_path, encoder, "lung", progress=False)
    assert "preset name chest_rsna instead of lung" in report.failed[0].error
    assert (tmp_path / "a.h5").read_bytes() == before
    report = embed_scans(path, tmp_path, encoder, "lung", overwrite=True, progress=False)
    assert report.results[0].status == "embedded"


@pytest.fixture
def table(scans, tmp_path):
    path = tmp_path / "cohort.csv"
    places = {"x": "a.nii.gz", "y": "b.nii", "z": "more/a.nii.gz", "gone": "gone.nii"}
    rows = [f"{name},{scans / place},{'test' if name == 'z' else 'train'}" for name, place in places.items()]
    path.write_text("scan_id,path,split\n" + "\n".join(rows) + "\n")
    return path


def test_a_paper_s_preset_is_fitted_on_the_training_split_once(scans, table, tmp_path, caplog):
    encoder = SliceStatistics(tmp_path / "log", channels=1)
    out = tmp_path / "bags"
    report = embed_scans(table, out, encoder, "head_paper", progress=False)
    assert [result.status for result in report.results] == ["embedded", "embedded", "embedded", "failed"]
    fitted = find_preset(out / "preset.json")
    train = [load_scan(scans / name) for name in ("a.nii.gz", "b.nii")]
    assert fitted == fit_statistics(train, slice_preset("head_paper"), 24)
    with BagFile(out / "z.h5") as bag:
        assert bag.info.preset == fitted.record()
    again = embed_scans(scans / "a.nii.gz", out, encoder, "head_paper", progress=False)
    assert again.failed == (), "the folder's statistics are taken, without a split"
    elsewhere = embed_scans(scans / "b.nii", tmp_path / "other", encoder, out / "preset.json", progress=False)
    with BagFile(tmp_path / "other" / "b.h5") as bag, BagFile(out / "y.h5") as trained:
        assert elsewhere.failed == ()
        np.testing.assert_array_equal(bag.features(), trained.features())
    with pytest.raises(SettingsError, match=r"statistics of preset 'head_paper' instead of 'chest_paper'"):
        embed_scans(table, out, encoder, "chest_paper", progress=False)
    (out / "preset.json").write_bytes(bytes(40))
    with caplog.at_level("WARNING"):
        assert [result.status for result in embed_scans(table, out, encoder, "head_paper", progress=False).results] == [
            *["kept"] * 3,
            "failed",
        ]
    assert "preset.json': cannot be read" in caplog.text
    assert find_preset(out / "preset.json") == fitted


def test_statistics_need_a_training_split(scans, tmp_path):
    encoder = SliceStatistics(tmp_path / "log", channels=1)
    with pytest.raises(SettingsError, match="needs the statistics of a training split"):
        embed_scans(scans, tmp_path / "bags", encoder, "head_paper", progress=False)
    assert not (tmp_path / "bags" / "preset.json").exists()
    with pytest.raises(SettingsError, match=r"'head_paper' has no statistics yet.*preset\.json"):
        EmbedScand(encoder=encoder, preset="head_paper")


def test_a_preset_must_fit_the_encoder(scans, tmp_path):
    with pytest.raises(SettingsError, match="gives slices of 3 channels, encoder 'statistics' takes 1"):
        embed_scans(scans, tmp_path / "bags", SliceStatistics(tmp_path / "log", channels=1), progress=False)
    assert not (tmp_path / "bags").exists()
    with pytest.raises(SettingsError, match="'texture' is for tiles of slides, not for CT slices"):
        embed_scans(scans, tmp_path / "bags", "texture", progress=False)
    with pytest.raises(SettingsError, match="slice preset 'lungs': unknown"):
        embed_scans(scans, tmp_path / "bags", SliceStatistics(tmp_path / "log"), "lungs", progress=False)
    with pytest.raises(SettingsError, match=r"none\.json': cannot be read"):
        find_preset(tmp_path / "none.json")


@pytest.mark.usefixtures("fork_server")
def test_two_runs_share_a_folder_and_do_no_scan_twice(scans, tmp_path):
    script = (
        "from pathlib import Path; from monai_mil.embedding import embed_scans\n"
        "from tests.embedding.scans import SliceStatistics\n"
        f"encoder = SliceStatistics(Path({str(tmp_path / 'log')!r}))\n"
        f"report = embed_scans({str(scans)!r}, {str(tmp_path / 'bags')!r}, encoder, progress=False)\n"
        "raise SystemExit(len(report.failed))"
    )
    runs = [start("-c", script) for _ in range(2)]
    assert [run.wait() for run in runs] == [0, 0]
    assert encoded(tmp_path / "log") == 5 + 6 + 7


def test_dask_workers_embed_scans_too(scans, encoder, tmp_path):
    distributed = pytest.importorskip("distributed", reason="the extra 'scale' is not installed")
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as local:
        report = embed_scans(scans, tmp_path / "bags", encoder, progress=False, scheduler=local.scheduler_address)
    assert [result.status for result in report.results] == ["embedded"] * 3


def test_embedding_in_memory_equals_embedding_to_disk(scans, encoder, tmp_path):
    path = scans / "more" / "a.nii.gz"
    embed_scans(path, tmp_path, encoder, "lung", progress=False)
    stored = LoadBagd(preset="lung")({"image": str(tmp_path / "a.h5")})
    direct = EmbedScand(encoder=encoder, preset="lung", chunk=2)({"image": str(path), "scan_id": "a"})
    assert torch.equal(stored["image"].as_tensor(), direct["image"].as_tensor())
    assert torch.equal(stored["coords"], direct["coords"])
    assert torch.equal(stored["positions_mm"], direct["positions_mm"])
    same = ("slide_id", "slide_path", "encoder", "encoder_digest", "scan_frame")
    assert all(stored["image"].meta[name] == direct["image"].meta[name] for name in same)


@pytest.mark.parametrize("mode", ["resize", "middle"])
def test_depth_and_lungs_go_the_same_ways_in_memory_and_through_a_bag(tmp_path, mode):
    path, encoder = chest(tmp_path), SliceStatistics(tmp_path / "log", grid=(4, 4))
    cut = {"lungs": "threshold", "depth": 10, "depth_mode": mode}
    embed_scans(path, tmp_path / "bags", encoder, "insight", **cut, progress=False)
    (tmp_path / "labels.csv").write_text(
        "scan_id,slice_index,label\n" + "".join(f"chest,{i},{i // 20}\n" for i in range(24))
    )
    label = SliceLabelsd("image", tmp_path / "labels.csv")
    stored = label(LoadBagd(preset="insight")({"image": str(tmp_path / "bags" / "chest.h5")}))
    direct = label(EmbedScand(encoder=encoder, preset="insight", chunk=3, **cut)({"image": str(path)}))
    assert torch.equal(stored["image"].as_tensor(), direct["image"].as_tensor())
    for key in ("coords", "positions_mm", "instance_labels"):
        assert torch.equal(stored[key], direct[key])
        assert len(stored[key]) == 10
    assert stored["instance_labels"].tolist() == ([0] * 8 + [1] * 2 if mode == "resize" else [0] * 10)
    batch = collate_bags([stored, direct])
    for part in decollate_batch(batch):
        assert Depth.from_json(part["image"].meta["scan_depth"]) == Depth(10, mode)
        assert LungField.from_json(part["image"].meta["scan_lungs"]).shape == (24, 64, 80)


def test_a_scan_that_cannot_be_read_is_named(encoder, tmp_path):
    with pytest.raises(ScanReadError, match=r"nowhere'"):
        EmbedScand(encoder=encoder)({"image": str(tmp_path / "nowhere")})


def test_a_network_s_preset_is_held_against_the_bag_s(scans, table, tmp_path):
    embed_scans(scans / "a.nii.gz", tmp_path, SliceStatistics(tmp_path / "log"), "lung", progress=False)
    item = {"image": str(tmp_path / "a.h5")}
    LoadBagd(preset="lung")(item)
    with pytest.raises(BagError, match=r"a\.h5': made with slice preset 'lung', .* with 'chest_rsna'"):
        LoadBagd(preset="chest_rsna")(item)
    embed_scans(table, tmp_path, SliceStatistics(tmp_path / "log", channels=1), "head_paper", progress=False)
    item = {"image": str(tmp_path / "x.h5")}
    LoadBagd(preset="head_paper")(item)
    LoadBagd(preset=str(tmp_path / "preset.json"))(item)
    record = find_preset(tmp_path / "preset.json").record() | {"mean": [0.0]}
    (tmp_path / "other.json").write_text(json.dumps(record))
    with pytest.raises(BagError, match="'head_paper' with other windows or statistics"):
        LoadBagd(preset=str(tmp_path / "other.json"))(item)


@pytest.mark.parametrize("formats", [("dicom",), ("nifti",), ("dicom", "nifti")])
def test_slice_labels_reach_the_slices_with_the_lesion(tmp_path, formats):
    table = make_scan_cohort(
        tmp_path, num_scans=4, slices=(8, 12), size=48, slice_mm=8.0, formats=formats, fractions=(1, 0, 0)
    )
    cohort = read_cohort(table)
    embed_scans(cohort, tmp_path / "bags", SliceStatistics(tmp_path / "log"), progress=False)
    load = Compose([LoadBagd(preset="chest_rsna"), SliceLabelsd("image", tmp_path / "slice_labels.csv")])
    positive = 0
    for item in cohort.datalist("train", tmp_path / "bags"):
        labels = load(item)["instance_labels"]
        truth = lesion_truth(tmp_path / "masks" / f"{item['scan_id']}.npz").any(axis=(1, 2))
        assert labels.tolist() == truth.astype(int).tolist()
        positive += int(truth.sum())
    assert positive > 0


@pytest.fixture(scope="module")
def two_series(tmp_path_factory):
    """A folder with the files of two series of 6 slices, and their UIDs."""
    folder = tmp_path_factory.mktemp("two")
    make_scan_cohort(folder, num_scans=2, slices=(6, 6), size=32, slice_mm=15.0, fractions=(1, 0, 0))
    (folder / "both").mkdir()
    for path in (folder / "scans").glob("*/*.dcm"):
        shutil.copy(path, folder / "both" / f"{path.parent.name}_{path.name}")
    return folder / "both", sorted(series.series_uid for series in list_series(folder / "both"))


def test_a_table_says_which_series_of_a_folder_is_meant(two_series, encoder, tmp_path):
    folder, uids = two_series
    table = tmp_path / "cohort.csv"
    rows = [f"first,{folder},{uids[0]}", f"second,{folder},{uids[1]}", f"either,{folder},", f"none,{folder},1.2.3"]
    table.write_text("scan_id,path,series_uid\n" + "\n".join(rows) + "\n")
    report = embed_scans(table, tmp_path / "bags", encoder, progress=False)
    assert [result.status for result in report.results] == ["embedded", "embedded", "failed", "failed"]
    assert all(uid in report.failed[0].error for uid in uids), "what there is to choose from"
    for name, uid in zip(["first", "second"], uids, strict=True):
        with BagFile(tmp_path / "bags" / f"{name}.h5") as bag:
            assert (bag.info.scan.series_uid, bag.n) == (uid, 6)
    embed = EmbedScand(encoder=encoder)
    for item in read_cohort(table, labels=()).datalist()[:2]:
        direct = embed(item)
        assert json.loads(direct["image"].meta["scan_frame"])["series_uid"] == item["series_uid"]
    table.write_text(f"scan_id,path,series_uid\nfirst,{folder},{uids[1]}\n")
    report = embed_scans(table, tmp_path / "bags", encoder, progress=False)
    assert f"series_uid {uids[0]} instead of {uids[1]}" in report.failed[0].error


def test_what_is_usual_in_a_cohort_is_said_once_and_what_is_rare_first(tmp_path, encoder, capfd):
    for index in range(4):
        hu = np.full((16, 20, 3), -1000, np.int16)
        hu[0, : 2 + index] = -3024
        forms = np.diag([0.8, 0.8, 2.5, 1.0])
        image = nibabel.Nifti1Image(hu, None if index == 3 else forms)
        (tmp_path / "scans").mkdir(exist_ok=True)
        nibabel.save(image, tmp_path / "scans" / f"{index}.nii")
    embed_scans(tmp_path / "scans", tmp_path / "bags", encoder)
    shown = capfd.readouterr().err
    rare, usual = shown.index("3: the NIfTI header has no orientation"), shown.index("4 scans, as 0: ")
    assert rare < usual
    assert shown.count("padding") == 1


def test_a_paper_s_preset_says_why_no_training_scan_gives_it_statistics(tmp_path):
    table = tmp_path / "cohort.csv"
    table.write_text("scan_id,path,split\na,gone,train\n")
    with pytest.raises(SettingsError, match=r"none of the 1 training scans can be read.*gone': no such file"):
        embed_scans(table, tmp_path / "bags", SliceStatistics(tmp_path / "log", channels=1), "head_paper")
    assert not (tmp_path / "bags" / "preset.json").exists()


def test_a_folder_that_cannot_be_made_is_named(scans, tmp_path, table):
    (tmp_path / "file").touch()
    report = embed_scans(scans / "b.nii", tmp_path / "file" / "bags", SliceStatistics(tmp_path / "log"), progress=False)
    assert "file/bags/.partial' cannot be written (Not a directory)" in report.failed[0].error
    with pytest.raises(OutputError, match="cannot be written"):
        embed_scans(table, tmp_path / "file" / "bags", SliceStatistics(tmp_path / "log", channels=1), "head_paper")


def test_a_data_list_without_names_names_scans_as_their_folder_does(tmp_path):
    places = ["liver_0.nii.gz", "1.2.840.1", "1.2.840.2/"]
    for place in places[1:]:
        (tmp_path / place).mkdir()
    (tmp_path / "data.json").write_text(json.dumps([{"image": place} for place in places]))
    names = [case.slide_id for case in read_cohort(tmp_path / "data.json", labels=()).slides]
    assert names == ["liver_0", "1.2.840.1", "1.2.840.2"]


def test_a_bag_finds_its_scan_from_any_folder(scans, encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(scans)
    embed_scans("b.nii", tmp_path / "bags", encoder, progress=False)
    with BagFile(tmp_path / "bags" / "b.h5") as bag:
        assert bag.info.slide_path == bag.info.scan.path == str(scans / "b.nii")


def chest(folder, n=24):
    """A volume of ``n`` slices with two lungs, their air in 1 mm voxels; the upper half of the slices is brighter."""
    z, y, x = np.mgrid[:n, :64, :80].astype(float)
    hu = np.where(np.hypot((x - 40) / 38, (y - 32) / 30) < 1, 40.0, -1000.0)
    lungs = np.hypot((np.abs(x - 40) - 17) / 14, (y - 32) / 20) < 1
    hu[lungs] = -850
    hu[lungs & (z >= n / 2)] = -700
    path = folder / "chest.nii.gz"
    nibabel.save(nibabel.Nifti1Image(hu.T.astype(np.int16), np.diag([-4.0, -4.0, 4.0, 1.0])), path)
    return path


def test_what_lies_outside_the_lungs_reaches_no_encoder(tmp_path):
    path, encoder = chest(tmp_path), SliceStatistics(tmp_path / "log", grid=(8, 8))
    embed_scans(path, tmp_path / "bags", encoder, "insight", lungs="threshold", progress=False)
    scan = load_scan(path)
    inside = lung_mask(scan)
    blanked = replace(scan, hu=np.where(inside, scan.hu, -1024).astype(np.int16))
    with BagFile(tmp_path / "bags" / "chest.h5") as bag:
        expected = torch.cat(list(embed_scan(blanked, encoder, slice_preset("insight"))))
        np.testing.assert_array_equal(bag.features(), expected.numpy())
        assert bag.features().max() < 0.4, "no tissue but the lungs', which is darker"
        lungs = bag.info.lungs
        np.testing.assert_array_equal(np.stack([lungs.inside(index) for index in range(24)]), inside)
        assert (lungs.method, bag.info.depth, bag.n) == ("threshold", None, 24)


@pytest.mark.parametrize("depth", [8, 32])
def test_a_scan_resized_in_depth_is_what_monai_s_resize_makes_of_it(tmp_path, depth):
    path, encoder = write_nifti(tmp_path / "a.nii.gz", 19), SliceStatistics(tmp_path / "log", grid=(3, 3))
    embed_scans(path, tmp_path / "bags", encoder, "insight", depth=depth, chunk=5, progress=False)
    scan = load_scan(path)
    resized = Resize((depth, 20, 16), mode="trilinear")(torch.from_numpy(scan.hu[None].astype(np.float32)))[0]
    expected = encoder.encode(prepare_slices(resized.numpy(), slice_preset("insight"), 24)).numpy()
    with BagFile(tmp_path / "bags" / "a.h5") as bag:
        np.testing.assert_allclose(bag.features(), expected, atol=2e-3)
        assert bag.info.depth == Depth(depth)
        assert bag.coords[:, 0].tolist() == list(range(depth))
        assert len(bag.info.scan) == 19, "the frame is the scan's own"
        positions = bag.extra("positions_mm")
        np.testing.assert_allclose(np.diff(positions)[2:-2], 2.5 * 19 / depth, rtol=1e-5)
        assert positions[0] >= scan.frame.positions_mm[0]
        assert positions[-1] <= scan.frame.positions_mm[-1]


@pytest.mark.parametrize(("n", "first", "count"), [(19, 5, 8), (6, 0, 6)])
def test_the_middle_of_a_scan_is_taken_as_it_is(tmp_path, n, first, count):
    path, encoder = write_nifti(tmp_path / "a.nii.gz", n), SliceStatistics(tmp_path / "log")
    embed_scans(path, tmp_path / "all", encoder, progress=False)
    embed_scans(path, tmp_path / "middle", encoder, depth=8, depth_mode="middle", progress=False)
    with BagFile(tmp_path / "all" / "a.h5") as whole, BagFile(tmp_path / "middle" / "a.h5") as bag:
        rows = slice(first, first + count)
        np.testing.assert_array_equal(bag.features(), whole.features(rows))
        np.testing.assert_array_equal(bag.coords, whole.coords[rows])
        np.testing.assert_array_equal(bag.extra("positions_mm"), whole.extra("positions_mm")[rows])


def test_a_bag_of_another_depth_or_of_the_whole_body_is_not_reused(tmp_path):
    path, encoder = chest(tmp_path), SliceStatistics(tmp_path / "log")
    embed_scans(path, tmp_path / "bags", encoder, lungs="threshold", depth=8, progress=False)
    again = embed_scans(path, tmp_path / "bags", encoder, lungs="threshold", depth=8, progress=False)
    assert again.results[0].status == "kept"
    for settings, message in (
        ({"depth": 8}, "lungs threshold instead of None"),
        ({"lungs": "threshold"}, r"depth 8 \(resize\) instead of None"),
        ({"lungs": "threshold", "depth": 8, "depth_mode": "middle"}, r"depth 8 \(resize\) instead of 8 \(middle\)"),
    ):
        report = embed_scans(path, tmp_path / "bags", encoder, **settings, progress=False)
        assert re.search(message, report.failed[0].error)


def test_a_scan_without_lungs_fails_with_a_clear_word_and_the_others_go_on(scans, tmp_path):
    places = [scans / "a.nii.gz", chest(tmp_path)]
    report = embed_scans(places, tmp_path / "bags", SliceStatistics(tmp_path / "log"), lungs="threshold")
    assert [result.status for result in report.results] == ["failed", "embedded"]
    assert "scan 'a': no lungs were found (method 'threshold'); take a scan of the chest" in report.failed[0].error


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lungs": "lobes"}, "lungs 'lobes': is none of threshold, lungmask"),
        ({"lungs": "lungmask"}, "lungs 'lungmask' needs its package: pip install lungmask, or take lungs 'threshold'"),
        ({"depth": 0}, "depth 0: must be at least 1 slice"),
        ({"depth": 4, "depth_mode": "crop"}, "depth mode 'crop': is none of resize, middle"),
    ],
)
def test_settings_that_fit_no_scan_are_refused_before_any_is_read(tmp_path, monkeypatch, settings, message):
    monkeypatch.setitem(sys.modules, "lungmask", None)
    with pytest.raises(SettingsError, match=message):
        embed_scans(tmp_path / "gone.nii", tmp_path / "bags", SliceStatistics(tmp_path / "log"), **settings)

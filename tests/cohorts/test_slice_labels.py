import dataclasses

import numpy as np
import pytest
import torch
from monai.data import decollate_batch

from monai_mil.bags import BagFile, BagInfo, LoadBagd, SampleInstancesd, collate_bags
from monai_mil.cohorts import SliceLabelsd
from monai_mil.errors import CohortError
from monai_mil.scans import ScanFrame
from tests.embedding.scans import frame


@pytest.fixture
def scan(tmp_path):
    """Write the bag of a scan of ``n`` slices and load it."""

    def load(n: int, *, uids: bool = True, name: str = "scan", shared_uid: bool = False) -> dict[str, object]:
        scan_frame = frame(n, uids=uids, scan_id=name)
        if shared_uid:
            scan_frame = dataclasses.replace(scan_frame, sop_uids=("1.2.9",) * n)
        path = tmp_path / f"{name}.h5"
        features = np.random.default_rng(n).standard_normal((n, 4)).astype(np.float16)
        coords = np.stack([np.arange(n), np.zeros(n, int)], axis=1)
        BagFile.write(path, features, coords, BagInfo(name, scan=scan_frame))
        return LoadBagd()({"image": str(path), "scan_id": name})

    return load


@pytest.fixture
def table(tmp_path):
    def write(content: str):
        path = tmp_path / "slices.csv"
        path.write_text(content)
        return path

    return write


def test_labels_by_uid_reach_their_slices(scan, table):
    item = scan(4)
    uids = frame(4).sop_uids
    path = table(f"label,sop_uid\n1,{uids[2]}\n0,{uids[0]}\n,{uids[1]}\n1,9.9.9\n")
    labelled = SliceLabelsd("image", path)(item)
    assert labelled["instance_labels"].tolist() == [0, -1, 1, -1]
    assert labelled["instance_labels"].dtype == torch.int64
    assert "instance_labels" not in item


def test_labels_by_index_reach_their_slices(scan, table):
    path = table("scan_id,slice_index,label\nscan,03,1\nscan,0,0.0\nother,1,1\n")
    assert SliceLabelsd("image", path)(scan(4, uids=False))["instance_labels"].tolist() == [0, -1, -1, 1]


def test_every_scan_of_a_patient_has_its_own_labels(scan, table, tmp_path):
    for n, name in ((3, "first"), (2, "second")):
        scan(n, name=name)
    scans = [{"image": str(tmp_path / f"{name}.h5"), "scan_id": name} for name in ("first", "second")]
    joined = LoadBagd()({"image": scans, "patient_id": "p"})
    path = table("scan_id,slice_index,label\nsecond,1,1\nfirst,0,1\nfirst,2,0\n")
    assert SliceLabelsd("image", path)(joined)["instance_labels"].tolist() == [1, -1, 0, -1, 1]


def test_labels_and_positions_follow_sampled_slices(scan, table):
    path = table("scan_id,slice_index,label\n" + "".join(f"scan,{index},{index % 2}\n" for index in range(9)))
    sampled = SampleInstancesd("image", num_instances=4)(SliceLabelsd("image", path)(scan(9)))
    index = sampled["coords"][:, 0]
    assert len(index) == 4
    assert sampled["instance_labels"].tolist() == (index % 2).tolist()
    np.testing.assert_allclose(sampled["positions_mm"], frame(9).positions_mm[index], rtol=1e-6)


def test_scans_of_different_lengths_make_a_batch(scan, table):
    path = table("scan_id,slice_index,label\na,0,1\nb,1,0\n")
    label = SliceLabelsd("image", path)
    batch = collate_bags([label(scan(3, name="a")), label(scan(2, name="b", uids=False))])
    assert batch["instance_labels"].tolist() == [[1, -1, -1], [-1, 0, -1]]
    assert batch["positions_mm"].dtype == torch.float32
    np.testing.assert_allclose(batch["positions_mm"][0], frame(3).positions_mm, rtol=1e-6)
    assert batch["positions_mm"][1, 2] == 0
    frames = [ScanFrame.from_json(text) for text in batch["image"].meta["scan_frame"]]
    assert [each.scan_id for each in frames] == batch["scan_id"] == ["a", "b"]
    parts = decollate_batch(batch)
    assert ScanFrame.from_json(parts[0]["image"].meta["scan_frame"]).sop_uids == frame(3).sop_uids


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("uid,label\n1,1\n", r"row 1: columns uid, label; give sop_uid and label, or scan_id"),
        ("", r"row 1: columns none"),
        ("sop_uid,label\n1.2,1\n1.2,0\n", r"row 3: slice '1\.2' stands already in row 2"),
        ("scan_id,slice_index,label\na,1,1\na,01,0\n", r"row 3: slice '1' stands already in row 2"),
        ("sop_uid,label\n1.2,yes\n", r"row 2: label 'yes' is none of 0, 1 and empty"),
        ("sop_uid,label\n,1\n", r"row 2: column 'sop_uid' is empty"),
        ("scan_id,slice_index,label\na,-1,1\n", r"row 2: slice_index '-1' is no whole number"),
        ("scan_id,slice_index,label\na,first,1\n", r"row 2: slice_index 'first' is no whole number"),
    ],
)
def test_problems_are_named_by_row(table, content, problem):
    with pytest.raises(CohortError, match=problem):
        SliceLabelsd("image", table(content))


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(CohortError, match=r"none\.csv': no such file"):
        SliceLabelsd("image", tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("content", "options", "problem"),
    [
        ("sop_uid,label\n9.9,1\n", {}, r"no row for any of the 4 slices of scan 'scan'"),
        ("scan_id,slice_index,label\nother,0,1\n", {}, r"no row for any of the 4 slices of scan 'scan'"),
        ("scan_id,slice_index,label\nscan,4,1\n", {}, r"do not fit it, it has no slice \(it has 0 to 3\) '4'"),
        ("scan_id,sop_uid,label\nscan,9.9,1\n", {}, r"do not fit it, it has no SOPInstanceUID '9\.9'"),
        ("sop_uid,label\n1.2,1\n", {"uids": False}, r"have no SOPInstanceUID of their own; give columns scan_id"),
        ("sop_uid,label\n1.2.9,1\n", {"shared_uid": True}, r"have no SOPInstanceUID of their own"),
    ],
)
def test_a_table_that_does_not_fit_a_scan_is_refused(scan, table, content, options, problem):
    with pytest.raises(CohortError, match=problem):
        SliceLabelsd("image", table(content))(scan(4, **options))


def test_a_slide_has_no_slices(tmp_path, table):
    BagFile.write(tmp_path / "slide.h5", np.ones((2, 3), np.float16), np.zeros((2, 2), int), BagInfo("slide"))
    item = LoadBagd()({"image": str(tmp_path / "slide.h5")})
    with pytest.raises(CohortError, match="'slide' is no scan"):
        SliceLabelsd("image", table("sop_uid,label\n1,1\n"))(item)


def test_without_a_table_the_bags_own_labels_are_taken(tmp_path):
    for name, extras, expected in (
        ("labelled", {"instance_labels": np.array([0, 1, 1, 0])}, [0, 1, 1, 0]),
        ("unlabelled", {}, [-1, -1, -1, -1]),
    ):
        path = tmp_path / f"{name}.h5"
        coords = np.stack([np.arange(4), np.zeros(4, int)], axis=1)
        BagFile.write(path, np.ones((4, 3), np.float16), coords, BagInfo(slide_id=name, scan=frame(4)), extras)
        loaded = SliceLabelsd("image")(LoadBagd("image")({"image": str(path)}))
        assert loaded["instance_labels"].tolist() == expected

"""Dice files of an evaluation's scans, written by a real engine."""

from __future__ import annotations

import csv
import json

import nibabel
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from monai_mil.errors import CohortError
from monai_mil.metrics import DiceCounts
from monai_mil.savers import ScanDiceSaver
from monai_mil.scans import LungField
from tests.heatmaps.examples import scan_frame

FRAME = scan_frame(range(0, 24, 4), size=(8, 8))


def case(scan_id, label, scores, **changes):
    meta = {"scan_frame": FRAME.to_json(), "scan_depth": "", "scan_lungs": ""} | changes.pop("meta", {})
    n = len(FRAME)
    return {
        "image": MetaTensor(torch.zeros(2, n), meta=meta),
        "coords": torch.stack([torch.arange(n), torch.zeros(n, dtype=torch.long)], dim=1),
        "scan_id": scan_id,
        "patient_id": scan_id,
        "pred": torch.tensor([0.7]),
        "label": label,
        "scores": torch.as_tensor(scores, dtype=torch.float32)[None],
    } | changes


def evaluate(saver, items):
    engine = Engine(lambda engine, item: [item])
    saver.attach(engine)
    engine.run(items)
    return json.loads((saver.folder / "dice.json").read_text())


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def cells():
    """Four by four cells a slice, of two by two pixels; two are bright in slice 2, one in slice 3."""
    scores = np.zeros((6, 4, 4))
    scores[2, 1, 1:3] = scores[3, 1, 1] = 1.0
    return scores


@pytest.fixture
def truth(tmp_path):
    mask = np.zeros(FRAME.shape, np.uint8)
    mask[2, 2:4, 2:4] = mask[4, 6:8, 6:8] = 1
    folder = tmp_path / "masks"
    folder.mkdir()
    for name in ("a", "b"):
        nibabel.save(nibabel.Nifti1Image(mask.T, FRAME.affine), folder / f"{name}.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.zeros_like(mask.T), FRAME.affine), folder / "empty.nii.gz")
    return folder


def test_the_files_tell_of_voxels_slices_and_extents(tmp_path, truth, cells):
    """With the smooth map a bright cell is above one half on its own four pixels, and nowhere else."""
    items = [case("a", 1, cells), case("n", 0, cells), case("lost", 1, cells), case("empty", 1, cells)]
    saver = ScanDiceSaver(str(tmp_path), str(truth), threshold=0.5, n=20)
    report = evaluate(saver, items)
    expected = DiceCounts(intersection=4, predicted=12, truth=8)
    assert report["scans"]["count"] == report["extents"]["count"] == 1
    assert report["scans"]["mean"]["value"] == pytest.approx(expected.dice)
    assert report["slices"]["count"] == 2
    assert report["slices"]["mean"]["value"] == pytest.approx((2 * 4 / 12 + 0) / 2)
    assert report["extents"]["mean"]["value"] == pytest.approx(2 * 1 / 4)
    assert (report["negative"], report["unlabelled"], sorted(report["failures"])) == (1, 0, ["empty", "lost"])
    (row,) = rows(tmp_path / "dice.csv")
    assert [row[name] for name in ("scan_id", "intersection", "predicted", "truth")] == ["a", "4", "12", "8"]
    assert [row[f"extent_{name}"] for name in ("intersection", "predicted", "truth")] == ["1", "2", "2"]
    slices = rows(tmp_path / "dice_slices.csv")
    assert [(row["slice"], row["sop_uid"], row["truth"]) for row in slices] == [
        ("3", "1.2.3.2", "4"),
        ("5", "1.2.3.4", "4"),
    ]
    with pytest.raises(CohortError, match=r"(?s)2 positive scans have no Dice.*empty, but .*no ground truth in "):
        saver.raise_failures()


def test_a_score_a_slice_predicts_whole_slices(tmp_path, truth):
    report = evaluate(ScanDiceSaver(str(tmp_path), str(truth), n=5), [case("a", 1, [0, 0, 0.9, 0.1, 0.8, 0])])
    assert report["threshold"]["rule"] == "otsu"
    assert report["extents"]["mean"]["value"] == 1
    assert report["scans"]["mean"]["value"] == pytest.approx(2 * 8 / (2 * 64 + 8))


def test_nothing_is_predicted_outside_the_lungs_and_its_truth_counts(tmp_path, truth, cells):
    inside = np.zeros(FRAME.shape, bool)
    inside[2, :, :4] = inside[3, 0, 0] = True
    meta = {"scan_lungs": LungField.pack(inside, "threshold").to_json()}
    evaluate(ScanDiceSaver(str(tmp_path), str(truth), threshold=0.5, n=5), [case("a", 1, cells, meta=meta)])
    (row,) = rows(tmp_path / "dice.csv")
    assert [row[name] for name in ("intersection", "predicted", "truth")] == ["4", "4", "8"]


def test_the_best_share_of_validation_scans_is_kept_and_used_on_others(tmp_path, truth, cells):
    cells[4, 3, 3] = 0.4
    items = [case("a", 1, cells * 0.01), case("b", 1, cells)]
    chosen = evaluate(ScanDiceSaver(str(tmp_path / "val"), str(truth), threshold="best", n=5), items)
    assert chosen["threshold"]["share_of_highest_score"] < 0.4
    path = str(tmp_path / "val" / "dice.json")
    report = evaluate(ScanDiceSaver(str(tmp_path / "test"), str(truth), threshold=path, n=5), items)
    assert report["scans"] == chosen["scans"]
    assert report["threshold"]["rule"] == "share"
    for name in ("dice.csv", "dice_slices.csv"):
        assert rows(tmp_path / "test" / name) == rows(tmp_path / "val" / name)


def test_the_map_of_the_class_asked_for_is_compared(tmp_path, truth, cells):
    maps = torch.as_tensor(np.stack([cells, cells[:, ::-1]]), dtype=torch.float32)
    item = case("a", torch.tensor([1.0, 1.0]), cells, grad_cam=maps, pred=torch.tensor([0.9, 0.9]))
    first, last = (
        evaluate(ScanDiceSaver(str(tmp_path), str(truth), "grad_cam", index, threshold=0.5, n=5), [item])
        for index in (0, None)
    )
    assert first["scans"]["mean"]["value"] > last["scans"]["mean"]["value"] == 0

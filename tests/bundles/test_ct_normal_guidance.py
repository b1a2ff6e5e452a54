"""What only the bundle ct_normal_guidance does: its methods and penalties, slice scores, raw series in."""

import csv
import json
import re
import shutil

import nibabel
import numpy as np
import pytest

from monai_mil.scans import load_scan
from monai_mil.synthetic import ShiftedMean, make_shifted_mean_cohort
from tests.bundles.common import aurocs, losses, rows, run_bundle, train, weights
from tests.processes import run_together

NAME = "ct_normal_guidance"


def report(folder, name="slice_metrics"):
    return json.loads((folder / "eval" / f"{name}.json").read_text())


@pytest.mark.parametrize(
    ("method", "guidance", "parameter"),
    [
        ("transmil", 1.0, "token"),
        ("smooth_abmil", 1.0, "smooth.raw_alpha"),
        ("smooth_transmil", 1.0, "smooth2.raw_alpha"),
        ("mean_pooling", 0.0, "classifier.weight"),
        ("max_pooling", 0.0, "classifier.weight"),
        ("prediction_abmil", 1.0, "score.weight"),
        ("prediction_max_pooling", 0.0, "classifier.weight"),
    ],
)
def test_one_key_chooses_the_method(method, guidance, parameter, cohort, tmp_path):
    options = {"network_def": f"%methods::{method}", "guidance_lambda": guidance}
    log = train(NAME, tmp_path, cohort, epochs=2, **options).stdout
    assert aurocs(log)[-1] > 0.7
    assert parameter in weights(tmp_path)


def test_pooling_without_attention_says_that_it_cannot_be_guided(cohort, tmp_path):
    done = train(NAME, tmp_path, cohort, epochs=1, network_def="%methods::mean_pooling", check=False)
    assert done.returncode != 0
    assert "Normal Guidance needs a network with attention" in done.stderr
    assert "guidance_lambda" in done.stderr


def test_the_papers_batch_and_selection_take_fewer_scans_than_a_batch(cohort, tmp_path):
    done = train(NAME, tmp_path, cohort, epochs=2, strict_paper_selection=True, batch_size=64)
    assert len(losses(done.stdout)) == 2, "48 scans are a step an epoch"
    assert weights(tmp_path)
    trained, validated = aurocs(done.stdout, "train"), aurocs(done.stdout)
    if not any(one > other for one, other in zip(trained, validated, strict=True)):
        assert "kept the best validation" in done.stdout + done.stderr


def test_evaluation_reports_slices_beside_the_centre_baselines(evaluated, cohort):
    slices = report(evaluated)
    positive = [row for row in rows(cohort / "cohort.csv") if row["split"] == "test" and row["label"] == "positive"]
    assert slices["scans"] == len(positive)
    assert slices["auroc"]["low"] <= slices["auroc"]["value"] <= slices["auroc"]["high"]
    assert 0 < slices["centre_rank"]["auroc"] < 1
    assert 0 < slices["centre_gaussian"]["attention_mass"] < 1


def test_slice_labels_may_come_from_a_table(trained, cohort, tmp_path):
    """Every slice of every test scan called negative: there is nothing to localise, and the report says so."""
    shutil.copytree(trained[0] / "models", tmp_path / "models")
    with (tmp_path / "slices.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["scan_id", "slice_index", "label"])
        for row in rows(cohort / "cohort.csv"):
            table.writerow([row["scan_id"], 0, 0])
    train(
        NAME, tmp_path, cohort, epochs=3, files=("train", "evaluate"), slice_labels=tmp_path / "slices.csv", split="val"
    )
    slices = report(tmp_path)
    assert (slices["scans"], slices["negative"]) == (0, 24)
    assert slices["auroc"]["value"] is None


def test_slice_supervision_is_the_ceiling(cohort, tmp_path):
    files = ("train", "slice_supervised")
    log = train(NAME, tmp_path, cohort, epochs=3, files=files, kernel=8, strict_paper_selection=True).stdout
    assert "train_slice_auroc" in log
    assert float(re.findall(r"val_slice_auroc: ([\d.]+)", log)[-1]) > 0.9
    train(NAME, tmp_path, cohort, epochs=3, files=(*files, "evaluate"), kernel=8)
    assert report(tmp_path)["auroc"]["value"] > 0.9


def test_two_processes_train_on_less_than_a_batch_each(cohort, tmp_path):
    files = ("train", "multi_gpu_train")
    done = train(NAME, tmp_path, cohort, epochs=1, files=files, run=run_together, batch_size=30)
    assert len(losses(done.stdout)) == 1, "24 of the 48 scans each"


def test_guidance_finds_the_slices_better_at_no_cost_for_the_scan(tmp_path):
    """The smallest form of the paper's claim: one seed of the docs' experiment, ABMIL, fewer epochs and scans."""
    cohort = tmp_path / "cohort"
    recipe = ShiftedMean(window=12, width=64, delta=1.0)
    make_shifted_mean_cohort(cohort, recipe, scans=(300, 50, 150), seeds=(1001, 1002, 1003))
    options = {"in_channels": 64, "batch_size": 32, "optimizer::lr": 0.01, "l1_alpha": 0.001, "seed": 1001}
    found = {}
    for weight in (0.0, 1.0):
        folder = tmp_path / str(weight)
        folder.mkdir()
        for files in (("train",), ("train", "evaluate")):
            train(NAME, folder, cohort, epochs=8, files=files, guidance_lambda=weight, cache_rate=1.0, **options)
        found[weight] = report(folder)["auroc"]["value"], report(folder, "metrics")["auroc"]["value"]
    assert found[1.0][0] > found[0.0][0] + 0.05
    assert found[1.0][1] > found[0.0][1] - 0.02


def infer_scans(place, out, **options):
    files = ["inference", "inference_scans"]
    return run_bundle(NAME, files, cwd=out, dataset_dir=place, output_dir=out / "eval", **options)


def test_real_series_go_from_dicom_to_slice_scores(chest_series, head_series, abdomen_series, tmp_path):
    folder = tmp_path / "scans"
    for name, series in (("chest", chest_series), ("head", head_series), ("abdomen", abdomen_series)):
        shutil.copytree(series, folder / name)
    done = infer_scans(folder, tmp_path, slice_formats="['curve','montage','nifti']")
    assert "scan 'head': the slices step at 18.5 degrees to their normal (gantry tilt)" in done.stdout + done.stderr
    assert "3 cases found: 3 done, 0 left out" in done.stdout + done.stderr
    predictions = {row["scan_id"]: row for row in rows(tmp_path / "eval" / "predictions.csv")}
    located = {row["scan_id"]: row for row in rows(tmp_path / "eval" / "scans.csv")}
    assert predictions.keys() == located.keys() == {"chest", "head", "abdomen"}
    for name in predictions:
        scan = load_scan(folder / name)
        assert predictions[name]["remarks"] == "; ".join(scan.remarks)
        slices = rows(tmp_path / "eval" / "slices" / f"{name}.csv")
        assert [row["sop_uid"] for row in slices] == list(scan.frame.sop_uids)
        attention, positions = (np.array([float(row[key]) for row in slices]) for key in ("attention", "position_mm"))
        assert attention.sum() == pytest.approx(1, abs=1e-3)
        assert np.allclose(positions, scan.frame.positions_mm, atol=1e-2)
        center = float(located[name]["attention_center_mm"])
        width = float(located[name]["attention_width_mm"])
        assert center == pytest.approx(attention @ positions, abs=0.2)
        assert width == pytest.approx(np.sqrt(attention @ (positions - attention @ positions) ** 2), abs=0.2)
        for kind in ("curve", "montage"):
            assert (tmp_path / "eval" / "heatmaps" / f"{name}_{kind}.png").stat().st_size > 10_000
    volume = nibabel.load(tmp_path / "eval" / "heatmaps" / "chest.nii.gz")
    scan = load_scan(folder / "chest")
    assert volume.shape == scan.hu.T.shape
    assert np.allclose(volume.affine, scan.affine, atol=1e-3)


def test_bad_series_are_named_and_the_others_are_done(head_series, tmp_path):
    folder = tmp_path / "scans"
    for name in ("whole", "gap", "truncated"):
        shutil.copytree(head_series, folder / name)
    files = sorted(path for path in (folder / "truncated").rglob("*") if path.is_file())
    files[3].write_bytes(files[3].read_bytes()[:2000])
    scan = load_scan(head_series)
    missing = set(scan.frame.sop_uids[5:7])
    import pydicom

    for path in (path for path in (folder / "gap").rglob("*") if path.is_file()):
        if pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID in missing:
            path.unlink()
    done = infer_scans(folder, tmp_path, check=False)
    assert done.returncode != 0
    assert "2 of 3 cases failed" in done.stderr
    summary = done.stderr[done.stderr.rindex("cases failed") :]
    assert re.search(r"gap.*missing", summary)
    assert files[3].name in summary
    assert [row["scan_id"] for row in rows(tmp_path / "eval" / "predictions.csv")] == ["whole"]
    failed = {row["scan_id"]: row["status"] for row in rows(tmp_path / "eval" / "failed.csv")}
    assert failed == {"gap": "unreadable", "truncated": "unreadable"}
    told = done.stdout + done.stderr
    assert str(scan.patient_id or "no id") not in told

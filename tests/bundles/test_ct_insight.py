"""What only the bundle ct_insight does: raw series to maps on the scan's own grid, within the lungs."""

import json
import shutil

import nibabel
import numpy as np
import pydicom

from monai_mil.embedding import embed_scans
from monai_mil.encoders import get_encoder
from monai_mil.scans import load_scan
from monai_mil.synthetic import lesion_truth, make_scan_cohort
from tests.bundles.common import BUNDLES, rows, run_bundle

NAME = "ct_insight"


def test_evaluation_reports_the_slices_and_their_baselines(evaluated):
    slices = json.loads((evaluated / "eval" / "slice_metrics.json").read_text())
    assert slices["scans"] > 0
    assert slices["auroc"]["value"] > 0.5


def test_a_real_series_ends_in_a_map_on_its_own_grid(chest_series, head_series, tmp_path):
    """The head has no lungs: it gets a status in place of a prediction, and the run says so at its end."""
    folder = tmp_path / "scans"
    for name, series in (("chest", chest_series), ("head", head_series)):
        shutil.copytree(series, folder / name)
    out = tmp_path / "out"
    formats = "['curve','montage','nifti','mask','seg','pm','sr']"
    options = {"slice_formats": formats, "dataset_dir": folder, "output_dir": out}
    done = run_bundle(NAME, ["inference", "inference_scans"], cwd=tmp_path, check=False, **options)
    assert done.returncode != 0
    assert "1 of 2 cases failed" in done.stderr
    assert "2 cases found: 1 done, 1 left out" in done.stderr
    assert {row["scan_id"]: row["status"] for row in rows(out / "failed.csv")} == {"head": "no lungs"}
    assert [row["scan_id"] for row in rows(out / "predictions.csv")] == ["chest"]

    scan = load_scan(folder / "chest")
    volume = nibabel.load(out / "heatmaps" / "chest.nii.gz")
    assert volume.shape == scan.hu.T.shape
    np.testing.assert_allclose(volume.affine, scan.affine, atol=1e-3)
    values = np.asarray(volume.dataobj)
    assert 0 <= values.min() < values.max() <= 1
    outside = scan.hu.T[:, :, :] > 300
    assert (values[outside] > 0).mean() < 0.05, "bone is not lung"
    assert nibabel.load(out / "heatmaps" / "chest_mask.nii.gz").shape == volume.shape
    assert len(rows(out / "slices" / "chest.csv")) == len(scan)
    for kind in ("curve", "montage"):
        assert (out / "heatmaps" / f"chest_{kind}.png").stat().st_size > 10_000

    card = json.loads((BUNDLES / NAME / "models" / "model.json").read_text())
    made = pydicom.dcmread(out / "heatmaps" / "chest_pm.dcm")
    assert (made.ManufacturerModelName, made.DeviceSerialNumber) == ("INSIGHT for CT", card["weights"])
    slices = dict(zip(scan.frame.sop_uids, values.T, strict=True))
    frames = np.frombuffer(made.FloatPixelData, "<f4").reshape(-1, made.Rows, made.Columns)
    for item, frame in zip(made.PerFrameFunctionalGroupsSequence, frames, strict=True):
        uid = item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        np.testing.assert_array_equal(frame, slices.pop(uid))
    assert not slices
    (row,) = rows(out / "predictions.csv")
    assert (out / "heatmaps" / "chest_seg.dcm").exists() is (row["pred"] == "positive")
    word = {"positive": "Positive", "negative": "Negative"}[row["pred"]]
    assert word in str(pydicom.dcmread(out / "heatmaps" / "chest_sr.dcm"))


def test_grad_cam_of_slices_is_compared_with_masks_voxel_by_voxel(tmp_path):
    """The same command without ``grad_cam`` measures the network's own map."""
    scans = tmp_path / "scans"
    table = make_scan_cohort(scans, num_scans=2, seed=3, slices=(10, 12), size=128, fractions=(0, 0, 1), lesions=5)
    encoder = get_encoder("ct_texture_518", spatial=True)
    embed_scans(table, scans / "bags", encoder, preset="insight", lungs="threshold", depth=32, progress=False)
    places = {"dataset_dir": scans, "ckpt_dir": BUNDLES / NAME / "models", "output_dir": tmp_path}
    run_bundle(NAME, ["train", "evaluate", "localise", "grad_cam"], cwd=tmp_path, **places)
    report = json.loads((tmp_path / "dice.json").read_text())
    assert (report["scans"]["count"], report["negative"], report["failures"]) == (1, 1, {})
    (row,) = rows(tmp_path / "dice.csv")
    truth = lesion_truth(scans / "masks" / f"{row['scan_id']}.npz")
    assert int(row["truth"]) == truth.sum()
    assert [int(each["slice"]) for each in rows(tmp_path / "dice_slices.csv")] == [
        index + 1 for index in np.flatnonzero(truth.any(axis=(1, 2)))
    ]
    assert 0 < report["scans"]["mean"]["value"] < 1

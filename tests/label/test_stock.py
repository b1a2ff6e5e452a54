"""MONAI Label's own application ``monaibundle`` with copied bundles, nothing edited by hand; see also test_dicomweb."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from monai_mil.runs import copy_for_monailabel, find_bundle
from monai_mil.synthetic import make_scan_cohort
from tests.label.served import Served

monailabel = pytest.importorskip("monailabel", reason="MONAI Label is absent: run scripts/setup.sh label")
pytestmark = pytest.mark.timeout(600)

MODELS = ("ct_normal_guidance", "ct_insight")


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stock")
    app = folder / "monaibundle"
    shutil.copytree(Path(sys.prefix) / "monailabel" / "sample-apps" / "monaibundle", app)
    for name in MODELS:
        copy_for_monailabel(find_bundle(name), app / "model")
    make_scan_cohort(folder, num_scans=8, slices=(8, 9), size=64, slice_mm=20.0, formats=("nifti",), seed=1)
    for path in sorted((folder / "scans").glob("*.nii.gz"))[:3]:
        shutil.copy(path, folder / path.name)
    shutil.rmtree(folder / "scans")
    studies = folder / "studies"
    studies.mkdir()
    for path in folder.glob("*.nii.gz"):
        path.rename(studies / path.name)
    server = Served(app, studies, stock=(("models", ",".join(MODELS)), ("zoo_source", "local")))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def client(stock, tmp_path):
    from monailabel.client import MONAILabelClient

    return MONAILabelClient(f"http://127.0.0.1:{stock.port}", tmpdir=str(tmp_path), client_id="cleo")


@pytest.mark.parametrize("model", MODELS)
def test_a_scan_s_answer_is_a_mask_on_its_own_grid(stock, client, model):
    source = nibabel.load(stock.studies / "scan_001.nii.gz")
    mask, told = client.infer(model, "scan_001", {"result_extension": ".nii.gz"})
    answered = nibabel.load(mask)
    assert answered.shape == source.shape
    np.testing.assert_allclose(answered.affine, source.affine, atol=1e-4)
    assert set(told["probabilities"]) == {"negative", "positive"}
    assert told["label_names"] == {"medium": 1, "high": 2}


def test_it_trains_on_masks_and_serves_what_it_learned(stock, client, tmp_path):
    model = MODELS[0]
    before = client.infer(model, "scan_000", {"result_extension": ".nii.gz"})[1]["probabilities"]
    weights = stock.weights(model).read_bytes()
    for name, marked in (("scan_001", 40), ("scan_002", 0)):  # the second says that nothing is there
        source = nibabel.load(stock.studies / f"{name}.nii.gz")
        voxels = np.zeros(source.shape, np.uint8)
        voxels[10:marked, 10:40, 2:6] = 1
        path = tmp_path / f"{name}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(voxels, source.affine), path)
        client.save_label(name, str(path), params={"label_info": [{"name": "medium", "idx": 1}]})
    client.train_start(model, {"max_epochs": 3, "val_split": 0.0, "multi_gpu": False})
    task = stock.ended("/train/")
    assert task["status"] == "DONE", "\n".join(task["details"])
    assert stock.weights(model).read_bytes() != weights
    assert client.infer(model, "scan_000", {"result_extension": ".nii.gz"})[1]["probabilities"] != before

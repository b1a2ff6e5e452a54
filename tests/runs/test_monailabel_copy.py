"""Copies for MONAI Label's own applications, used as those use them: one file each for inference and training."""

import json
import shutil
from dataclasses import replace

import monai.bundle
import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import decollate_batch

from monai_mil.errors import SettingsError
from monai_mil.model_card import read_model
from monai_mil.runs import copy_for_monailabel, find_bundle
from monai_mil.synthetic import make_scan_cohort

NAMES = ("ct_insight", "ct_normal_guidance")


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Four small scans of NIfTI."""
    folder = tmp_path_factory.mktemp("monailabel")
    make_scan_cohort(folder, num_scans=8, slices=(8, 9), size=64, slice_mm=20.0, formats=("nifti",), seed=1)
    return sorted((folder / "scans").glob("*.nii.gz"))[:4]


@pytest.fixture(scope="module", params=NAMES)
def copy(request, tmp_path_factory):
    return copy_for_monailabel(find_bundle(request.param), tmp_path_factory.mktemp("model"))


def content(copy, name):
    return json.loads((copy / "configs" / f"{name}.json").read_text())


def answer(copy, scan):
    """As ``BundleInferTask`` of MONAI Label 0.8.5 gets it."""
    config = ConfigParser()
    config.read_config(copy / "configs" / "inference.json")
    config.config.update({"bundle_root": str(copy), "device": "cpu"})
    network = config.get_parsed_content("network_def")
    network.load_state_dict(torch.load(copy / "models" / "model.pt", weights_only=True), strict=False)
    network.eval()
    data = {"image": str(scan), "device": "cpu", "model": copy.name, "label_tag": "original"}
    for transform in config.get_parsed_content("preprocessing").transforms:
        data = transform(data)
    with torch.no_grad():
        outputs = config.get_parsed_content("inferer")(data["image"][None], network)
    data["pred"] = decollate_batch(outputs)[0]
    for transform in config.get_parsed_content("postprocessing").transforms:
        data = transform(data)
    return data


def test_a_client_is_told_of_a_scan_and_its_heat(copy):
    metadata = content(copy, "metadata")
    form = metadata["network_data_format"]
    assert next(iter(form["inputs"])) == "image"
    assert len(form["inputs"]["image"]["spatial_shape"]) == 3
    assert form["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "medium", "2": "high"}
    assert metadata["description"].isascii()
    assert not set("\"'<&") & set(metadata["description"])
    assert not any(word in copy.name for word in ("classification", "detection", "deepedit", "deepgrow"))
    kept = {path.stem for path in (copy / "configs").glob("*.json")}
    assert kept == {"inference", "train", "multi_gpu_train", "metadata"}


def test_the_answer_is_a_label_map_on_the_scan_s_grid(copy, scans):
    data = answer(copy, scans[0])
    source = nibabel.load(scans[0])
    assert tuple(data["pred"].shape[1:]) == source.shape
    assert np.allclose(data["image"].meta["original_affine"], source.affine)
    assert tuple(data["image"].meta["spatial_shape"]) == source.shape
    assert data["pred"].dtype == torch.uint8
    result = json.loads(json.dumps(data["result"]))
    assert sum(result["probabilities"].values()) == pytest.approx(1)
    assert "synthetic" in result["note"]
    assert (data["pred"].max() > 0) == (result["threshold"] is not None) == (result["prediction"] == "positive")


def test_the_shipped_operating_points_go_with_the_weights(tmp_path):
    bundle = find_bundle("ct_insight")
    copy = copy_for_monailabel(bundle, tmp_path)
    card = read_model(copy / "models" / "model.pt")
    assert list(card.operating_points) == bundle.metadata["operating_points"]
    assert card.operating_point_rule == bundle.metadata["operating_point_rule"]
    assert card.note == read_model(bundle.weights).note


@pytest.mark.parametrize(("point", "prediction"), [(0.0, "positive"), (1.0, "negative"), (None, None)])
def test_operating_points_are_those_of_the_weights_that_are_there(tmp_path, scans, point, prediction):
    copy = copy_for_monailabel(find_bundle("ct_normal_guidance"), tmp_path)
    card = read_model(copy / "models" / "model.pt")
    replace(card, operating_points=None if point is None else (point,)).write()
    data = answer(copy, scans[1])
    usual = "positive" if data["result"]["probabilities"]["positive"] >= 0.5 else "negative"
    assert data["result"]["prediction"] == (prediction or usual)
    assert bool(data["pred"].any()) == (data["result"]["prediction"] == "positive"), "a negative scan must not glow"


@pytest.mark.parametrize("validated", [True, False])
def test_training_takes_masks_and_replaces_the_model(tmp_path, scans, validated):
    copy = copy_for_monailabel(find_bundle("ct_normal_guidance"), tmp_path)
    before = read_model(copy / "models" / "model.pt")
    data = []
    for index, scan in enumerate(scans):
        image = nibabel.load(scan)
        mask = np.zeros(image.shape, np.uint8)
        mask[20:24, 20:24, 3] = index % 2
        nibabel.save(nibabel.Nifti1Image(mask, image.affine), tmp_path / scan.name)
        data.append({"image": str(scan), "label": str(tmp_path / scan.name)})
    loader = {"_target_": "CheckpointLoader", "load_path": str(copy / "models" / "model.pt"), "strict": False}
    handlers = [loader | {"load_dict": {"model": "$@network"}}, *content(copy, "train")["train"]["handlers"]]
    monai.bundle.run(
        run_id="run",
        init_id=None,
        final_id=None,
        meta_file=str(copy / "configs" / "metadata.json"),
        config_file=str(copy / "configs" / "train.json"),
        logging_file=False,
        **{
            "bundle_root": str(copy),
            "train#trainer#max_epochs": 2,
            "train#dataset#data": data[:2] if validated else data,
            "train#handlers": handlers,
            "validate#dataset#data": data[2:] if validated else [],
            "device": "cpu",
        },
    )
    after = read_model(copy / "models" / "model.pt")
    assert after.weights not in (None, before.weights)
    assert after.fine_tuned_from == before.weights
    assert after.note is None, "it has seen other scans now"
    assert answer(copy, scans[0])["result"]["probabilities"]


def test_a_bundle_of_slides_has_no_place_there(tmp_path):
    with pytest.raises(SettingsError, match=r"'pathology_insight' reads slides"):
        copy_for_monailabel(find_bundle("pathology_insight"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_copy_predicts_by_monai_bundle_too(copy, scans, tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    shutil.copy(scans[0], folder)
    config = ConfigParser()
    config.read_config(copy / "configs" / "inference.json")
    config.config.update({"bundle_root": str(copy), "dataset_dir": str(folder), "output_dir": str(tmp_path / "out")})
    for expression in config.get_parsed_content("run"):
        assert expression is None
    assert "scan_000" in (tmp_path / "out" / "predictions.csv").read_text()

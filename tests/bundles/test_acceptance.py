"""What the model zoo, MONAI's verbs, Label and Deploy ask of every bundle; a new bundle enters by itself."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from monai.bundle import (
    ConfigWorkflow,
    load,
    onnx_export,
    verify_metadata,
    verify_net_in_out,
)

from tests.bundles.common import BUNDLES, NAMES, affordable, bag_shape, config, export_arguments, metadata, network
from tests.conftest import ROOT, shared

pytestmark = pytest.mark.parametrize("name", NAMES)

SCHEMA_MD5 = "76e1add273836515d0bbb3bc71962474"


def bag(name, instances, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(bag_shape(name, instances), generator=generator)


def tracked_files(name):
    listed = subprocess.run(
        ["git", "ls-files", f"bundles/{name}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [ROOT / line for line in listed.stdout.splitlines()]


def test_the_files_the_zoo_asks_for_are_there(name):
    present = {str(path.relative_to(BUNDLES / name)) for path in (BUNDLES / name).rglob("*") if path.is_file()}
    wanted = ["metadata", "train", "evaluate", "inference", "multi_gpu_train"]
    assert {f"configs/{file}.json" for file in wanted} <= present
    assert {"LICENSE", "docs/README.md", "models/model.pt", "configs/logging.conf"} <= present


def test_the_name_does_not_mislead_monai_label(name):
    assert "classification" not in name
    assert "detection" not in name
    assert not (BUNDLES / name / "scripts").exists(), "two bundles' `scripts` clash in one process"


def test_configs_are_formatted_as_the_zoo_does_it(name):
    for path in (BUNDLES / name).rglob("*.json"):
        text = path.read_text()
        assert text == json.dumps(json.loads(text), indent=4) + "\n", f"{path} is not formatted with indent=4"


def test_no_large_file_and_no_personal_path_is_shipped(name):
    for path in tracked_files(name):
        assert path.stat().st_size < 1 << 20, f"{path} is larger than 1 MiB"
        if path.suffix in (".json", ".md", ".conf"):
            found = re.search(r"/(home|Users|root|tmp|workspace)/", path.read_text())
            assert found is None, f"{path} names {found}"


def test_metadata_follows_the_schema(name, tmp_path):
    schema = tmp_path / "schema.json"
    shutil.copy(shared("data/monai/meta_schema_20240725.json"), schema)
    verify_metadata(meta_file=config(name, "metadata")[0], filepath=schema, hash_val=SCHEMA_MD5, hash_type="md5")


def test_metadata_says_what_the_zoo_checks(name):
    meta = metadata(name)
    assert meta["version"] in meta["changelog"]
    assert next(iter(meta["network_data_format"]["inputs"])) == "image"
    assert next(iter(meta["network_data_format"]["outputs"])) == "pred"
    assert meta["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert meta["name"]
    assert meta["description"].isascii()
    assert not set('"<&') & set(meta["description"])


@pytest.mark.parametrize("instances", [1, 2, 5000])
def test_the_network_takes_a_bag_of_any_size(name, instances):
    meta, inference = config(name, "metadata")[0], config(name, "inference")[0]
    many = affordable(name, instances)
    verify_net_in_out(net_id="network_def", meta_file=meta, config_file=inference, device="cpu", any=many, n=many)


def test_torchscript_answers_as_the_network_does(name, torchscript_of):
    exported, eager = torch.jit.load(torchscript_of(name)), network(name)
    for instances in (1, 7, affordable(name, 1000)):
        image = bag(name, instances)
        torch.testing.assert_close(exported(image), eager(image), atol=1e-5, rtol=0)


def test_onnx_answers_as_the_network_does_for_any_bag_size(name, tmp_path):
    import onnxruntime

    model_onnx = tmp_path / "model.onnx"
    onnx_export(
        **export_arguments(name, model_onnx),
        use_trace=True,
        input_shape=bag_shape(name, 16),
        converter_kwargs={
            "input_names": ["image"],
            "output_names": ["pred"],
            "dynamic_axes": {"image": {2: "n"}},
            "dynamo": False,
        },
    )
    session, eager = onnxruntime.InferenceSession(model_onnx), network(name)
    for instances in (1, 7, affordable(name, 1000)):
        image = bag(name, instances)
        (pred,) = session.run(None, {"image": image.numpy()})
        torch.testing.assert_close(torch.from_numpy(pred), eager(image).detach(), atol=1e-5, rtol=1e-4)


def test_load_gives_the_shipped_weights(name):
    loaded = load(name, bundle_dir=str(BUNDLES), workflow_type="inference")
    shipped = torch.load(BUNDLES / name / "models" / "model.pt", weights_only=True)
    assert loaded.state_dict().keys() == shipped.keys()
    for key, value in loaded.state_dict().items():
        assert torch.equal(value.cpu(), shipped[key]), key


@pytest.mark.parametrize(
    ("files", "workflow_type"), [(["train"], "train"), (["train", "evaluate"], "train"), (["inference"], "infer")]
)
def test_the_properties_monai_looks_up_stand_where_it_looks(name, files, workflow_type, cohort_of, tmp_path):
    workflow = ConfigWorkflow(
        config_file=config(name, *files),
        meta_file=config(name, "metadata")[0],
        logging_file=str(BUNDLES / name / "configs" / "logging.conf"),
        workflow_type=workflow_type,
        bundle_root=str(BUNDLES / name),
        dataset_dir=str(cohort_of(name)),
        ckpt_dir=str(tmp_path),
        output_dir=str(tmp_path),
    )
    workflow.initialize()
    assert not workflow.check_properties()


def words_of_deploy(definition, pred):
    """``result`` of the Deploy SDK's MonaiBundleInferenceOperator: the class of every value, as it reads it."""
    return [definition[str(int(value))] for value in pred]


def words_of_label(definition, pred):
    """Labels and scores that MONAI Label's clients are shown: a label an output, but for the background."""
    labels = {index: text.lower() for index, text in definition.items() if text.lower() != "background"}
    return [(labels[str(index)], value) for index, value in enumerate(pred)]


@pytest.mark.parametrize("positive", [0.06, 0.94])
def test_neither_deploy_nor_label_is_led_to_name_a_class(name, positive):
    classes = json.loads((BUNDLES / name / "models" / "model.json").read_text())["settings"]["class_names"]
    for part in ("outputs", "post_processed_outputs"):
        form = metadata(name)["network_data_format"][part]["pred"]
        pred = [positive] if form["num_channels"] == 1 else [1 - positive, positive]
        for words in (
            words_of_deploy(form["channel_def"], pred),
            [text for text, _ in words_of_label(form["channel_def"], pred)],
        ):
            assert not set(words) & set(classes)
            assert all(word.startswith("score of ") for word in words)
        assert words_of_label(form["channel_def"], pred)[-1] == (f"score of {classes[-1]}", positive)


def test_handlers_of_a_training_are_written_out(name):
    """MONAI's zoo tests and MONAI Label look into each for its ``_target_``, and fail on a reference."""
    written = json.loads(Path(*config(name, "train")).read_text())["train"]["handlers"]
    assert written
    assert all(isinstance(handler, dict) and "_target_" in handler for handler in written)


def test_load_gives_the_shipped_network_of_a_training_without_a_cohort(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = load(name, bundle_dir=str(BUNDLES), workflow_type="train")
    shipped = torch.load(BUNDLES / name / "models" / "model.pt", weights_only=True)
    assert loaded.state_dict().keys() == shipped.keys()
    for key, value in loaded.state_dict().items():
        assert torch.equal(value.cpu(), shipped[key]), key
    assert not list(tmp_path.iterdir())

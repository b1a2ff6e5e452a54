"""What a user's own model says of itself in its exports."""

import json

import pytest
import torch
from ignite.engine import Engine

from monai_mil.networks import ABMIL
from monai_mil.training import BestModel, own_metadata
from tests.bundles.common import BUNDLES, NAMES, metadata

SHIPPED_ALONE = {"eval_metrics", "operating_points", "operating_points_model", "operating_point_rule"}


def settings(name):
    return json.loads((BUNDLES / name / "models" / "model.json").read_text())["settings"]


@pytest.mark.parametrize("name", NAMES)
def test_of_the_shipped_model_it_says_what_the_static_metadata_say(name):
    static, own = metadata(name), own_metadata(metadata(name), settings(name))
    assert own["network_data_format"] == static["network_data_format"]
    assert static["label_classes"].endswith(own["label_classes"])
    assert own["model_settings"] == settings(name)
    assert not SHIPPED_ALONE & set(own)


@pytest.mark.parametrize("name", NAMES)
def test_of_another_model_it_says_its_width_and_classes(name):
    other = settings(name) | {"class_names": ["low", "high"], "in_channels": 999}
    other |= {"grid": [7, 9]} if "grid" in other else {"levels": 2} if "levels" in other else {}
    form = own_metadata(metadata(name), other)["network_data_format"]
    assert form["inputs"]["image"]["num_channels"] == 999
    single = len(form["outputs"]["pred"]["channel_def"]) == 1
    expected = {"0": "score of high"} if single else {"0": "score of low", "1": "score of high"}
    assert form["outputs"]["pred"]["channel_def"] == form["post_processed_outputs"]["pred"]["channel_def"] == expected
    text = json.dumps(form)
    assert not {"tumor", "normal", "positive", "negative"} & set(text.replace('"', " ").split())
    assert form["inputs"]["image"]["spatial_shape"] == (
        ["*", 7, 9] if "grid" in other else ["5*n"] if "levels" in other else ["*"]
    )


def test_labels_that_do_not_exclude_each_other_have_an_output_each():
    other = settings("pathology_insight") | {"class_names": ["a", "b", "c"], "multi_label": True}
    form = own_metadata(metadata("pathology_insight"), other)["network_data_format"]
    for output in (form["outputs"]["pred"], form["post_processed_outputs"]["heatmap"]):
        assert output["num_channels"] == 3
    assert form["outputs"]["pred"]["channel_def"] == {"0": "score of a", "1": "score of b", "2": "score of c"}
    assert form["outputs"]["pred"]["activation"] == "sigmoid"


def test_it_is_written_beside_the_weights(tmp_path):
    own = settings("mil_baselines") | {"class_names": ["x", "y"], "in_channels": 8}
    static = BUNDLES / "mil_baselines" / "configs" / "metadata.json"
    best = BestModel(ABMIL(8, 2), tmp_path / "model.pt", settings=own, metadata_file=static)
    evaluator = Engine(lambda engine, batch: None)
    evaluator.state.metrics, evaluator.state.key_metric_name = {"auroc": 0.5}, "auroc"
    best(evaluator)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metadata.json", "model.json", "model.pt"]
    written = json.loads((tmp_path / "metadata.json").read_text())
    assert written["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "score of x", "1": "score of y"}
    assert torch.load(tmp_path / "model.pt", weights_only=True)

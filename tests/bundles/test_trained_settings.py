"""Settings that contradict a model are an error that shows both, in whatever a bundle does with a model."""

import json
import shutil

import pytest
from monai.bundle import ConfigWorkflow

from monai_mil.errors import SettingsError
from tests.bundles.common import BUNDLES, NAMES, config

OTHER = {
    "label_columns": ["outcome"],
    "bag_of": "patient",
    "multi_label": True,
    "method": "max_pooling",
    "encoder": "another",
    "encoder_digest": "0" * 16,
    "grid": [7, 7],
    "preset": "another",
    "hidden_dim": 32,
    "tokens": 4,
    "levels": 2,
    "hidden_dims": [8, 8, 8],
    "instance_channels": 16,
    "attention_dim": 40,
}
USES = [
    (name, use)
    for name in NAMES
    for use in ("inference", "evaluate", "calibrate", "resume")
    if use == "resume" or (BUNDLES / name / "configs" / f"{use}.json").exists()
]


def trained_settings(name):
    return json.loads((BUNDLES / name / "models" / "model.json").read_text())["settings"]


def contradictions(name):
    """Another value for every setting of the shipped model."""
    own = trained_settings(name)
    other = {"class_names": own["class_names"][::-1], "in_channels": own["in_channels"] + 2}
    return other | {key: value for key, value in OTHER.items() if key in own}


def refusal(name, files, options):
    """What the workflow says instead of beginning."""
    kind = "inference" if files == ["inference"] else "train"
    meta = str(BUNDLES / name / "configs" / "metadata.json")
    workflow = ConfigWorkflow(config(name, *files), meta, logging_file=False, workflow_type=kind, **options)
    with pytest.raises(RuntimeError) as raised:
        workflow.initialize()
    error = raised.value
    while error is not None and not isinstance(error, SettingsError):
        error = error.__cause__
    assert error is not None, raised.value
    return str(error)


@pytest.mark.parametrize(("name", "use"), USES)
def test_every_setting_that_contradicts_the_model_is_refused(name, use, cohort_of, tmp_path):
    own, folder = trained_settings(name), tmp_path / "models"
    shutil.copytree(BUNDLES / name / "models", folder)
    files = [use] if use == "inference" else ["train"] if use == "resume" else ["train", use]
    options = {"bundle_root": BUNDLES / name, "dataset_dir": cohort_of(name), "output_dir": tmp_path / "out"}
    options |= {"ckpt_path": folder / "model.pt"} if use == "inference" else {"ckpt_dir": folder}
    texts = {key: str(value) for key, value in options.items()} | ({"resume": True} if use == "resume" else {})
    assert set(own) - {"network"} == set(contradictions(name)), "every setting has another value here"
    for key, value in contradictions(name).items():
        said = refusal(name, files, {**texts, key: value})
        assert f"{key} {own[key]!r}, and this run says {value!r}" in said
        assert str(folder / "model.pt") in said
    card = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(card | {"settings": own | {"fold": 1}}))
    assert "fold 1, and this run says 2" in refusal(name, files, {**texts, "fold": 2})
    assert not (tmp_path / "out").exists()
    assert (folder / "model.pt").read_bytes() == (BUNDLES / name / "models" / "model.pt").read_bytes()

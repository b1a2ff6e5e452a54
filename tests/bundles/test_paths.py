"""Folders may be called ``2024`` and ``[run,1]``, which ``monai.bundle`` reads as a number and a list."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.bundles.common import EXAMPLES, NAMES, rows, run_bundle, workflow

USES = (["train"], ["train", "evaluate"], ["inference"])
SAVER = {"train": "best_model", "evaluate": "report_saver", "inference": "prediction_saver"}
FILE = {"train": "[models,1]/model.pt", "evaluate": "1e3/metrics.json", "inference": "1e3/predictions.csv"}


@pytest.fixture
def folder(name, trained, cohort, tmp_path, monkeypatch):
    """The working folder: a cohort in ``2024``, a trained model in ``[models,1]``."""
    (tmp_path / "2024").symlink_to(cohort)
    shutil.copytree(trained[0] / "models", tmp_path / "[models,1]")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("files", USES, ids="+".join)
@pytest.mark.parametrize("name", NAMES)
def test_the_paths_of_every_config_are_as_they_were_typed(name, files, folder, monkeypatch):
    use, example = files[-1], EXAMPLES[name]
    typed = {"dataset_dir": "2024", "output_dir": "1e3", "overwrite": "True"}
    typed |= {"ckpt_path": "[models,1]/model.pt"} if use == "inference" else {"ckpt_dir": "[models,1]"}
    options = {**example.inputs, **typed} if use == "inference" else {**example.inputs, **example.overrides, **typed}
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    monkeypatch.setattr(sys, "argv", ["/python/monai/bundle/__main__.py", "run", *words])
    made = workflow(name, files, **options)
    data = made.parser.get_parsed_content("dataset" if use == "inference" else "validate::dataset").data
    assert {Path(item["image"]).parent for item in data} == {Path("2024") / example.bag_folder}
    assert made.parser.get_parsed_content(SAVER[use]).path == Path(FILE[use])


@pytest.mark.parametrize("name", ["mil_baselines"])
def test_a_command_writes_into_a_folder_of_such_a_name(name, folder):
    options = {**EXAMPLES[name].inputs, "dataset_dir": "2024", "ckpt_path": "[models,1]/model.pt"}
    run_bundle(name, ["inference"], cwd=folder, output_dir="[run,1]", **options)
    assert rows(folder / "[run,1]" / "predictions.csv")

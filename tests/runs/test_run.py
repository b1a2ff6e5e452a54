"""A run and the command that it stands for."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
from fire.parser import DefaultParseValue

from monai_mil.errors import OutputError, SettingsError
from monai_mil.runs import (
    BundleRun,
    calibrate_run,
    evaluate_run,
    find_bundle,
    parsed_settings,
    predict_run,
    train_run,
)
from tests.bundles.common import NAMES


def told(run: BundleRun) -> dict:
    """What monai.bundle's command line understands of a run's line."""
    words = shlex.split(run.line)
    assert words[:4] == ["python", "-m", "monai.bundle", "run"]
    return {name[2:]: DefaultParseValue(value) for name, value in zip(words[4::2], words[5::2], strict=True)}


@pytest.mark.parametrize("value", [True, None, 3, 0.5, "plain", "2024", "1e5", "[a,1]", "None", [14, 14], ["a", "b c"],
                                   {"a": 1}, "it's", 'say "x"', "$torch.device('cpu')", "a\\b", "-1", ""])  # fmt: skip
def test_a_value_arrives_as_it_was_given(value):
    run = BundleRun(find_bundle("mil_baselines"), ("inference",), {"encoder": value})
    assert told(run)["encoder"] == value


def test_settings_are_typed_as_monai_bundle_reads_them():
    assert parsed_settings(["a=1", "b=x=y", "c::d=[1,2]", "--e=True", "f="]) == {
        "a": 1, "b": "x=y", "c::d": [1, 2], "e": True, "f": "",
    }  # fmt: skip
    for wrong in ("a", "=1"):
        with pytest.raises(SettingsError, match="KEY=VALUE"):
            parsed_settings([wrong])


def test_a_setting_that_no_config_has_is_an_error():
    with pytest.raises(SettingsError, match="no setting 'treshold' in inference"):
        BundleRun(find_bundle("pathology_insight"), ("inference",), {"treshold": 0.5}).workflow()
    with pytest.raises(SettingsError, match=r"no configs/survival\.json"):
        BundleRun(find_bundle("pathology_insight"), ("train", "survival"))


@pytest.mark.parametrize("name", NAMES)
def test_every_bundle_predicts_from_files_and_from_bags(name, tmp_path):
    bundle = find_bundle(name)
    (tmp_path / "raw").mkdir()
    (tmp_path / "bags").mkdir()
    (tmp_path / "bags" / "S-1.h5").touch()
    raw = predict_run(bundle, [tmp_path / "raw"], tmp_path / "out")
    assert raw.configs[0] == "inference"
    assert raw.configs[-1] == f"inference_{bundle.reads}"
    assert told(raw)["output_dir"] == str(tmp_path / "out")
    ready = predict_run(bundle, [tmp_path / "bags"], tmp_path / "out")
    assert ready.configs == raw.configs[:-1]
    assert ready.settings["bag_dir"] == str(tmp_path / "bags")
    for run in (raw, ready, predict_run(bundle, [tmp_path / "bags"], tmp_path / "out", heatmaps=[])):
        run.workflow()  # every key is one of the bundle's


def test_an_unknown_format_is_told_with_those_there_are(tmp_path):
    with pytest.raises(SettingsError, match="no heatmap format 'nifti' of slides: choose from png, geojson"):
        predict_run(find_bundle("pathology_asmil"), [tmp_path], tmp_path / "out", heatmaps=["nifti"])
    with pytest.raises(SettingsError, match="no heatmap format 'png' of scans: choose from curve"):
        predict_run(find_bundle("ct_insight"), [tmp_path], tmp_path / "out", heatmaps=["png"])


def test_weights_are_a_file_or_a_training_s_folder(tmp_path):
    bundle = find_bundle("pathology_asmil")
    models = tmp_path / "run" / "models"
    models.mkdir(parents=True)
    for file in ("model.pt", "model.json"):
        (models / file).write_bytes((bundle.root / "models" / file).read_bytes())
    for model in (tmp_path / "run", models, models / "model.pt"):
        assert predict_run(bundle, [tmp_path], tmp_path, model=model).settings["ckpt_path"] == str(models / "model.pt")
    with pytest.raises(SettingsError, match="no file of weights"):
        predict_run(bundle, [tmp_path], tmp_path, model=tmp_path / "other")


@pytest.fixture
def cohort(tmp_path):
    table = tmp_path / "cohort.csv"
    table.write_text("slide_id,label,split\nS-1,low,train\nS-2,high,val\n")
    return table


def test_a_training_writes_into_its_own_folder_and_takes_the_cohort_s_classes(cohort, tmp_path):
    run = train_run(find_bundle("pathology_asmil"), cohort, tmp_path / "run")
    assert told(run) == {
        "config_file": run.files[0],
        "bundle_root": str(run.bundle.root),
        "dataset_dir": str(tmp_path),
        "cohort_file": str(cohort),
        "ckpt_dir": str(tmp_path / "run" / "models"),
        "output_dir": str(tmp_path / "run"),
        "class_names": ["high", "low"],
    }
    named = train_run(find_bundle("pathology_asmil"), cohort, tmp_path, settings={"class_names": ["low", "high"]})
    assert named.settings["class_names"] == ["low", "high"]
    assert train_run(find_bundle("pathology_asmil"), cohort, tmp_path, resume=True).settings["resume"] is True


def test_what_follows_a_training_takes_its_model_and_its_kind(cohort, tmp_path):
    bundle = find_bundle("mil_baselines")
    with pytest.raises(SettingsError, match=r"no model.pt in .*train first"):
        evaluate_run(bundle, cohort, tmp_path / "run")
    models = tmp_path / "run" / "models"
    models.mkdir(parents=True)
    (models / "model.pt").write_bytes(bundle.weights.read_bytes())
    card = bundle.weights.with_suffix(".json").read_text()
    (models / "model.json").write_text(card)
    run = evaluate_run(bundle, cohort, tmp_path / "run")
    assert run.configs == ("train", "evaluate")
    assert run.settings["ckpt_dir"] == str(models)
    other = evaluate_run(bundle, cohort, tmp_path / "other", model=tmp_path / "run")
    assert other.settings["ckpt_dir"] == str(models)
    assert other.settings["output_dir"] == str(tmp_path / "other")
    (models / "model.json").write_text(card.replace('"settings": {', '"settings": {"time_edges": [0.0, 1.0, 2.0],'))
    survival = evaluate_run(bundle, cohort, tmp_path / "run")
    assert survival.configs == ("train", "survival", "evaluate", "evaluate_survival")
    assert predict_run(bundle, [Path(tmp_path)], tmp_path, model=models).configs[-2:] == (
        "inference_survival",
        "inference_slides",
    )
    (models / "model.json").write_text(card)
    insight = find_bundle("pathology_insight")
    assert calibrate_run(insight, cohort, tmp_path, model=models).configs == ("train", "calibrate")


@pytest.mark.parametrize("error", [OutputError("disk full"), ZeroDivisionError("a bug")])
def test_a_training_that_the_user_s_error_ends_logs_no_traceback(cohort, tmp_path, monkeypatch, caplog, capsys, error):
    from ignite.engine import Engine
    from monai.handlers import StatsHandler

    def step(engine: Engine, batch: int) -> None:
        logging.getLogger("monai_mil.training").error("our own words")
        raise error

    def work() -> None:
        trainer = Engine(step)
        StatsHandler(name=f"{tmp_path}", output_transform=lambda output: None).attach(trainer)
        trainer.run([0])

    workflow = SimpleNamespace(initialize=lambda: None, run=work, finalize=lambda: None)
    monkeypatch.setattr(BundleRun, "workflow", lambda self: workflow)
    with pytest.raises(type(error), match=str(error)), caplog.at_level(logging.INFO):
        train_run(find_bundle("mil_baselines"), cohort, tmp_path / "run").start()
    told = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
    is_bug = isinstance(error, ZeroDivisionError)
    assert told[0] == "our own words"
    assert any("terminating due to exception" in line for line in told) == is_bug
    assert ("Traceback" in capsys.readouterr().out) == is_bug


@pytest.mark.parametrize(("name", "key"), [("pathology_insight", "heatmap_formats"), ("ct_insight", "slice_formats")])
def test_no_heatmaps_of_a_bundle_that_always_maps_are_no_formats(name: str, key: str, tmp_path: Path) -> None:
    (tmp_path / "bags").mkdir()
    (tmp_path / "bags" / "one.h5").touch()
    run = predict_run(find_bundle(name), [tmp_path / "bags"], tmp_path / "out", heatmaps=[])
    assert run.settings[key] == []  # None is no list of formats, and ended the run

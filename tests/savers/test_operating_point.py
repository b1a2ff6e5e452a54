"""Operating points from a validation run, written into a bundle's metadata and read by a report."""

import json

import pytest
import torch
from ignite.engine import Engine

from monai_mil.errors import CohortError, OutputError
from monai_mil.savers import OperatingPointSaver, ReportSaver


@pytest.fixture
def metadata(tmp_path):
    path = tmp_path / "metadata.json"
    path.write_text(json.dumps({"version": "0.1.0", "name": "a bundle"}, indent=4) + "\n")
    return path


def validate(preds, labels, *handlers):
    def step(engine, batch):
        engine.state.batch = [{"patient_id": str(index)} for index in batch]
        return [{"pred": torch.tensor(preds[i]), "label": torch.tensor(labels[i])} for i in batch]

    engine = Engine(step)
    for handler in handlers:
        handler.attach(engine)
    engine.run([[index] for index in range(len(preds))])


def test_one_output_gives_one_point_and_the_rest_of_the_file_stays(metadata):
    validate([[0.01], [0.04], [0.02], [0.08]], [0, 1, 0, 1], OperatingPointSaver(metadata, ["normal", "tumor"]))
    text = metadata.read_text()
    found = json.loads(text)
    assert found.pop("operating_points") == [pytest.approx(0.03)]
    assert found == {"version": "0.1.0", "name": "a bundle", "operating_point_rule": "youden"}
    assert text == json.dumps(json.loads(text), indent=4) + "\n"
    assert [path.name for path in metadata.parent.iterdir()] == ["metadata.json"]


def test_every_label_gets_its_point(metadata):
    preds = [[0.1, 0.9], [0.6, 0.2], [0.2, 0.8], [0.7, 0.1]]
    labels = [[0.0, 1.0], [1.0, 0.0], [0.0, float("nan")], [1.0, 0.0]]
    validate(preds, labels, OperatingPointSaver(metadata, ["a", "b"], rule=0.9))
    found = json.loads(metadata.read_text())
    assert found["operating_points"] == pytest.approx([0.4, 0.55])
    assert found["operating_point_rule"] == 0.9


def test_a_report_takes_the_point_of_the_one_output(metadata, tmp_path):
    preds, labels = [[0.01], [0.04], [0.02], [0.08]], [0, 1, 0, 1]
    validate(preds, labels, OperatingPointSaver(metadata, ["normal", "tumor"]))
    points = json.loads(metadata.read_text())["operating_points"]
    validate(preds, labels, ReportSaver(tmp_path, ["normal", "tumor"], n=10, operating_points=points))
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert report["balanced_accuracy"]["value"] == 1
    assert report["classes"]["tumor"]["sensitivity"]["value"] == 1


def test_a_split_of_one_class_is_refused_and_nothing_is_written(metadata):
    before = metadata.read_text()
    with pytest.raises(CohortError, match="cases of every class"):
        validate([[0.1], [0.2]], [1, 1], OperatingPointSaver(metadata, ["normal", "tumor"]))
    assert metadata.read_text() == before


def test_the_label_without_cases_of_both_kinds_is_named(metadata):
    preds, labels = [[0.1, 0.9], [0.6, 0.2]], [[0.0, float("nan")], [1.0, 0.0]]
    with pytest.raises(CohortError, match=r"\(her2, er\): output 2 of 2: .* positive and negative cases"):
        validate(preds, labels, OperatingPointSaver(metadata, ["her2", "er"]))


def test_a_validation_whose_cases_all_failed_is_refused(metadata):
    engine = Engine(lambda engine, batch: batch)
    OperatingPointSaver(metadata, ["normal", "tumor"]).attach(engine)
    with pytest.raises(CohortError, match="no case was validated"):
        engine.run(iter([]))


def test_metadata_that_cannot_be_read_is_named(tmp_path):
    saver = OperatingPointSaver(tmp_path / "absent.json", ["normal", "tumor"])
    with pytest.raises(OutputError, match=r"absent\.json' cannot be read"):
        validate([[0.1], [0.2]], [0, 1], saver)

"""Results of patients: what their slides say together, the label they share, and who removes the table."""

import csv
import json

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data.meta_tensor import MetaTensor

from monai_mil.errors import CohortError, SettingsError
from monai_mil.metrics import classification_report
from monai_mil.reports import write_report
from monai_mil.savers import PredictionSaver, ReportSaver, RiskSaver, SurvivalSaver

CLASSES = ["normal", "tumor"]
SLIDES = [  # slide, patient, probabilities, label
    ("s3", "p2", [0.8, 0.2], 0),
    ("s1", "p1", [0.9, 0.1], 1),
    ("s2", "p1", [0.3, 0.7], 1),
    ("s4", "p2", [0.45, 0.55], -1),
    ("s5", "p3", [0.9999999875, 0.0000000125], 0),
]


def run(slides, *savers, **fixed):
    def step(engine, batch):
        engine.state.batch = [{"slide_id": name, "patient_id": patient, **fixed} for name, patient, *_ in batch]
        rows = [{"pred": torch.tensor(prob, dtype=torch.float64), "label": label} for _, _, prob, label in batch]
        return [{key: value for key, value in row.items() if value is not None} for row in rows]

    engine = Engine(step)
    torch.manual_seed(0)
    engine.network = torch.nn.Linear(1, 1)
    for saver in savers:
        saver.attach(engine)
    engine.run([slides[:2], slides[2:]])


def table(folder, name="patients.csv"):
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_patient_s_slides_are_put_together(tmp_path):
    run(SLIDES, PredictionSaver(str(tmp_path), CLASSES, patient_level="mean"))
    first, second, third = table(tmp_path)
    model = table(tmp_path, "predictions.csv")[0]["model"]
    assert first == {
        "patient_id": "p1",
        "slides": "2",
        "slide_ids": "s1;s2",
        "label": "tumor",
        "pred": "normal",
        "prob_normal": "0.6",
        "prob_tumor": "0.4",
        "remarks": "",
        "model": model,
    }
    assert (second["label"], second["prob_tumor"]) == ("normal", "0.375"), "the label that is known of one slide"
    assert (third["prob_normal"], third["prob_tumor"]) == ("0.9999999875", "1.25e-08")
    run(SLIDES, PredictionSaver(str(tmp_path), CLASSES, operating_points=[0.65], patient_level="max"))
    assert [(row["prob_normal"], row["prob_tumor"], row["pred"]) for row in table(tmp_path)[:2]] == [
        ("0.3", "0.7", "tumor"),
        ("0.45", "0.55", "normal"),
    ], "decided by the operating point"


@pytest.mark.parametrize(
    ("multi_label", "expected"), [(False, ["0.352941", "0.352941", "0.294118"]), (True, ["0.6", "0.6", "0.5"])]
)
def test_the_highest_of_three(tmp_path, multi_label, expected):
    slides = [("a", "p", [0.6, 0.2, 0.2], None), ("b", "p", [0.0, 0.6, 0.4], None), ("c", "p", [0.4, 0.1, 0.5], None)]
    run(slides, PredictionSaver(str(tmp_path), ["x", "y", "z"], multi_label, patient_level="max"))
    assert [table(tmp_path)[0][f"prob_{name}"] for name in "xyz"] == expected


@pytest.mark.parametrize("level", ["mean", "max"])
def test_the_metrics_count_patients_too(tmp_path, level):
    slides = [*SLIDES[:3], ("s4", "p2", [0.45, 0.55], 0), *SLIDES[4:]]
    run(slides, ReportSaver(tmp_path, CLASSES, n=20, patient_level=level))
    report = json.loads((tmp_path / "metrics.json").read_text())
    tumor = np.array([0.4, 0.375, 1.25e-8] if level == "mean" else [0.7, 0.55, 1.25e-8])
    patients = classification_report(np.stack([1 - tumor, tumor], 1), [1, 0, 0], CLASSES, ["p1", "p2", "p3"], n=20)
    assert report["patient_level"] == level
    assert (report["cases"], report["patient_cases"]) == (5, 3)
    assert {name for name in report if name.startswith("patient_")} == {f"patient_{n}" for n in [*patients, "level"]}
    assert report["patient_auroc"] == patients["auroc"]
    assert report["patient_accuracy"] == patients["accuracy"]


def test_slides_that_contradict_each_other_are_named_with_their_patient(tmp_path):
    slides = [*SLIDES[:3], ("s4", "p2", [0.45, 0.55], 1)]
    message = r"patient 'p2': its slides have different labels \(s3 normal, s4 tumor\)"
    (tmp_path / "patients.csv").write_text("of an earlier run")
    with pytest.raises(CohortError, match=message):
        run(slides, PredictionSaver(str(tmp_path), CLASSES, patient_level="max"))
    assert len(table(tmp_path, "predictions.csv")) == 4
    assert not (tmp_path / "patients.csv").exists()
    with pytest.raises(CohortError, match=message):
        run(slides, ReportSaver(tmp_path, CLASSES, n=2, patient_level="mean"))
    labels = [torch.tensor(values) for values in ([1.0, float("nan")], [float("nan"), 0.0])]
    run(
        [("a", "p", [0.6, 0.2], labels[0]), ("b", "p", [0.2, 0.6], labels[1])],
        PredictionSaver(str(tmp_path), CLASSES, multi_label=True, patient_level="mean"),
    )
    assert [table(tmp_path)[0][f"label_{name}"] for name in CLASSES] == ["1", "0"]


def test_a_patient_s_slides_may_lie_in_several_processes(tmp_path, monkeypatch):
    whole, first, second = (PredictionSaver(str(tmp_path / name), CLASSES, patient_level="mean") for name in "abc")
    run(SLIDES, whole)
    (tmp_path / "c").mkdir()
    run([*SLIDES[1:3], SLIDES[0]], first)
    others = list(first.patients._kept.items())
    monkeypatch.setattr("monai_mil.savers.base.gather_cases", lambda own: own + (others if own else []))
    run(SLIDES[3:], second.patients)
    assert (tmp_path / "c" / "patients.csv").read_text() == (tmp_path / "a" / "patients.csv").read_text()


def test_a_run_without_patients_removes_their_table(tmp_path):
    for saver in (PredictionSaver(str(tmp_path), CLASSES), RiskSaver(str(tmp_path), edges=(0.0, 1.0, 2.0))):
        (tmp_path / "patients.csv").write_text("of an earlier run")
        with pytest.raises(KeyError):
            run(SLIDES, saver, Stop())
        assert not (tmp_path / "patients.csv").exists()
    with pytest.raises(SettingsError, match="patient_level 'any': give mean or max"):
        PredictionSaver(str(tmp_path), CLASSES, patient_level="any")


class Stop:
    def attach(self, engine):
        from ignite.engine import Events

        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine):
        raise KeyError


def test_the_report_shows_the_patients_of_its_model(tmp_path):
    run(SLIDES, PredictionSaver(str(tmp_path), CLASSES, patient_level="mean"))
    page = write_report(tmp_path / "predictions.csv", tmp_path, tmp_path / "r.html", resamples=2).read_text()
    assert "<h2>Patients</h2>" in page
    assert "s1, s2" in page
    for row in (old := table(tmp_path)):
        row["model"] = "f" * 32
    with (tmp_path / "patients.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(old[0]))
        writer.writeheader()
        writer.writerows(old)
    page = write_report(tmp_path / "predictions.csv", tmp_path, tmp_path / "r.html", resamples=2).read_text()
    assert "<h2>Patients</h2>" not in page
    assert "patients.csv is of another model than the predictions and left out" in page


@pytest.mark.parametrize(("level", "risk", "survival"), [("mean", "-0.5", "0.5"), ("max", "-0.3", "0.3")])
def test_risks_of_patients(tmp_path, level, risk, survival):
    slides = [("a", "p", -0.3, 0.3), ("b", "p", -0.7, 0.7), ("c", "q", -0.1, 0.1)]

    def step(engine, batch):
        engine.state.batch = [
            {"slide_id": name, "patient_id": patient, "label": torch.tensor([12.0, 1.0])} for name, patient, *_ in batch
        ]
        return [{"risk": value, "survival": torch.tensor([curve, 0.0])} for *_, value, curve in batch]

    engine = Engine(step)
    RiskSaver(str(tmp_path), (0.0, 12.0, 24.0), patient_level=level).attach(engine)
    SurvivalSaver(tmp_path, n=0, patient_level=level).attach(engine)
    engine.run([slides])
    expected = {"patient_id": "p", "slides": "2", "slide_ids": "a;b", "time": "12", "event": "1"}
    assert table(tmp_path)[0] == expected | {"risk": risk, "survival_12": survival}
    assert table(tmp_path, "survival.csv")[0]["risk"] == risk


def test_remarks_are_no_formula_in_any_table(tmp_path):
    slides = [("-7", "p1", [0.9, 0.1], 0), ("s2", "p2", [0.3, 0.7], 1), ("s3", "p2", [0.4, 0.6], 1)]
    image = MetaTensor(torch.zeros(0, 1), meta={"remarks": "=HYPERLINK(1)"})
    run(slides, PredictionSaver(str(tmp_path), CLASSES, patient_level="mean"), image=image)
    remarks = {row["slide_id"]: row["remarks"] for row in table(tmp_path, "predictions.csv")}
    assert remarks == dict.fromkeys(("-7", "s2", "s3"), "'=HYPERLINK(1)")
    assert [row["remarks"] for row in table(tmp_path)] == [
        "'-7: =HYPERLINK(1)",
        "s2: =HYPERLINK(1); s3: =HYPERLINK(1)",
    ]

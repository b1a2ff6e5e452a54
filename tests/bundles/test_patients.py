"""Patients with several slides or scans: one bag of all of them, results of patients, and folds, in every bundle."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from monai.bundle import ConfigWorkflow

from monai_mil.errors import MonaiMILError
from monai_mil.heatmaps import load_heatmap
from tests.bundles.common import BUNDLES, EXAMPLES, NAMES, config, rows

SCANS_APART = ("ct_normal_guidance",)
"""Bundles whose network takes the slices of one scan in their order."""
NARROW = {
    "ct_insight": {"network_def::reduced": 8, "network_def::widths": [8, 8, 8]},
    "pathology_insight": {"network_def::reduced": 8, "network_def::widths": [8, 8, 8]},
    "pathology_hagmil": {"hidden_dims": [16, 16, 16, 16], "instance_channels": 16, "attention_dim": 8},
}
"""Networks that cost little."""


def options(name, cohort, table, folder):
    """Keys of a run on the bags of a cohort with another table."""
    given = EXAMPLES[name].options(cohort, folder) | {"cohort_file": table, "bundle_root": BUNDLES / name}
    given |= {"class_names": list(EXAMPLES[name].classes), **NARROW.get(name, {})}
    return {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}


def run(name, files, given):
    kind = "train" if files[0] == "train" else "inference"
    meta = str(BUNDLES / name / "configs" / "metadata.json")
    workflow = ConfigWorkflow(config(name, *files), meta, logging_file=False, workflow_type=kind, **given)
    workflow.initialize()
    workflow.run()


def refusal(name, files, given):
    """What the run says instead of beginning."""
    with pytest.raises((RuntimeError, MonaiMILError)) as raised:
        run(name, files, given)
    error = raised.value
    while error is not None and not isinstance(error, MonaiMILError):
        error = error.__cause__
    assert error is not None, raised.value
    return str(error)


def write(path, entries):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(entries[0]))
        writer.writeheader()
        writer.writerows(entries)
    return path


def patients_of(name, cohort, folder):
    """A table of three folds, each of a patient of every class with two slides; and the slides by patient.

    Networks that cost much, and are chosen by their loss, do with one class.
    """
    case, classes = EXAMPLES[name].case_id, EXAMPLES[name].classes[name in NARROW :]
    given = rows(cohort / "cohort.csv")
    slides = [[row[case] for row in given if row["label"] == label][:6] for label in classes]
    entries = [
        {case: slide, "patient_id": f"{label}/{index // 2}", "fold": index // 2, "label": label}
        for label, names in zip(classes, slides, strict=True)
        for index, slide in enumerate(names)
    ]
    whose = {}
    for entry in entries:
        whose.setdefault(entry["patient_id"], []).append(entry[case])
    return write(folder / "cohort.csv", entries), whose


@pytest.mark.parametrize("name", NAMES)
def test_patients(name, cohort_of, tmp_path):
    cohort, case = cohort_of(name), EXAMPLES[name].case_id
    table, whose = patients_of(name, cohort, tmp_path)
    given = options(name, cohort, table, tmp_path) | {"fold": 0, "train::trainer::max_epochs": 1}
    joined = given | {"bag_of": "patient"}
    if name in SCANS_APART:
        said = refusal(name, ["train"], joined)
        assert "takes the slices of one scan in their order" in said
        assert ", ".join(whose["negative/2"]) in said
        assert not (tmp_path / "models").exists()
        joined = given
    run(name, ["train"], joined)
    tested = {patient: slides for patient, slides in whose.items() if patient.endswith("/0")}
    places = {key: joined[key] for key in ("ckpt_dir", "output_dir", "dataset_dir", "cohort_file", "bundle_root")}
    places |= {**EXAMPLES[name].bags, **NARROW.get(name, {})}
    settings = json.loads((tmp_path / "models" / "model.json").read_text())["settings"]
    assert (settings["fold"], settings["bag_of"]) == (0, joined.get("bag_of", "scan"))

    run(name, ["train", "evaluate"], places | {"patient_level": "mean"})
    report = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    predicted, patients = (rows(tmp_path / "eval" / f"{table}.csv") for table in ("predictions", "patients"))
    assert {row["patient_id"]: row[f"{case}s"].split(";") for row in patients} == tested
    assert (report["cases"], report["patient_cases"]) == (len(predicted), len(tested))
    label = EXAMPLES[name].classes[1]
    if name in SCANS_APART:
        assert {row[case] for row in predicted} == {slide for slides in tested.values() for slide in slides}
        for row in patients:
            own = [float(each[f"prob_{label}"]) for each in predicted if each["patient_id"] == row["patient_id"]]
            assert float(row[f"prob_{label}"]) == pytest.approx(np.mean(own), abs=1e-5)
        return
    assert predicted == patients
    said = refusal(name, ["train", "evaluate"], places | {"bag_of": case.removesuffix("_id")})
    assert f"bag_of 'patient', and this run says '{case.removesuffix('_id')}'" in said

    places |= {"ckpt_path": str(tmp_path / "models" / "model.pt"), "output_dir": str(tmp_path / "maps")}
    heatmap = [file for file in ("inference_heatmap",) if (BUNDLES / name / "configs" / f"{file}.json").exists()]
    drawn = {"heatmap_formats": []} if case == "slide_id" else {}
    run(name, ["inference", *heatmap], places | {"split": "test"} | drawn)
    assert [row["pred"] for row in rows(tmp_path / "maps" / "predictions.csv")] == [row["pred"] for row in predicted]
    for slide in (slide for slides in tested.values() for slide in slides):
        heatmap = load_heatmap(tmp_path / "maps" / "heatmaps" / f"{slide}.h5")
        if case == "slide_id":
            assert heatmap.frame.slide_id == slide
            assert len(heatmap) == len(np.unique(heatmap.coords, axis=0)), "no tile of another slide"
        else:
            assert heatmap.frame.scan_id == slide
    del places["cohort_file"]
    assert "give a table with --cohort_file" in refusal(name, ["inference"], places)

"""The metrics file of an evaluation, written by a real engine."""

import json
import math

import numpy as np
import torch
from ignite.engine import Engine

from monai_mil.metrics import auroc, classification_report
from monai_mil.savers import ReportSaver


def evaluate(preds, labels, patients, saver):
    def step(engine, batch):
        engine.state.batch = [{"patient_id": patients[index]} for index in batch]
        return [{"pred": torch.tensor(preds[index]), "label": labels[index]} for index in batch]

    engine = Engine(step)
    saver.attach(engine)
    engine.run([[0, 1], [2, 3], [4]])
    return json.loads(saver.path.read_text())


def test_the_file_holds_the_report_of_all_cases_with_patients_kept_together(tmp_path):
    preds = [[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.2, 0.8], [0.6, 0.4]]
    labels, patients = [0, 1, 0, 1, 1], ["a", "a", "b", "c", "d"]
    report = evaluate(preds, labels, patients, ReportSaver(tmp_path, ["normal", "tumor"], n=200))
    assert report == classification_report(np.float32(preds), labels, ["normal", "tumor"], patients, n=200)
    assert report["auroc"]["value"] == auroc(preds, labels)


def test_what_is_not_defined_is_null(tmp_path):
    preds = [[0.9, 0.1]] * 5
    report = evaluate(preds, [0] * 5, list("abcde"), ReportSaver(tmp_path, ["normal", "tumor"], n=20))
    assert report["auroc"]["value"] is None


def test_unknown_labels_of_a_multi_label_cohort_are_left_out(tmp_path):
    preds = [[0.9, 0.1], [0.1, 0.6], [0.7, 0.3], [0.2, 0.8], [0.6, 0.4]]
    labels = [torch.tensor(row) for row in ([1.0, math.nan], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [math.nan, 0.0])]
    report = evaluate(preds, labels, list("abcde"), ReportSaver(tmp_path, ["first", "second"], n=20))
    assert report["classes"]["first"]["auroc"]["value"] == 1


def test_one_single_probability_is_that_of_the_second_class(tmp_path):
    preds = [[0.1], [0.6], [0.3], [0.8], [0.4]]
    labels, patients = [torch.tensor([value]) for value in (0, 1, 0, 1, 1)], list("abcde")
    report = evaluate(preds, labels, patients, ReportSaver(tmp_path, ["normal", "lesion"], n=50))
    both = np.float32([[1 - value, value] for (value,) in preds])
    assert report["auroc"]["value"] == auroc(both, [0, 1, 0, 1, 1])
    assert report["balanced_accuracy"]["value"] == 0.5 * (1 + 2 / 3)


def test_a_label_that_is_always_1_or_unknown_is_named_beside_the_mean_it_is_missing_from(tmp_path, caplog):
    preds = [[0.9, 0.1, 0.5], [0.1, 0.6, 0.5], [0.7, 0.3, 0.5], [0.2, 0.8, 0.5], [0.6, 0.4, 0.5]]
    labels = [torch.tensor([float(first), 1.0, math.nan]) for first in (1, 0, 1, 0, 0)]
    saver = ReportSaver(tmp_path, ["mass", "edema", "nodule"], n=20)
    with caplog.at_level("INFO"):
        report = evaluate(preds, labels, list("abcde"), saver)
    both = {"edema": "always 1", "nodule": "unknown"}
    assert report["auroc"]["missing"] == report["auprc"]["missing"] == report["balanced_accuracy"]["missing"] == both
    assert report["macro_f1"]["missing"] == {"nodule": "unknown"}
    assert report["auroc"]["value"] == report["classes"]["mass"]["auroc"]["value"]
    assert "), without 'edema' (always 1), without 'nodule' (unknown)" in caplog.text

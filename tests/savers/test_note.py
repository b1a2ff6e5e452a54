"""What must be known of a model stands in every result that a person reads."""

from __future__ import annotations

import csv
import json

import numpy as np
import torch
from ignite.engine import Engine
from PIL import Image

from monai_mil.model_card import ModelCard, read_model, weights_digest
from monai_mil.networks import MeanPooling
from monai_mil.reports import write_report
from monai_mil.savers import HeatmapSaver, PredictionSaver, ReportSaver

NOTE = "The model was trained on synthetic slides only."


def results(network, folder):
    case = {
        "slide_id": "S-1",
        "pred": torch.tensor([0.25, 0.75]),
        "label": 1,
        "scores": torch.rand(2),
        "coords": torch.tensor([[0, 0], [256, 0]]),
        "level0_size": (512, 256),
        "mpp": 0.5,
        "tile_size_level0": 256.0,
    }
    engine = Engine(lambda engine, cases: cases)
    engine.network = network
    classes = ["normal", "tumor"]
    for saver in (
        PredictionSaver(str(folder), classes),
        ReportSaver(str(folder), classes),
        HeatmapSaver(str(folder), ["png", "geojson"]),
    ):
        saver.attach(engine)
    engine.run([[case]])
    write_report(folder / "predictions.csv", folder / "heatmaps", folder / "report.html", resamples=2)
    with (folder / "predictions.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    return row, json.loads((folder / "metrics.json").read_text()), (folder / "report.html").read_text()


def test_a_note_on_a_model_stands_in_its_tables_reports_and_figures(tmp_path):
    network = MeanPooling(in_channels=4, num_classes=2)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    ModelCard({}, weights_digest(network.state_dict()), note=NOTE, path=tmp_path / "model.pt").write()
    assert read_model(tmp_path / "model.pt").note == NOTE
    row, metrics, page = results(network, tmp_path / "noted")
    assert row["note"] == metrics["note"] == NOTE
    assert NOTE in page
    assert json.loads((tmp_path / "noted" / "heatmaps" / "S-1.geojson").read_text())["note"] == NOTE
    other = MeanPooling(in_channels=4, num_classes=2)
    results(other, tmp_path / "plain")
    noted, plain = (Image.open(tmp_path / name / "heatmaps" / "S-1.png") for name in ("noted", "plain"))
    assert noted.height > plain.height  # by the line at its foot


def test_another_model_has_none(tmp_path):
    network = MeanPooling(in_channels=4, num_classes=2)
    torch.nn.init.constant_(network.classifier.bias, np.random.default_rng().random())
    row, metrics, page = results(network, tmp_path)
    assert "note" not in row
    assert "note" not in metrics
    assert "synthetic" not in page

"""The table of risks."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine

from monai_mil.errors import CohortError
from monai_mil.savers import RiskSaver
from monai_mil.training import SurvivalRiskd

EDGES = (0.0, 10.0, 20.0, 30.0)


def run(folder: Path, *items: dict[str, object], edges: tuple[float, ...] = EDGES) -> list[dict[str, str]]:
    def step(engine: Engine, batch: list[dict[str, object]]) -> list[dict[str, object]]:
        return [SurvivalRiskd("pred")({"pred": item["pred"]}) for item in batch]

    engine = Engine(step)
    RiskSaver(str(folder), edges).attach(engine)
    engine.run([list(items)])
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_says_who_when_and_how_likely(tmp_path: Path) -> None:
    known = {"slide_id": "a", "patient_id": "p", "label": torch.tensor([12.5, 1.0]), "pred": torch.zeros(3)}
    unknown = {"slide_id": "b", "label": torch.tensor([torch.nan, torch.nan]), "pred": torch.tensor([9.0, 0.0, 0.0])}
    first, second = run(tmp_path, known, unknown)
    assert list(first) == ["slide_id", "patient_id", "time", "event", "risk", "survival_10", "survival_20"]
    assert list(first.values()) == ["a", "p", "12.5", "1", "-1", "0.666667", "0.333333"]
    assert (second["patient_id"], second["time"], second["event"]) == ("b", "", "")
    assert float(second["risk"]) > float(first["risk"])


def test_bins_of_another_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="slide 'a': 2 outputs for 3 time bins"):
        run(tmp_path, {"slide_id": "a", "pred": torch.zeros(2)})


def test_without_risks_it_says_where_to_get_them(tmp_path: Path) -> None:
    engine = Engine(lambda engine, batch: batch)
    RiskSaver(str(tmp_path), EDGES).attach(engine)
    with pytest.raises(CohortError, match="SurvivalRiskd"):
        engine.run([[{"slide_id": "a", "pred": torch.zeros(3)}]])

"""Survival in real MONAI engines: the files of an evaluation, the key metric, and a network that learns the risk."""

from __future__ import annotations

import csv
import json
import logging
import math
from pathlib import Path

import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.transforms import Compose
from torch import Tensor, nn

from monai_mil.bags import LoadBagd, collate_bags
from monai_mil.cohorts import follow_up, read_survival_cohort
from monai_mil.losses import DiscreteSurvival, MILLoss, time_bins
from monai_mil.metrics import concordance_index
from monai_mil.networks import ABMIL
from monai_mil.savers import ConcordanceIndex, SurvivalSaver
from monai_mil.synthetic import make_survival_cohort
from monai_mil.training import FullOutputInferer, SurvivalRiskd, UnpackOutputd, prepare_bag_batch


class FirstFeature(nn.Module):
    """Puts all incidence into the first or the last of two bins, by the bag's first feature."""

    def forward(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        first = image[:, 0, 0]
        return torch.stack([first, -first], dim=1)


def slides(count: int) -> list[dict[str, object]]:
    """Two slides a patient; the more its first feature, the earlier the event; every third patient is censored."""
    items = []
    for index in range(count):
        patient = index // 2
        image = torch.zeros(3, 4)
        image[0, 0] = (patient - count / 4) / count + (0.01 if index % 2 else -0.01)
        label = [100.0 - patient, float(patient % 3 != 0)]
        items.append({"image": image, "label": label, "slide_id": f"s{index}", "patient_id": f"p{patient:02d}"})
    return items


def evaluator(items: list[dict[str, object]], network: nn.Module, **options: object) -> SupervisedEvaluator:
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(items), batch_size=4, collate_fn=collate_bags),
        network=network,
        prepare_batch=prepare_bag_batch,
        **{"postprocessing": SurvivalRiskd("pred")} | options,
    )


def test_the_files_tell_of_patients_and_of_their_mean_risk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    items = slides(24)
    with caplog.at_level(logging.INFO, "monai_mil"):
        evaluator(items, FirstFeature(), val_handlers=[SurvivalSaver(tmp_path, n=20)]).run()
    report = json.loads((tmp_path / "survival.json").read_text())
    assert (report["patients"], report["events"]) == (12, 8)
    assert report["concordance"]["value"] == 1
    assert report["log_rank"]["p_value"] < 0.01
    with (tmp_path / "survival.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["patient_id"] for row in rows] == [f"p{patient:02d}" for patient in range(12)]
    assert [row["group"] for row in rows] == ["low"] * 6 + ["high"] * 6
    assert (rows[3]["time"], rows[3]["event"]) == ("97", "0")
    features = torch.stack([item["image"][0, 0] for item in items[6:8]])
    survived = torch.sigmoid(-2 * features)
    assert float(rows[3]["risk"]) == pytest.approx(-survived.mean().item(), abs=1e-5)
    assert "concordance 1.0000" in caplog.text


def test_cut_offs_of_other_patients_make_the_groups(tmp_path: Path) -> None:
    evaluator(slides(24), FirstFeature(), val_handlers=[SurvivalSaver(tmp_path, [-0.55, -0.5], n=0)]).run()
    report = json.loads((tmp_path / "survival.json").read_text())
    assert report["cutoffs_from"] == "given"
    assert [group["name"] for group in report["groups"]] == ["low", "intermediate", "high"]
    assert report["concordance"]["low"] is None


def test_a_patient_without_a_risk_is_in_no_group(tmp_path: Path) -> None:
    items = slides(8)
    items[0]["image"] = torch.full((3, 4), torch.nan)
    evaluator(items, FirstFeature(), val_handlers=[SurvivalSaver(tmp_path, [-0.5], n=0)]).run()
    with (tmp_path / "survival.csv").open(newline="") as file:
        groups = [row["group"] for row in csv.DictReader(file)]
    assert groups == ["", "low", "low", "high"]


def test_without_follow_up_there_are_risks_and_no_report(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    items = [{key: value for key, value in item.items() if key != "label"} for item in slides(6)]
    evaluator(items, FirstFeature(), val_handlers=[SurvivalSaver(tmp_path)]).run()
    assert not (tmp_path / "survival.json").exists()
    assert "no survival report: no comparable pair among 0 patients" in caplog.text
    with (tmp_path / "survival.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert {row["time"] + row["event"] + row["group"] for row in rows} == {""}


def test_a_slide_that_comes_twice_counts_once(tmp_path: Path) -> None:
    items = slides(8)
    evaluator(items + items[:3], FirstFeature(), val_handlers=[SurvivalSaver(tmp_path / "a", n=0)]).run()
    evaluator(items, FirstFeature(), val_handlers=[SurvivalSaver(tmp_path / "b", n=0)]).run()
    assert (tmp_path / "a" / "survival.csv").read_bytes() == (tmp_path / "b" / "survival.csv").read_bytes()


def test_logits_without_their_risk_are_refused(tmp_path: Path) -> None:
    run = evaluator(slides(4), FirstFeature(), postprocessing=None, val_handlers=[SurvivalSaver(tmp_path)])
    with pytest.raises(ValueError, match="put SurvivalRiskd into its postprocessing"):
        run.run()


def test_the_key_metric_is_the_concordance_of_patients() -> None:
    run = evaluator(slides(24), FirstFeature(), key_val_metric={"val_concordance": ConcordanceIndex()})
    run.run()
    assert run.state.metrics["val_concordance"] == 1.0
    assert isinstance(run.state.metrics["val_concordance"], float)


def test_a_split_without_events_has_no_concordance_and_says_so() -> None:
    items = [{**item, "label": [10.0, 0.0]} for item in slides(4)]
    run = evaluator(items, FirstFeature(), key_val_metric={"val_concordance": ConcordanceIndex()})
    with pytest.warns(UserWarning, match="no concordance index: no comparable pair"):
        run.run()
    assert math.isnan(run.state.metrics["val_concordance"])


def test_any_network_learns_the_planted_risk(tmp_path: Path) -> None:
    torch.manual_seed(0)
    table = make_survival_cohort(tmp_path, num_bags=100, width=16, bag_size=(20, 40), fractions=(0.7, 0.0, 0.3))
    cohort = read_survival_cohort(table)
    edges = time_bins(follow_up(cohort, "train"))
    network = ABMIL(16, len(edges) - 1, hidden_dim=32, attention_dim=16)
    load = Compose([LoadBagd("image")])
    data = Dataset(cohort.datalist("train", tmp_path / "bags"), load)
    data = Dataset([data[index] for index in range(len(data))])
    SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=8,
        train_data_loader=DataLoader(data, batch_size=8, shuffle=True, collate_fn=collate_bags),
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), 1e-2),
        loss_function=MILLoss({"survival": DiscreteSurvival(edges)}),
        prepare_batch=prepare_bag_batch,
        inferer=FullOutputInferer(),
    ).run()
    test = evaluator(
        [load(item) for item in cohort.datalist("test", tmp_path / "bags")],
        network,
        inferer=FullOutputInferer(),
        postprocessing=Compose([UnpackOutputd("pred"), SurvivalRiskd("pred")]),
        key_val_metric={"val_concordance": ConcordanceIndex()},
        val_handlers=[SurvivalSaver(tmp_path, n=20)],
    )
    test.run()
    assert test.state.metrics["val_concordance"] >= 0.75
    with (tmp_path / "survival.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = ([float(row[name]) for row in rows] for name in ("risk", "time", "event"))
    assert concordance_index(*columns) == pytest.approx(test.state.metrics["val_concordance"], abs=0.01)

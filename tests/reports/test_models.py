"""A report shows one model: what other models left in the same folder is not drawn under its predictions."""

import csv
import random
import re

import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator

from monai_mil.bags import LoadBagd, collate_bags
from monai_mil.cohorts import read_cohort
from monai_mil.errors import CohortError
from monai_mil.heatmaps import is_of_model, load_heatmap
from monai_mil.model_card import network_digest
from monai_mil.networks import ABMIL
from monai_mil.reports import write_report
from monai_mil.savers import HeatmapSaver, PredictionSaver
from monai_mil.synthetic import make_bag_cohort
from monai_mil.training import FullOutputInferer, prepare_bag_batch

CLASSES = ("normal", "tumor")


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    cohort = read_cohort(make_bag_cohort(folder, num_bags=10, width=4, bag_size=(3, 3)))
    return cohort.datalist(bag_dir=folder / "bags")[:3]


def model(seed):
    torch.manual_seed(seed)
    return ABMIL(4, 2, hidden_dim=4, attention_dim=4)


def predict(folder, items, network, *, maps=True, dies_after=None):
    """What inference.json does with these cases; it may be killed on the way."""
    savers = [PredictionSaver(str(folder), CLASSES)] + ([HeatmapSaver(str(folder), classes=CLASSES)] if maps else [])

    def load(item):
        if dies_after is not None and item["slide_id"] == items[dies_after]["slide_id"]:
            raise KeyboardInterrupt
        return LoadBagd()(item)

    SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(items, load), batch_size=1, collate_fn=collate_bags),
        network=network,
        inferer=FullOutputInferer(),
        prepare_batch=prepare_bag_batch,
        val_handlers=savers,
    ).run()


def shown(folder):
    """Names of the slides whose maps the report draws."""
    page = write_report(folder / "predictions.csv", folder / "heatmaps", folder / "r.html", resamples=2, tiles=0)
    return page.read_text(), set(re.findall(r"<h3>(bag_\d+)</h3>", page.read_text()))


def test_maps_of_another_model_are_left_out_and_told(items, tmp_path):
    predict(tmp_path, items, model(0))
    page, drawn = shown(tmp_path)
    assert drawn == {item["slide_id"] for item in items}
    assert network_digest(model(0)) in page
    assert "of another model" not in page
    predict(tmp_path, items[:1], model(1))
    predict(tmp_path, items, model(1), maps=False)
    page, drawn = shown(tmp_path)
    assert drawn == {items[0]["slide_id"]}
    assert "2 heatmaps of another model than that of the predictions left out" in page
    assert network_digest(model(1)) in page
    assert network_digest(model(0)) not in page
    predict(tmp_path, items, model(2), maps=False)
    page, drawn = shown(tmp_path)
    assert not drawn
    assert "3 heatmaps of another model" in page


def test_predictions_of_two_models_make_no_report(items, tmp_path):
    predict(tmp_path, items, model(0), maps=False)
    first = (tmp_path / "predictions.csv").read_text().splitlines()
    predict(tmp_path, items, model(1), maps=False)
    second = (tmp_path / "predictions.csv").read_text().splitlines()
    (tmp_path / "predictions.csv").write_text("\n".join([*first[:2], *second[2:]]))
    with pytest.raises(CohortError, match="rows of 2 models"):
        shown(tmp_path)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_ran_before_in_a_folder_the_report_shows_the_model_it_names(seed, items, tmp_path):
    chance, network = random.Random(seed), model(0)
    for _ in range(4):
        step = chance.choice(["train", "predict", "some", "without maps", "dies"])
        if step == "train":
            network = model(chance.randrange(3))
            continue
        dies = chance.randrange(3) if step == "dies" else None
        cases = chance.sample(items, 2) if step == "some" else items
        try:
            predict(tmp_path, cases, network, maps=step != "without maps", dies_after=dies)
        except KeyboardInterrupt:
            assert not (tmp_path / "predictions.csv").exists(), "no table of another model stands for this run"
    if not (tmp_path / "predictions.csv").exists():
        return
    with (tmp_path / "predictions.csv").open() as file:
        named = {row["model"] for row in csv.DictReader(file)}
    assert named == {network_digest(network)} or step == "train"
    page, drawn = shown(tmp_path)
    assert named == set(re.findall(r"[0-9a-f]{32}", page))
    for slide_id in drawn:
        assert is_of_model(tmp_path / "heatmaps" / f"{slide_id}.h5", *named)
        assert load_heatmap(tmp_path / "heatmaps" / f"{slide_id}.h5").attributes["model"] in named

"""Slides go through an evaluator while they are read, good ones and bad ones."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator
from monai.handlers import CheckpointLoader
from monai.transforms import Compose

from monai_mil.bags import ResilientDataset, collate_bags
from monai_mil.cohorts import slide_datalist
from monai_mil.embedding import EmbedSlided, StreamSlided
from monai_mil.encoders import get_encoder
from monai_mil.errors import CohortError
from monai_mil.heatmaps import Heatmap
from monai_mil.networks import INSIGHT
from monai_mil.savers import HeatmapSaver, PredictionSaver
from monai_mil.slides import write_pyramid
from monai_mil.training import StreamedInferer, UnpackOutputd, prepare_streamed_batch

CLASSES = ("normal", "tumor")


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a good slide between a truncated one and one without tissue."""
    folder = tmp_path_factory.mktemp("slides")
    pixels = np.random.default_rng(0).integers(90, 200, (1100, 1000, 3), dtype=np.uint8)
    pixels[:, :, 1] //= 2
    pixels[:200] = pixels[:, :200] = 245
    write_pyramid(folder / "b_good.tif", pixels, mpp=0.5)
    whole = (folder / "b_good.tif").read_bytes()
    (folder / "a_truncated.tif").write_bytes(whole[: len(whole) // 3])
    write_pyramid(folder / "c_white.tif", np.full_like(pixels, 245), mpp=0.5)
    return folder


@pytest.fixture
def network(tmp_path: Path) -> INSIGHT:
    """A fresh network; the weights that count are in ``model.pt``."""
    torch.manual_seed(0)
    trained = INSIGHT(38, reduced=16, widths=(16, 8, 8))
    torch.save(trained.state_dict(), tmp_path / "model.pt")
    return INSIGHT(38, reduced=16, widths=(16, 8, 8))


def evaluator_of(dataset: ResilientDataset, network: INSIGHT, folder: Path) -> SupervisedEvaluator:
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(dataset, batch_size=1, num_workers=0, collate_fn=collate_bags),
        network=network,
        prepare_batch=prepare_streamed_batch,
        inferer=StreamedInferer(),
        postprocessing=Compose([UnpackOutputd("pred")]),
        val_handlers=[
            CheckpointLoader(str(folder / "model.pt"), {"model": network}, map_location="cpu"),
            PredictionSaver(str(folder), CLASSES),
            HeatmapSaver(str(folder), formats=["geojson"], key="heatmap", classes=CLASSES),
        ],
    )


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_good_slide_is_predicted_and_the_others_get_a_status(
    slides: Path, network: INSIGHT, tmp_path: Path
) -> None:
    encoder = get_encoder("texture", spatial=True)
    dataset = ResilientDataset(slide_datalist(slides), StreamSlided(encoder=encoder, network=network), tmp_path)
    evaluator_of(dataset, network, tmp_path).run()

    loaded = EmbedSlided(encoder=encoder)({"image": str(slides / "b_good.tif")})
    with torch.no_grad():
        expected = network(loaded["image"][None], loaded["token_mask"][None], return_dict=True)
    (predicted,) = rows(tmp_path / "predictions.csv")
    assert predicted["slide_id"] == "b_good"
    assert float(predicted["prob_tumor"]) == pytest.approx(float(expected["prob"][0, 0]), abs=1e-5)
    scores = Heatmap.load(tmp_path / "heatmaps" / "b_good.h5").scores
    on_slide = loaded["token_mask"].numpy()
    np.testing.assert_allclose(scores[on_slide], expected["heatmap"][0, 0].numpy()[on_slide], rtol=0, atol=1e-3)
    assert not list((tmp_path / "heatmaps").glob("[ac]_*"))

    failed = {row["slide_id"]: row for row in rows(tmp_path / "failed.csv")}
    assert {name: row["status"] for name, row in failed.items()} == {
        "a_truncated": "unreadable",
        "c_white": "no tissue",
    }
    assert "a_truncated.tif" in failed["a_truncated"]["message"]
    with pytest.raises(CohortError, match=r"(?s)2 of 3 cases failed.*a_truncated.*c_white"):
        dataset.raise_failures()


def test_the_weights_of_the_checkpoint_answer_for_the_first_slide(
    slides: Path, network: INSIGHT, tmp_path: Path
) -> None:
    """The loader fetches the first slide early; by then the checkpoint must be in the network."""
    stream = StreamSlided(encoder=get_encoder("texture", spatial=True), network=network)
    items = [{"image": str(slides / "b_good.tif"), "slide_id": name} for name in ("first", "second")]
    evaluator_of(ResilientDataset(items, stream), network, tmp_path).run()
    first, second = rows(tmp_path / "predictions.csv")
    assert first["prob_tumor"] == second["prob_tumor"]

"""The bags of a patient's slides as one, from the files to the maps of each slide."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import decollate_batch

from monai_mil.bags import (
    BagFile,
    BagInfo,
    LoadBagd,
    LoadTreed,
    ResilientDataset,
    SampleInstancesd,
    bag_facts,
    collate_bags,
    level_folder,
)
from monai_mil.embedding import StreamSlided
from monai_mil.errors import BagError
from monai_mil.heatmaps import Heatmap
from monai_mil.networks import INSIGHT
from monai_mil.reports import write_report
from monai_mil.savers import HeatmapSaver, PredictionSaver, TreeHeatmapSaver
from tests.savers.tree_examples import LEVELS, TILE, packed_coords

SIZES = {"a": 3, "b": 2}
EDGE = (1400, 400)  # the tiles of slide a reach beyond it


def bag(folder: Path, name: str, storage: str = "float16", grid: tuple[int, ...] = ()) -> dict[str, Any]:
    rng = np.random.default_rng(len(name) + SIZES.get(name, 4))
    n = SIZES.get(name, 4)
    coords = np.array([[512 * index, 0] for index in range(n)])
    sides = EDGE if name == "a" else (2048, 512)
    info = BagInfo(f"stored {name}", encoder="uni", mpp=0.25, tile_size_level0=512.0, level0_size=sides)
    extras = {} if name == "b" else {"instance_labels": np.arange(n)}
    features = rng.standard_normal((n, 6, *grid)).astype(np.float16)
    BagFile.write(folder / f"{name}.h5", features, coords, info, extras, storage)
    return {"image": str(folder / f"{name}.h5"), "slide_id": name, "patient_id": "p/1", "label": 1}


def patient(slides: list[dict[str, Any]]) -> dict[str, Any]:
    return {"image": slides, "label": 1, "patient_id": "p/1"}


@pytest.mark.parametrize(("mapped", "storage"), [(False, "float16"), (True, "float16"), (True, "uint8")])
def test_the_slides_of_a_patient_become_one_bag(tmp_path: Path, mapped: bool, storage: str) -> None:
    items = [bag(tmp_path, name, storage, (4, 3)) for name in SIZES]
    load = LoadBagd(grid=(4, 3), mapped=mapped)
    loaded, plain = load(patient(items)), [LoadBagd(grid=(4, 3))(item) for item in items]
    expected = torch.cat([each["image"].as_tensor() for each in plain], dim=1)
    assert loaded["image"].dtype == torch.float16
    torch.testing.assert_close(
        loaded["image"].as_tensor().float(), expected.float(), rtol=0, atol=2e-3 * (storage == "uint8")
    )
    assert loaded["image"].movedim(0, -1).is_contiguous()
    assert "feature_scale" not in loaded
    assert loaded["slide_index"].tolist() == [0, 0, 0, 1, 1]
    assert loaded["coords"][:, 0].tolist() == [0, 512, 1024, 0, 512]
    assert loaded["instance_labels"].tolist() == [0, 1, 2, -1, -1]
    assert torch.equal(loaded["token_mask"][:3], plain[0]["token_mask"])
    assert loaded["token_mask"][3:].all()
    assert {key: loaded[key] for key in ("label", "patient_id")} == {"label": 1, "patient_id": "p/1"}
    assert "slide_id" not in loaded
    meta = loaded["image"].meta
    assert (meta["slide_id"], meta["encoder"]) == ("p/1", "uni")
    assert np.isnan(meta["mpp"]), "no frame of one of the slides stands for both"
    assert bag_facts([patient(items)]).grid == [4, 3]


def test_a_single_slide_of_a_patient_stays_in_its_file(tmp_path: Path) -> None:
    loaded = LoadBagd(mapped=True)(patient([bag(tmp_path, "a", grid=(4, 3))]))
    assert str(tmp_path / "a.h5") in Path("/proc/self/maps").read_text()
    assert loaded["slide_index"].tolist() == [0, 0, 0]


def test_what_is_known_of_the_instances_follows_a_sample(tmp_path: Path) -> None:
    loaded = LoadBagd()(patient([bag(tmp_path, name) for name in SIZES]))
    sampled = SampleInstancesd(num_instances=4).set_random_state(0)(loaded)
    kept = [int(np.flatnonzero((loaded["image"] == row[:, None]).all(0))[0]) for row in sampled["image"].T]
    assert torch.equal(sampled["slide_index"], loaded["slide_index"][kept])


def test_one_broken_slide_is_named(tmp_path: Path) -> None:
    items = [bag(tmp_path, name) for name in SIZES]
    Path(items[1]["image"]).write_bytes(b"no bag")
    with pytest.raises(BagError, match=r"b\.h5"):
        LoadBagd()(patient(items))
    assert list(ResilientDataset([patient(items)], LoadBagd(), tmp_path)) == []
    assert (tmp_path / "failed.csv").read_text().splitlines()[0] == "patient_id,status,message"
    assert "p/1," in (tmp_path / "failed.csv").read_text()


def run(saver: Any, items: list[dict[str, Any]]) -> None:
    def step(engine: Engine, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        engine.state.batch = batch
        return [{"pred": item["pred"]} for item in batch]

    engine = Engine(step)
    saver.attach(engine)
    engine.run([items])


def test_every_slide_of_a_patient_has_a_map_of_its_own(tmp_path: Path) -> None:
    items = [bag(tmp_path, name) for name in SIZES]
    other = {**bag(tmp_path, "c"), "patient_id": "q"}
    load = LoadBagd()
    batch = collate_bags([load(patient(items)), load({"image": [other], "label": 1, "patient_id": "q"})])
    assert batch["slide_index"].tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, -1]]
    batch["attention"] = torch.tensor([[[0.1, 0.2, 0.3, 0.15, 0.25]], [[0.4, 0.3, 0.2, 0.1, 0.0]]])
    batch["pred"] = torch.tensor([[0.25, 0.75], [0.625, 0.375]])
    cases = decollate_batch(batch)
    saver = HeatmapSaver(str(tmp_path), classes=["normal", "tumor"])
    run(saver, cases)
    saver.raise_failures()
    drawn = {path.stem: Heatmap.load(path) for path in (tmp_path / "heatmaps").glob("*.h5")}
    assert {name: drawn[name].scores.tolist() for name in drawn} == {
        "a": pytest.approx([0.1, 0.2, 0.3]),
        "b": pytest.approx([0.15, 0.25]),
        "c": pytest.approx([0.4, 0.3, 0.2, 0.1]),
    }
    assert (drawn["a"].frame.slide_id, drawn["a"].frame.level0_size) == ("a", EDGE)
    assert drawn["b"].coords[:, 0].tolist() == [0, 512]
    run(PredictionSaver(str(tmp_path), ["normal", "tumor"]), cases)
    assert (tmp_path / "predictions.csv").read_text().split() == [
        "patient_id,slides,slide_ids,label,pred,prob_normal,prob_tumor,remarks",
        "p/1,2,a;b,tumor,tumor,0.25,0.75,",
        "q,1,c,tumor,normal,0.625,0.375,",
    ]
    report = write_report(
        tmp_path / "predictions.csv", tmp_path / "heatmaps", tmp_path / "r.html", resamples=2, tiles=0
    )
    assert set(re.findall(r"<h3>(\w+)</h3>", report.read_text())) >= {"a", "b", "c"}
    assert "2 patients, 2 labelled" in report.read_text()
    assert '<a href="#patient-1">q</a></td><td>c</td>' in report.read_text(), "the wrong one first"


def tree(folder: Path, name: str, columns: int) -> dict[str, Any]:
    coords, start = packed_coords(columns, 1), 0
    for level in reversed(range(LEVELS)):
        tiles = columns * 4 ** (LEVELS - 1 - level)
        info = BagInfo(name, encoder="e", mpp=0.5, tile_size_level0=float(TILE * 2**level), level0_size=(800, 300))
        rows = coords[start : start + tiles]
        BagFile.write(level_folder(folder, level) / f"{name}.h5", np.float16(rows + columns), rows, info, {}, "float16")
        start += tiles
    return {"image": str(level_folder(folder, LEVELS - 1) / f"{name}.h5"), "slide_id": name, "patient_id": "p/1"}


def test_trees_are_packed_level_by_level_and_taken_apart_again(tmp_path: Path) -> None:
    items = [tree(tmp_path, "a", 2), tree(tmp_path, "b", 3)]
    load = LoadTreed(levels=LEVELS)
    loaded, single = load(patient(items)), [load(item) for item in items]
    assert loaded["slide_index"].tolist() == [0] * 2 + [1] * 3 + [0] * 8 + [1] * 12 + [0] * 32 + [1] * 48
    for number, alone in enumerate(single):
        own = loaded["slide_index"] == number
        assert torch.equal(loaded["image"].as_tensor()[:, own], alone["image"].as_tensor())
        assert torch.equal(loaded["coords"][own], alone["coords"])
    scores = torch.full((LEVELS, 105), -torch.inf)
    scores[0, :5], scores[1, 13:17], scores[2, 57:61] = 1.0, 2.0, 3.0  # the search goes on in slide b alone
    answer = {"attention_logits": scores, "level_logits": torch.zeros(LEVELS, 2), "pred": torch.tensor([0.1, 0.9])}
    answer |= {"instance_logits": torch.zeros(2, 105), "instance_scores": torch.linspace(0, 1, 105).expand(2, -1)}
    saver = TreeHeatmapSaver(str(tmp_path))
    run(saver, [{**loaded, **answer}])
    saver.raise_failures()
    drawn = {path.stem: Heatmap.load(path) for path in (tmp_path / "heatmaps").glob("*.h5")}
    assert set(drawn) == {"a", "a_level2", "b", "b_level0", "b_level1", "b_level2", "b_evidence"}
    assert (len(drawn["a"]), len(drawn["b"])) == (32, 48)
    assert drawn["a_level2"].scores.tolist() == [0.5, 0.5]
    assert drawn["b_level1"].coords.tolist() == single[1]["coords"][3:7].tolist()


def test_a_network_that_answers_while_a_slide_is_read_wants_bags_of_several() -> None:
    items = [{"image": f"{name}.svs", "slide_id": name} for name in "ab"]
    with pytest.raises(BagError, match="patient 'p/1': slides a, b are to be one bag"):
        StreamSlided(network=INSIGHT(38))(patient(items))

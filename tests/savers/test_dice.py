"""Dice files of an evaluation, written by a real engine."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from monai_mil.errors import CohortError, SettingsError
from monai_mil.heatmaps import otsu, slide_dice, stitch
from monai_mil.heatmaps.heatmap import assemble
from monai_mil.metrics import DiceCounts
from monai_mil.savers import DiceSaver
from monai_mil.savers.case import Case
from monai_mil.slides import BlockGrid, find_lesions, open_truth
from tests.processes import run_together

SIZE, TILE, GRID = (1200, 800), 100, (4, 4)


def rings(x, y, side):
    return [[[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]]


def case(slide_id, label, seed=0, scale=1.0, patient=None, **changes):
    """A slide of which a patch of tokens is bright."""
    meta = {"slide_id": slide_id, "slide_path": "", "level0_size": SIZE, "mpp": 0.25, "tile_size_level0": float(TILE)}
    corners = np.stack(np.meshgrid(np.arange(11), np.arange(7)), axis=-1).reshape(-1, 2) * TILE
    rng = np.random.default_rng(seed)
    scores = 0.05 * rng.random((1, len(corners), *GRID))
    near = (np.abs(corners - [450, 350]) < 150).all(axis=1)
    scores[:, near] = rng.uniform(0.6, 0.9, (1, near.sum(), *GRID))
    return {
        "image": MetaTensor(torch.zeros(4, len(corners)), meta=meta),
        "coords": torch.tensor(corners),
        "slide_id": slide_id,
        "patient_id": patient or slide_id,
        "pred": torch.tensor([0.7]),
        "heatmap": torch.tensor(scores * scale, dtype=torch.float32),
        "label": label,
    } | changes


def write_truth(folder, slide_id, *squares):
    folder.mkdir(exist_ok=True)
    features = [
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": rings(*square)}, "properties": {}}
        for square in squares
    ]
    (folder / f"{slide_id}.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def evaluate(saver, items):
    def step(engine, batch):
        engine.state.batch = [{key: value for key, value in item.items() if key != "pred"} for item in batch]
        return [{"pred": item["pred"], "label": item["label"]} for item in batch]

    engine = Engine(step)
    saver.attach(engine)
    engine.run([[item] for item in items])
    return json.loads((saver.folder / "dice.json").read_text())


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def truth(tmp_path):
    folder = tmp_path / "truth"
    write_truth(folder, "a", (300, 200, 300), (1000, 40, 60))
    write_truth(folder, "b", (320, 220, 200))
    return folder


def test_the_files_tell_of_slides_and_lesions(tmp_path, truth):
    items = [case("a", 1, 0, patient="p"), case("n", 0), case("b", torch.tensor([1.0]), 1, patient="q")]
    report = evaluate(DiceSaver(str(tmp_path), str(truth), size_bounds=(2000, 10_000), n=50), items)
    heatmap = assemble(items[0]["heatmap"][0], items[0]["coords"], Case.of(items[0]).frame)
    lesions = find_lesions(open_truth(truth / "a.geojson"), BlockGrid(SIZE, 2.0))
    expected = slide_dice(stitch(heatmap), otsu(heatmap), lesions, 50)
    slides = rows(tmp_path / "dice.csv")
    assert [row["slide_id"] for row in slides] == ["a", "b"]
    first = DiceCounts(*(int(slides[0][name]) for name in ("intersection", "predicted", "truth")))
    assert first == expected.whole
    assert float(slides[0]["threshold"]) == pytest.approx(otsu(heatmap), rel=1e-5)
    assert report["slides"]["count"] == 2
    assert report["slides"]["mean"]["value"] == pytest.approx(np.mean([float(row["dice"]) for row in slides]), abs=1e-5)
    assert report["slides"]["mean"]["low"] < report["slides"]["mean"]["high"]
    assert report["negative"] == 1
    found = rows(tmp_path / "dice_lesions.csv")
    assert [(row["slide_id"], row["lesion"], row["size"]) for row in found] == [
        ("a", "1", "small"),
        ("a", "2", "large"),
        ("b", "1", "moderate"),
    ]
    assert float(found[0]["dice"]) == 0
    assert [float(found[0][name]) for name in ("x0", "y0", "x1", "y1")] == [1000, 40, 1060, 100]
    assert float(found[0]["area_mm2"]) == pytest.approx(900 * 0.25e-6)
    assert {size: part["count"] for size, part in report["lesions"].items()} == {"small": 1, "moderate": 1, "large": 1}
    assert report["lesions"]["large"]["mean"]["value"] == pytest.approx(expected.lesions[1].dice)


def test_a_positive_slide_without_its_truth_is_named_and_the_others_are_done(tmp_path, truth, caplog):
    write_truth(truth, "empty")
    (truth / "damaged.xml").write_text("<ASAP_")
    items = [case(name, 1) for name in ("a", "lost", "empty", "damaged", "b")]
    saver = DiceSaver(str(tmp_path), str(truth), n=10)
    with caplog.at_level(logging.ERROR):
        report = evaluate(saver, items)
    assert report["slides"]["count"] == 2
    assert list(report["failures"]) == ["damaged", "empty", "lost"]
    assert "no Dice of 3 positive slides: damaged, empty, lost" in caplog.text
    with pytest.raises(CohortError, match=r"(?s)no XML of ASAP.*empty, but .*lost: slide 'lost': no ground truth in "):
        saver.raise_failures()


def test_cases_that_are_negative_or_without_label_are_counted(tmp_path, truth):
    unknown = [case("x", -1), case("y", torch.tensor([float("nan")])), case("z", 0)]
    report = evaluate(DiceSaver(str(tmp_path), str(truth), n=10), [case("a", 1), *unknown])
    assert (report["negative"], report["unlabelled"], report["failures"]) == (1, 2, {})


def test_a_class_of_several_labels_is_compared(tmp_path, truth):
    heatmap = torch.cat([torch.rand(1, 77, *GRID) * 0.1, case("a", 1)["heatmap"], torch.rand(1, 77, *GRID) * 0.1])
    items = [
        case("a", torch.tensor([0.0, 1.0, 0.0]), heatmap=heatmap, pred=torch.tensor([0.9, 0.5, 0.1])),
        case("b", torch.tensor([1.0, 0.0, 1.0]), heatmap=heatmap, pred=torch.tensor([0.9, 0.5, 0.1])),
    ]
    one = evaluate(DiceSaver(str(tmp_path / "one"), str(truth), class_index=1, n=10), items)
    same = evaluate(DiceSaver(str(tmp_path / "same"), str(truth), n=10), [case("a", 1)])
    assert one["slides"] == same["slides"]
    assert one["negative"] == 1


def test_the_best_threshold_of_validation_slides_is_kept_and_used_on_others(tmp_path, truth):
    """Attention has another scale on every slide: the share of the highest score is what carries over."""
    items = [case("a", 1, 0, scale=1e-3), case("b", 1, 1, scale=7.0)]
    val = DiceSaver(str(tmp_path / "val"), str(truth), threshold="best", n=10)
    chosen = evaluate(val, items)
    share = chosen["threshold"]["share_of_highest_score"]
    assert chosen["threshold"]["rule"] == "best"
    assert rows(tmp_path / "val" / "dice_lesions.csv") == []
    test = DiceSaver(str(tmp_path / "test"), str(truth), threshold=str(tmp_path / "val" / "dice.json"), n=10)
    report = evaluate(test, items)
    assert report["slides"] == chosen["slides"]
    assert report["threshold"] == {"rule": "share", "share_of_highest_score": share, "number": None, "minimum": 0.0}
    for row, item in zip(rows(tmp_path / "test" / "dice.csv"), items, strict=True):
        assert float(row["threshold"]) == pytest.approx(share * float(item["heatmap"].max()), rel=1e-4)
    for other in (0.5 * share, min(1.4 * share, 0.99)):
        path = tmp_path / "other.json"
        path.write_text(json.dumps({"threshold": {"share_of_highest_score": other}}))
        less = evaluate(DiceSaver(str(tmp_path / "less"), str(truth), threshold=str(path), n=10), items)
        assert less["slides"]["mean"]["value"] <= chosen["slides"]["mean"]["value"] + 1e-9


def test_a_number_is_a_threshold_of_the_scores(tmp_path, truth):
    report = evaluate(DiceSaver(str(tmp_path), str(truth), threshold=1.0, n=10), [case("a", 1)])
    assert report["slides"]["mean"]["value"] == 0
    assert report["threshold"]["number"] == 1.0


@pytest.mark.parametrize("threshold", ["otsu", "best", 0.1])
def test_no_threshold_is_below_the_floor(tmp_path, truth, threshold):
    items = [case("a", 1), case("b", 1, seed=1)]
    folder = tmp_path / "val"
    report = evaluate(DiceSaver(str(folder), str(truth), threshold=threshold, min_threshold=0.86, n=10), items)
    same = evaluate(DiceSaver(str(tmp_path / "same"), str(truth), threshold=0.86, n=10), items)
    found = [float(row["threshold"]) for row in rows(folder / "dice.csv")]
    if threshold == "best":
        assert min(found) >= 0.86
        test = DiceSaver(str(tmp_path / "test"), str(truth), threshold=str(folder / "dice.json"), n=10)
        assert evaluate(test, items)["slides"] == report["slides"]
    else:
        assert found == [0.86, 0.86]
        assert report["slides"] == same["slides"]
    assert report["threshold"]["minimum"] == 0.86


@pytest.mark.usefixtures("fork_server")
def test_two_processes_write_what_one_writes(tmp_path, truth):
    """The sampler of two processes hands a slide out twice where their number is odd."""
    write_truth(truth, "c", (320, 220, 200))
    items = [case("a", 1, 0, patient="p"), case("n", 0), case("b", 1, 1, patient="p"), case("lost", 1), case("c", 1, 2)]
    torch.save([items[:3], [*items[3:], items[0]]], tmp_path / "items.pt")
    evaluate(DiceSaver(str(tmp_path / "one"), str(truth), n=50), items)
    result = run_together(Path(__file__).with_name("run_dice_distributed.py"), tmp_path, truth)
    assert result.returncode == 0, result.stderr[-2000:]
    for name in ("dice.json", "dice.csv", "dice_lesions.csv"):
        assert (tmp_path / "two" / name).read_text() == (tmp_path / "one" / name).read_text()


def test_a_threshold_that_is_nothing_known_is_named(tmp_path):
    with pytest.raises(SettingsError, match="'mean': neither \"otsu\""):
        DiceSaver("out", "truth", threshold="mean")


def test_no_positive_slide_leaves_empty_files_and_no_best_threshold(tmp_path, truth):
    report = evaluate(DiceSaver(str(tmp_path), str(truth), n=10), [case("n", 0)])
    assert (report["slides"]["count"], report["slides"]["mean"]["value"]) == (0, None)
    with pytest.raises(CohortError, match="no threshold can be chosen"):
        evaluate(DiceSaver(str(tmp_path), str(truth), threshold="best"), [case("n", 0)])


def test_the_saver_is_made_from_a_bundle_s_json():
    config = {"_target_": "monai_mil.savers.DiceSaver", "output_dir": "out", "truth_dir": "masks", "key": "grad_cam"}
    saver = ConfigParser({"handler": config}).get_parsed_content("handler")
    assert saver.truth_dir == Path("masks")

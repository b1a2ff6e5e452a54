"""Tile scores against a ground truth, by hand and by a real engine."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from monai_mil.errors import CohortError
from monai_mil.heatmaps import Heatmap, localise
from monai_mil.savers import LocalisationSaver
from monai_mil.savers.case import Case
from monai_mil.slides.truth import ArrayTruth
from tests.heatmaps.examples import grid_heatmap

TILE = 400  # 200 micrometres at 0.5 a pixel


def truth_of(size: tuple[int, int], *boxes: tuple[int, int, int, int]) -> ArrayTruth:
    mask = np.zeros((size[1] // 10, size[0] // 10), bool)
    for x0, y0, x1, y1 in boxes:
        mask[y0 // 10 : y1 // 10, x0 // 10 : x1 // 10] = True
    return ArrayTruth(Path("truth.npz"), mask, 10)


def heatmap(**tiles: float) -> Heatmap:
    """8 x 6 tiles of 0.1, except those named by column and row."""
    scores = np.full((6, 8), 0.1, np.float32)
    for name, score in tiles.items():
        scores[int(name[2]), int(name[1])] = score
    grid = grid_heatmap(step=TILE, tile=TILE)
    return replace(grid, scores=scores.ravel())


def test_a_tumour_slide_by_hand() -> None:
    drawn = heatmap(t11=1.0, t21=0.9, t64=0.8)
    truth = truth_of(drawn.frame.level0_size, (400, 400, 1600, 800), (2800, 400, 3200, 1600))
    figures = localise(drawn, truth)
    assert figures["dice"] == pytest.approx(2 * 2 / (3 + 3 + 3))
    assert not figures["strict"]
    assert not figures["by_lesion"]
    assert figures["froc"].lesions.tolist() == pytest.approx([1.0, 0.0])
    assert figures["froc"].false.tolist() == pytest.approx([(0.8 - 0.1) / 0.9])
    found = localise(heatmap(t11=1.0, t21=0.9, t31=0.8, t71=0.7, t72=0.7, t73=0.7), truth)
    assert (found["dice"], found["strict"], found["by_lesion"]) == (1.0, True, True)


def test_a_normal_slide_has_specificity_and_false_detections() -> None:
    figures = localise(heatmap(t11=1.0, t21=0.9), None)
    assert figures["specificity"] == pytest.approx(46 / 48)
    assert figures["froc"].normal
    assert len(figures["froc"].false) == 2


def test_probabilities_need_no_rescaling() -> None:
    figures = localise(heatmap(t11=0.4), None, rescale=False)
    assert figures["specificity"] == 1
    assert len(figures["froc"].false) == 0


def test_a_tile_is_tumour_by_its_centre_or_by_how_much_of_it_is() -> None:
    drawn = heatmap(t11=1.0, t21=1.0)
    truth = truth_of(drawn.frame.level0_size, (400, 400, 940, 800))
    assert localise(drawn, truth)["dice"] == pytest.approx(2 / 3)
    assert localise(drawn, truth, min_overlap=0.25)["dice"] == 1
    assert localise(drawn, truth, min_overlap=0.5)["dice"] == pytest.approx(2 / 3)


def test_a_lesion_beside_every_centre_is_found_by_the_tile_it_touches() -> None:
    drawn = heatmap(t11=1.0)
    truth = truth_of(drawn.frame.level0_size, (420, 420, 500, 500))
    figures = localise(drawn, truth)
    assert figures["by_lesion"]
    assert len(figures["froc"].lesions) == 0


def test_tokens_of_a_tile_count_by_their_highest() -> None:
    drawn = heatmap(t11=1.0, t21=0.9)
    blocks = np.minimum(drawn.scores[:, None, None], np.linspace(0.2, 1, 4).reshape(2, 2)).astype(np.float32)
    figures = localise(replace(drawn, scores=blocks), None)
    assert figures["specificity"] == pytest.approx(46 / 48)
    assert len(figures["froc"].false) == 2


@pytest.mark.parametrize(
    ("label", "class_index", "expected"),
    [
        (1, None, True),
        (0, None, False),
        (-1, None, None),
        (None, None, None),
        (2, 2, True),
        (1, 2, False),
        (torch.tensor([1.0, float("nan")]), 0, True),
        (torch.tensor([1.0, float("nan")]), None, None),
    ],
)
def test_which_cases_are_positive(label: object, class_index: int | None, expected: bool | None) -> None:
    assert Case.of({"slide_id": "a", "label": label}).is_positive(class_index) is expected


@pytest.mark.parametrize(("outputs", "label", "expected"), [(1, 1, True), (1, 0, False), (3, 0, True), (3, 1, False)])
def test_the_first_of_several_classes_is_itself_and_the_only_one_is_the_positive(
    outputs: int, label: int, expected: bool
) -> None:
    assert Case.of({"slide_id": "a", "label": label, "pred": torch.zeros(outputs)}).is_positive(0) is expected


def case(name: str, label: int, **tiles: float) -> dict[str, object]:
    drawn = heatmap(**tiles)
    meta = {"slide_id": name, "slide_path": "", "level0_size": drawn.frame.level0_size, "mpp": 0.5}
    meta["tile_size_level0"] = float(TILE)
    return {
        "image": MetaTensor(torch.zeros(4, 48), meta=meta),
        "coords": torch.from_numpy(drawn.coords),
        "slide_id": name,
        "patient_id": f"patient of {name}",
        "label": label,
        "pred": torch.tensor([0.3, 0.7]),
        "scores": torch.from_numpy(np.stack([-drawn.scores, drawn.scores])),
    }


def run(saver: LocalisationSaver, items: list[dict[str, object]]) -> dict[str, object]:
    def step(engine: Engine, batch: list[dict[str, object]]) -> list[dict[str, object]]:
        engine.state.batch = batch
        return [{"pred": item["pred"]} for item in batch]

    engine = Engine(step)
    saver.attach(engine)
    engine.run([[item] for item in items])
    return json.loads((saver.folder / "localisation.json").read_text())


def write_truth(folder: Path, name: str, *boxes: tuple[int, int, int, int]) -> None:
    folder.mkdir(exist_ok=True)
    truth = truth_of(heatmap().frame.level0_size, *boxes)
    np.savez_compressed(folder / f"{name}.npz", tumour=truth.mask, downsample=10)


@pytest.mark.parametrize(("denominator", "slides"), [("all", 2), ("normal", 1)])
def test_the_files_of_an_evaluation(tmp_path: Path, denominator: str, slides: int) -> None:
    write_truth(tmp_path / "truth", "a", (400, 400, 1600, 800))
    items = [case("a", 1, t11=1.0, t21=0.9), case("b", 0, t33=1.0), case("c", -1, t11=1.0), case("b", 0, t33=1.0)]
    saver = LocalisationSaver(str(tmp_path), str(tmp_path / "truth"), fp_denominator=denominator, n=20)
    report = run(saver, items)
    assert (report["tumour_slides"], report["normal_slides"], report["failures"]) == (1, 1, [])
    assert report["dice"]["value"] == pytest.approx(0.8)
    assert report["specificity"]["value"] == pytest.approx(47 / 48)
    assert (report["success_strict"]["value"], report["success_lesion"]["value"]) == (0, 1)
    assert (report["froc"]["lesions"], report["froc"]["slides"]) == (1, slides)
    assert max(report["froc"]["false_positives"]) == 1 / slides
    with (tmp_path / "localisation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["slide_id"] for row in rows] == ["a", "b"]
    assert (rows[0]["dice"], rows[0]["lesions_detected"], rows[0]["specificity"]) == ("0.8", "1", "")
    assert (rows[1]["dice"], rows[1]["false_detections"]) == ("", "1")
    saver.raise_failures()


def test_a_positive_slide_without_a_truth_is_named_and_the_others_are_done(tmp_path: Path) -> None:
    write_truth(tmp_path / "truth", "a", (400, 400, 1600, 800))
    write_truth(tmp_path / "truth", "e")
    saver = LocalisationSaver(str(tmp_path), str(tmp_path / "truth"), n=0)
    report = run(saver, [case("x", 1, t11=1.0), case("a", 1, t11=1.0), case("e", 1, t11=1.0)])
    assert report["failures"] == ["e", "x"]
    assert report["tumour_slides"] == 1
    with pytest.raises(CohortError, match="2 slides have no localisation"):
        saver.raise_failures()

"""Maps of several magnifications, against brute force on a toy quadtree and from a real network."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader, MetaTensor
from monai.engines import SupervisedEvaluator

from monai_mil.bags import collate_bags
from monai_mil.errors import CohortError
from monai_mil.heatmaps import Heatmap
from monai_mil.heatmaps.layer import drawing_style
from monai_mil.networks import HAGMIL
from monai_mil.reports import write_report
from monai_mil.savers import DiceSaver, LocalisationSaver, PredictionSaver, TreeHeatmapSaver
from monai_mil.savers.case import Case
from monai_mil.savers.class_map import class_heatmap
from monai_mil.training import FullOutputInferer, prepare_bag_batch
from tests.savers.tree_examples import LEVELS, PLACE, SIZE, TILE, packed_coords, padded, planted_case

CLASSES = ("normal", "tumor")


def run(saver: Any, *items: dict[str, Any]) -> None:
    def step(engine: Engine, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        engine.state.batch = batch
        return [{"pred": item["pred"]} for item in batch]

    engine = Engine(step)
    saver.attach(engine)
    engine.run([list(items)])


def maps_of(tmp_path: Path, item: dict[str, Any], **settings: Any) -> dict[str, Heatmap]:
    saver = TreeHeatmapSaver(str(tmp_path), **settings)
    run(saver, item)
    saver.raise_failures()
    files = sorted((tmp_path / "heatmaps").glob("*.h5"))
    return {path.stem.removeprefix("slide").removeprefix("_"): Heatmap.load(path) for path in files}


def brute_force(scores: np.ndarray, coarse: int) -> np.ndarray:
    """Nested rank of the finest tiles, tile by tile."""
    levels = len(scores)
    starts = [sum(coarse * 4**level for level in range(end)) for end in range(levels)]

    def seen(level: int, tile: int) -> bool:
        return level < levels and bool(np.isfinite(scores[level, starts[level] + tile]))

    def leaf_of(tile: int) -> tuple[int, int]:
        for level in range(levels):
            ancestor = tile // 4 ** (levels - 1 - level)
            if not any(seen(level + 1, 4 * ancestor + child) for child in range(4)):
                return level, ancestor
        raise AssertionError

    finest = range(coarse * 4 ** (levels - 1))
    leaves = sorted(
        {leaf_of(tile) for tile in finest}, key=lambda leaf: (leaf[0], scores[leaf[0], starts[leaf[0]] + leaf[1]])
    )
    values, below = {}, 0.0
    for level, tile in leaves:
        area = 1 / (coarse * 4**level)
        values[level, tile] = below + area / 2
        below += area
    assert below == pytest.approx(1)
    return np.array([values[leaf_of(tile)] for tile in finest])


def test_the_fused_map_is_the_nested_rank_of_every_finest_tile_inside_the_slide(tmp_path: Path) -> None:
    item = planted_case()
    fused = maps_of(tmp_path, item)[""]
    coords, expected = packed_coords()[-96:], brute_force(item["attention_logits"].numpy(), coarse=6)
    inside = coords[:, 0] < SIZE[0]
    assert len(fused) == inside.sum() == 88
    np.testing.assert_array_equal(fused.coords, coords[inside])
    np.testing.assert_allclose(fused.scores, expected[inside], atol=1e-6)
    x, y = fused.coords[fused.scores.argmax()]
    assert x <= PLACE[0] < x + TILE
    assert y <= PLACE[1] < y + TILE
    assert fused.frame.tile_size_level0 == TILE
    assert drawing_style(fused).limits == (0, 1)


def test_every_level_has_a_map_of_what_it_looked_at(tmp_path: Path) -> None:
    item = planted_case(k=2)
    maps = maps_of(tmp_path, item)
    assert set(maps) == {"", "evidence", *(f"level{number}" for number in range(LEVELS))}
    scores, coords = item["attention_logits"], packed_coords()
    for number in range(LEVELS):
        level = maps[f"level{number}"]
        seen = torch.isfinite(scores[LEVELS - 1 - number])
        assert len(level) == (6 if number == 2 else 8)
        assert level.frame.tile_size_level0 == TILE * 2**number
        assert drawing_style(level).scale.measure == "attention"
        assert drawing_style(level).scale.uniform == pytest.approx(1 / int(seen.sum()))
        np.testing.assert_array_equal(level.coords, coords[seen])
        np.testing.assert_allclose(level.scores, torch.softmax(scores[LEVELS - 1 - number][seen], dim=0), rtol=1e-5)
        assert level.threshold is None


@pytest.mark.parametrize(
    ("prob", "points", "called"), [(0.9, None, True), (0.4, None, False), (0.4, (0.3,), True), (0.6, (0.7,), False)]
)
def test_evidence_has_foreground_only_on_a_slide_that_is_called(
    tmp_path: Path, prob: float, points: tuple[float, ...] | None, called: bool
) -> None:
    item = planted_case(prob=prob)
    maps = maps_of(tmp_path, item, classes=CLASSES, operating_points=points, threshold=0.9, formats=("mask",))
    evidence = maps["evidence"]
    seen = torch.isfinite(item["attention_logits"][-1])
    np.testing.assert_allclose(evidence.scores, torch.sigmoid(item["instance_logits"][1, seen]), rtol=1e-5)
    assert evidence.name == "evidence of tumor"
    assert evidence.threshold == (0.5 if called else math.inf)
    assert maps[""].threshold == (0.9 if called or points is None else math.inf)
    masks = {path.name for path in (tmp_path / "heatmaps").glob("*_mask.tif")}
    assert masks == {"slide_mask.tif", "slide_evidence_mask.tif"}


def test_padding_changes_no_map(tmp_path: Path) -> None:
    item = planted_case()
    plain, wide = maps_of(tmp_path / "plain", item), maps_of(tmp_path / "wide", padded(item, 42))
    for name, heatmap in plain.items():
        np.testing.assert_array_equal(heatmap.coords, wide[name].coords)
        np.testing.assert_array_equal(heatmap.scores, wide[name].scores)


def test_glass_is_left_out_unless_it_was_looked_at(tmp_path: Path) -> None:
    item = planted_case()
    glass = torch.ones(len(item["coords"]))
    finest = packed_coords()[-96:]
    seen = np.isfinite(item["attention_logits"][-1, -96:].numpy())
    glass[-96:] = torch.from_numpy((finest[:, 0] > 300) & ~seen)
    glass[-96 + np.flatnonzero(seen)[0]] = 0
    kept = maps_of(tmp_path, {**item, "tissue_fraction": glass})[""]
    expected = (((finest[:, 0] > 300) & (finest[:, 0] < SIZE[0])) | seen).sum()
    assert len(kept) == expected
    assert finest[np.flatnonzero(seen)[0]].tolist() in kept.coords.tolist()


def test_localisation_and_dice_take_the_fused_map(tmp_path: Path) -> None:
    item = planted_case()
    compared = class_heatmap(Case.of(item), None, None)
    fused = maps_of(tmp_path, item)[""]
    np.testing.assert_array_equal(compared.coords, fused.coords)
    np.testing.assert_array_equal(compared.scores, fused.scores)
    attended = Case.of({**item, "attention": item["attention_logits"].softmax(dim=1)})
    attention = class_heatmap(attended, "attention", None)
    assert attention.scores.sum() == pytest.approx(1)
    assert attention.scores.argmax() == fused.scores.argmax()
    (tmp_path / "truth").mkdir()
    mask = np.zeros((50, 70), bool)
    mask[32:38, 13:19] = True
    np.savez(tmp_path / "truth" / "slide.npz", tumour=mask, downsample=10)
    localisation = LocalisationSaver(str(tmp_path), str(tmp_path / "truth"), threshold=0.99, n=0)
    dice = DiceSaver(str(tmp_path), str(tmp_path / "truth"), threshold=0.95, n=0)
    run(localisation, padded(item, 21))
    run(dice, padded(item, 21))
    localisation.raise_failures()
    dice.raise_failures()
    found = json.loads((tmp_path / "localisation.json").read_text())
    assert (found["success_lesion"]["value"], found["dice"]["value"]) == (1, 1)


@pytest.mark.parametrize(
    ("missing", "message"),
    [("attention_logits", "ask the network for its full output"), ("coords", "without 'coords'")],
)
def test_a_case_that_lacks_something_is_named_and_the_others_are_done(
    tmp_path: Path, missing: str, message: str
) -> None:
    broken = {key: value for key, value in planted_case("broken").items() if key != missing}
    saver = TreeHeatmapSaver(str(tmp_path))
    run(saver, broken, planted_case("whole"))
    assert (tmp_path / "heatmaps" / "whole_level2.h5").exists()
    with pytest.raises(CohortError, match=f"broken.*{message}"):
        saver.raise_failures()


def test_two_slides_whose_maps_would_have_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    saver = TreeHeatmapSaver(str(tmp_path))
    run(saver, planted_case("a_level0"), planted_case("a"))
    assert Heatmap.load(tmp_path / "heatmaps" / "a_level0.h5").name == "nested rank"
    assert (tmp_path / "heatmaps" / "a_level1.h5").exists()
    with pytest.raises(CohortError, match="'a_level0' is that of a map of slide 'a_level0'"):
        saver.raise_failures()


def test_a_bag_that_is_not_packed_is_refused(tmp_path: Path) -> None:
    item = planted_case()
    cut = {key: value[..., :-1] for key, value in item.items() if key.startswith(("attention", "instance"))}
    saver = TreeHeatmapSaver(str(tmp_path))
    run(saver, {**item, **cut, "coords": item["coords"][:-1]})
    with pytest.raises(CohortError, match="holds 21 instances for every tile"):
        saver.raise_failures()
    with pytest.raises(ValueError, match="one class"):
        TreeHeatmapSaver(str(tmp_path), class_index="all")


def test_a_real_network_on_a_padded_batch_and_its_report(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = HAGMIL(8, 2, k_train=2, k_eval=2, hidden_dims=(16, 16), instance_channels=8, attention_dim=4).eval()
    items = []
    for name, columns in (("wide", 3), ("narrow", 1)):
        coords = torch.from_numpy(packed_coords(columns))
        meta = {**planted_case(name)["image"].meta, "level0_size": (columns * 256, 500)}
        image = MetaTensor(torch.randn(8, len(coords)), meta=meta)
        items.append({"image": image, "coords": coords, "label": columns // 3, "slide_id": name, "patient_id": name})
    savers = [
        TreeHeatmapSaver(str(tmp_path), formats=("png", "geojson", "tiff"), classes=CLASSES, threshold=0.9),
        PredictionSaver(str(tmp_path), classes=CLASSES),
    ]
    SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(items, batch_size=2, collate_fn=collate_bags),
        network=network,
        inferer=FullOutputInferer(),
        prepare_batch=prepare_bag_batch,
        val_handlers=savers,
    ).run()
    savers[0].raise_failures()
    for item in items:
        name = item["slide_id"]
        with torch.no_grad():
            output = network(item["image"][None], return_dict=True)
        scores = output["attention_logits"][0].numpy()
        coarse = len(item["coords"]) // 21
        fused = Heatmap.load(tmp_path / "heatmaps" / f"{name}.h5")
        np.testing.assert_allclose(fused.scores, brute_force(scores, coarse), atol=1e-6)
        assert (tmp_path / "heatmaps" / f"{name}_level1.png").exists()
    page = write_report(tmp_path / "predictions.csv", tmp_path / "heatmaps", tmp_path / "report.html", resamples=10)
    text = page.read_text()
    assert "nested rank, coloured by score, outlined above 0.9" in text
    assert text.count('class="heat"') == 2

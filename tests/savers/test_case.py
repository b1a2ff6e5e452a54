"""One reader of cases: every handler knows the same item by the same name, without its padding."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from monai_mil import savers
from monai_mil.errors import CohortError
from monai_mil.heatmaps import SlideFrame
from monai_mil.savers import Case, CaseSaver, HeatmapSaver, ReportSaver, RiskSaver, SliceReportSaver, SurvivalSaver
from monai_mil.slides import write_pyramid


def item(name: str, risk: float = 0.0, count: int = 4, **keys: Any) -> dict[str, Any]:
    """A slide that is named in its image's meta data only, as a data list without a table gives it."""
    image = MetaTensor(torch.zeros(2, count), meta={"slide_id": name})
    outputs = {"pred": torch.tensor([0.3, 0.7]), "risk": torch.tensor(risk), "survival": torch.tensor([0.6, 0.2])}
    tiles = {"scores": torch.linspace(0, 1, count)[None], "instance_labels": torch.tensor([0, 1] * (count // 2))}
    return {"image": image, "label": torch.tensor([4.0 - risk, 1.0])} | outputs | tiles | keys


def run(items: list[dict[str, Any]], *handlers: Any) -> None:
    engine = Engine(lambda engine, batch: batch)
    for handler in handlers:
        handler.attach(engine)
    engine.run([items])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_cases_named_in_their_image_alone_are_two_patients_to_every_handler(tmp_path: Path) -> None:
    items = [item("A", 1.0), item("B", 2.0)]
    handlers = [SurvivalSaver(tmp_path, n=0), SliceReportSaver(tmp_path, n=0), RiskSaver(str(tmp_path), [0, 2, 9])]
    run(items, *handlers)
    assert [row["patient_id"] for row in rows(tmp_path / "survival.csv")] == ["A", "B"]
    assert [row["risk"] for row in rows(tmp_path / "survival.csv")] == ["1", "2"]
    assert json.loads((tmp_path / "survival.json").read_text())["patients"] == 2
    assert json.loads((tmp_path / "slice_metrics.json").read_text())["scans"] == 2
    assert [row["slide_id"] for row in rows(tmp_path / "predictions.csv")] == ["A", "B"]


@pytest.mark.parametrize(
    ("keys", "meta", "expected"),
    [
        ({"scan_id": "s", "slide_id": "t"}, {"scan_id": "u", "slide_id": "v"}, ("s", "scan_id")),
        ({"slide_id": "t"}, {"scan_id": "u", "slide_id": "v"}, ("t", "slide_id")),
        ({}, {"scan_id": "u", "slide_id": "v"}, ("u", "scan_id")),
        ({"slide_id": ""}, {"slide_id": "v"}, ("v", "slide_id")),
        ({}, {"slide_id": "v", "scan_frame": "{}"}, ("v", "scan_id")),
        ({"slide_id": 7}, {}, ("7", "slide_id")),
    ],
)
def test_there_is_one_precedence_of_names(
    keys: dict[str, Any], meta: dict[str, str], expected: tuple[str, str]
) -> None:
    case = Case.of({"image": MetaTensor(torch.zeros(2, 3), meta=meta), **keys})
    assert (case.name, case.id_column) == expected
    assert case.patient_id == expected[0]


@pytest.mark.parametrize("handler", [SurvivalSaver, SliceReportSaver, HeatmapSaver])
def test_a_case_without_a_name_is_refused_by_every_handler(tmp_path: Path, handler: Any) -> None:
    nameless = item("A")
    nameless["image"] = torch.zeros(2, 4)
    with pytest.raises(CohortError, match="a case of the engine has no 'scan_id' or 'slide_id'"):
        run([nameless], handler(tmp_path))


def test_every_handler_that_writes_what_cases_say_is_built_on_one_base() -> None:
    handlers = [
        getattr(savers, name) for name in savers.__all__ if name.endswith("Saver") or name.endswith("Stability")
    ]
    assert len(handlers) > 10
    assert [handler for handler in handlers if not issubclass(handler, CaseSaver)] == []


def padded_case(**keys: Any) -> Case:
    """Three real instances and two of padding."""
    return Case.of({"slide_id": "a", "mask": torch.tensor([True, True, True, False, False]), **keys})


@pytest.mark.parametrize("key", ["coords", "instance_labels", "attention", "heatmap", "scores", "token_mask"])
def test_padding_is_removed_where_the_table_of_keys_says_the_instances_lie(key: str) -> None:
    shapes = {"coords": (5, 2), "instance_labels": (5,), "attention": (5, 5), "heatmap": (2, 5, 5, 5)}
    shape = shapes.get(key, (5, 3, 3) if key == "token_mask" else (1, 5))
    values = np.random.default_rng(0).random(shape)
    found = padded_case(**{key: torch.from_numpy(values)}).values(key)
    assert found is not None
    axis = 0 if key in ("coords", "instance_labels", "token_mask") else 1
    np.testing.assert_array_equal(found, np.take(values, [0, 1, 2], axis=axis))


def test_what_has_no_padding_any_more_stays_and_what_fits_nothing_is_refused() -> None:
    assert padded_case(attention=torch.ones(1, 3)).values("attention").tolist() == [[1, 1, 1]]
    with pytest.raises(CohortError, match="slide 'a': 'attention' has 4 instances, the padded bag 5 of which 3 are"):
        padded_case(attention=torch.ones(1, 4)).values("attention")


def test_a_key_that_is_not_listed_loses_its_padding_or_is_refused() -> None:
    own = torch.arange(10.0).reshape(2, 5)
    assert padded_case(own=own).values("own").tolist() == own[:, :3].tolist()
    assert padded_case(own=own[:, :4]).values("own").tolist() == own[:, :4].tolist(), "nothing in it is so long"
    with pytest.raises(CohortError, match=r"axes \[0, 1\] of 'own' \[5, 5\] are as long as the padded bag"):
        padded_case(own=torch.ones(5, 5)).values("own")


def test_what_a_foreign_bag_leaves_out_is_read_from_the_slide(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_pyramid(path, np.full((96, 160, 3), 200, np.uint8), mpp=0.5)
    known = {"slide_id": "a", "tile_size_level0": torch.tensor(64.0)}

    def frame(**meta: Any) -> SlideFrame:
        return Case.of({"image": MetaTensor(torch.zeros(2, 3), meta=known | meta)}).frame

    read = frame(slide_path=str(path))
    assert (read.level0_size, read.mpp, read.tile_size_level0) == ((160, 96), pytest.approx(0.5), 64.0)
    given = frame(slide_path=str(path), mpp=0.25)
    assert (given.level0_size, given.mpp) == ((160, 96), 0.25)
    with pytest.raises(
        CohortError, match=r"slide 'a': its bag does not say mpp, level0_size; embed it with .*, or name"
    ):
        frame(slide_path=str(tmp_path / "missing.tif"))


def test_handlers_need_items_one_by_one(tmp_path: Path) -> None:
    engine = Engine(lambda engine, batch: {"pred": torch.zeros(2, 2)})
    RiskSaver(str(tmp_path), [0, 2, 9]).attach(engine)
    with pytest.raises(ValueError, match="savers need decollated items: keep decollate=True of the evaluator"):
        engine.run([[{"slide_id": "a"}, {"slide_id": "b"}]])


def test_a_case_that_comes_twice_counts_once_in_the_metrics(tmp_path: Path) -> None:
    cases = [
        {"slide_id": name, "pred": torch.tensor([0.4, 0.6]), "label": index % 2} for index, name in enumerate("abcd")
    ]
    run(cases + cases[:2], ReportSaver(tmp_path, ["normal", "tumor"], n=0))
    assert json.loads((tmp_path / "metrics.json").read_text())["cases"] == 4


def test_the_whole_output_of_a_network_is_read_as_its_answer() -> None:
    output = {"logits": torch.tensor([0.0, np.log(3)]), "attention": torch.ones(1, 2)}
    case = Case.of({"slide_id": "a", "pred": output})
    np.testing.assert_allclose(case.probabilities(multi_label=False), [0.25, 0.75], rtol=1e-6)
    np.testing.assert_allclose(case.probabilities(multi_label=True), [0.5, 0.75], rtol=1e-6)
    assert case.values("attention").tolist() == [[1, 1]]
    with pytest.raises(CohortError, match="slide 'a': no 'pred' among its keys"):
        Case.of({"slide_id": "a"}).probabilities(multi_label=False)

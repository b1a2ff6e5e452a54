import csv
import json
import logging
import math

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator

from monai_mil.bags import LoadBagd, collate_bags
from monai_mil.cohorts import read_cohort
from monai_mil.errors import CohortError, OutputError, SettingsError
from monai_mil.heatmaps import Heatmap
from monai_mil.networks import ABMIL
from monai_mil.savers import HeatmapSaver, PredictionSaver
from monai_mil.savers.case import Case
from monai_mil.savers.prediction import read_prediction
from monai_mil.savers.scores import read_scores
from monai_mil.synthetic import make_bag_cohort
from monai_mil.training import FullOutputInferer, prepare_bag_batch

CLASSES = ("normal", "tumor")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return read_cohort(make_bag_cohort(tmp_path_factory.mktemp("cohort"), num_bags=11, width=16, bag_size=(9, 40)))


def evaluate(cohort, handlers, network=None):
    items = cohort.datalist(bag_dir=cohort.source.parent / "bags")
    network = network or ABMIL(16, 2)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(items, LoadBagd()), batch_size=2, collate_fn=collate_bags),
        network=network,
        inferer=FullOutputInferer(),
        prepare_batch=prepare_bag_batch,
        val_handlers=handlers,
    )
    evaluator.run()
    return network, [LoadBagd()(item) for item in items]


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_files_hold_what_the_network_said_of_each_bag(cohort, tmp_path):
    savers = [
        HeatmapSaver(str(tmp_path), formats=["png", "geojson", "tiff"], classes=CLASSES),
        PredictionSaver(str(tmp_path), classes=CLASSES),
    ]
    network, bags = evaluate(cohort, savers)
    table = rows(tmp_path / "predictions.csv")
    assert [row["slide_id"] for row in table] == [slide.slide_id for slide in cohort.slides]
    for row, bag in zip(table, bags, strict=True):
        with torch.no_grad():
            output = network(bag["image"][None], return_dict=True)
        prob = output["logits"].softmax(dim=1)[0]
        assert float(row["prob_tumor"]) == pytest.approx(float(prob[1]), abs=1e-5)
        assert row["pred"] == CLASSES[int(prob.argmax())]
        assert row["label"] == CLASSES[bag["label"]]
        assert row["patient_id"] == bag["patient_id"]
        heatmap = Heatmap.load(tmp_path / "heatmaps" / f"{row['slide_id']}.h5")
        np.testing.assert_allclose(heatmap.scores, output["attention"][0, 0], rtol=1e-4, atol=1e-7)
        np.testing.assert_array_equal(heatmap.coords, bag["coords"])
        assert heatmap.frame.tile_size_level0 == bag["image"].meta["tile_size_level0"]
        assert heatmap.attributes["prediction"] == row["pred"]
    written = {path.suffix for path in (tmp_path / "heatmaps").iterdir()}
    assert written == {".h5", ".png", ".geojson", ".tif"}
    assert not list(tmp_path.glob("*partial*"))


def test_savers_are_made_from_a_bundle_s_json(tmp_path):
    parser = ConfigParser(
        {
            "handlers": [
                {"_target_": "monai_mil.savers.HeatmapSaver", "output_dir": str(tmp_path), "formats": ["png"]},
                {"_target_": "monai_mil.savers.PredictionSaver", "output_dir": str(tmp_path), "classes": ["a", "b"]},
            ]
        }
    )
    made = parser.get_parsed_content("handlers")
    assert [type(handler) for handler in made] == [HeatmapSaver, PredictionSaver]


def test_one_failing_export_is_reported_and_the_rest_is_written(cohort, tmp_path, caplog):
    blocked = cohort.slides[1].slide_id
    (tmp_path / "heatmaps" / f"{blocked}.png").mkdir(parents=True)
    saver = HeatmapSaver(str(tmp_path), formats=["png"])
    with caplog.at_level(logging.ERROR):
        evaluate(cohort, [saver])
    assert list(saver.failures) == [blocked]
    assert f"no complete heatmap of 1 slides: {blocked}" in caplog.text
    assert len([path for path in (tmp_path / "heatmaps").glob("*.png") if path.is_file()]) == len(cohort) - 1
    with pytest.raises(CohortError, match=rf"heatmaps of 1 slides failed.*\n  {blocked} \(png\)"):
        saver.raise_failures()


def test_rows_of_a_killed_run_stand_in_the_partial_table(cohort, tmp_path):
    class Killed(BaseException):
        pass

    class Network(ABMIL):
        def describe(self, image, mask):
            calls.append(image.shape)
            if len(calls) == 3:
                raise Killed
            return super().describe(image, mask)

    calls = []
    with pytest.raises(Killed):
        evaluate(cohort, [PredictionSaver(str(tmp_path), classes=CLASSES)], Network(16, 2))
    assert not (tmp_path / "predictions.csv").exists()
    partial = rows(tmp_path / "predictions.partial.csv")
    assert [row["slide_id"] for row in partial] == [slide.slide_id for slide in cohort.slides[:4]]


def test_a_table_that_cannot_be_written_is_named(cohort, tmp_path):
    saver = PredictionSaver(str(tmp_path / "out"), classes=CLASSES)
    saver.partial.mkdir(parents=True)
    engine = Engine(lambda engine, batch: [{"pred": torch.tensor([0.5, 0.5]), "slide_id": "a"}])
    engine.add_event_handler(Events.ITERATION_COMPLETED, saver)
    with pytest.raises(OutputError, match=r"predictions\.partial\.csv' cannot be written"):
        engine.run([0])


def case(**changes):
    meta = {"slide_id": "a", "slide_path": "", "level0_size": (500, 400), "mpp": 0.5, "tile_size_level0": 100.0}
    image = MetaTensor(torch.zeros(4, 3), meta=meta | changes.pop("meta", {}))
    pred = torch.tensor([0.2, 0.8])
    return {"image": image, "coords": torch.tensor([[0, 0], [100, 0], [0, 0]]), "pred": pred} | changes


def test_padding_is_removed():
    item = case(attention=torch.tensor([[0.5, 0.5, 0.0], [0.1, 0.9, 0.0]]), mask=torch.tensor([True, True, False]))
    name, scores, coords = read_scores(Case.of(item), None, None)
    assert name == "attention"
    np.testing.assert_allclose(scores, [0.3, 0.7], rtol=1e-6)
    assert coords.tolist() == [[0, 0], [100, 0]]


def test_rows_that_are_classes_give_the_most_probable_class_s_or_the_chosen_one_s():
    item = case(heatmap=torch.arange(2 * 3 * 4.0).reshape(2, 3, 2, 2), attention=torch.zeros(1, 3))
    for chosen, expected in ((None, 12.0), (0, 0.0)):
        name, scores, _ = read_scores(Case.of(item), None, chosen)
        assert (name, scores.shape, scores[0, 0, 0]) == ("heatmap", (3, 2, 2), expected)
    with pytest.raises(CohortError, match="no class 2 among the 2 rows of 'heatmap'"):
        read_scores(Case.of(item), None, 2)


def test_heads_are_averaged_whatever_class_is_chosen():
    item = case(attention=torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.9, 0.0]]))
    np.testing.assert_allclose(read_scores(Case.of(item), None, 1)[1], [0.3, 0.575, 0.125])


@pytest.mark.parametrize("unknown", [{"mpp": float("nan")}, {"level0_size": (0, 0)}, {"tile_size_level0": None}])
def test_a_bag_without_its_frame_is_named_with_what_is_missing(unknown):
    with pytest.raises(CohortError, match=f"slide 'a': its bag does not say {next(iter(unknown))}"):
        _ = Case.of(case(meta=unknown)).frame


def test_multi_label_rows_keep_what_is_unknown():
    item = case(pred=torch.tensor([0.9, 0.6, 0.1]), label=torch.tensor([1.0, float("nan"), 0.0]))
    row = read_prediction(Case.of(item), ("x", "y", "z"), True).row()
    assert (row["pred"], row["label"]) == ("x;y", "x")
    assert [row[f"label_{name}"] for name in "xyz"] == ["1", "", "0"]


def test_one_sigmoid_output_is_the_second_class():
    row = read_prediction(Case.of(case(pred=torch.tensor([0.75]), label=-1)), CLASSES, False).row()
    assert (row["pred"], row["prob_normal"], row["label"]) == ("tumor", "0.25", "")


@pytest.mark.parametrize(
    ("pred", "message"), [([0.1, 0.2, 0.7], "3 predictions for the 2 classes"), ([3.0, -2.0], "no probabilities")]
)
def test_predictions_that_do_not_fit_are_refused(pred, message):
    with pytest.raises(CohortError, match=message):
        read_prediction(Case.of(case(pred=torch.tensor(pred))), CLASSES, False)


def test_a_slide_id_that_leaves_the_folder_is_refused():
    with pytest.raises(CohortError, match="cannot name a file"):
        read_prediction(Case.of(case(slide_id="../a")), CLASSES, False)


def test_an_unknown_format_is_named():
    with pytest.raises(ValueError, match="unknown heatmap formats pdf; choose from png, geojson, tiff, mask"):
        HeatmapSaver("out", formats=["pdf"])


def test_a_mask_needs_a_threshold():
    with pytest.raises(SettingsError, match='the format "mask" needs a threshold'):
        HeatmapSaver("out", formats=["mask"])


def save_case(saver, item):
    engine = Engine(lambda engine, batch: [item])
    engine.add_event_handler(Events.ITERATION_COMPLETED, saver)
    engine.run([0])
    assert not saver.failures
    return Heatmap.load(saver.folder / "a.h5")


def token_case(**changes):
    heatmap = torch.full((1, 3, 4, 4), 0.1)
    heatmap[0, 1] = 0.8
    coords = torch.tensor([[0, 0], [100, 0], [200, 0]])
    return case(pred=torch.tensor([0.2]), heatmap=heatmap, coords=coords, threshold=torch.tensor([0.45])) | changes


@pytest.mark.parametrize(("source", "expected"), [("network", 0.45), (0.7, 0.7), ("otsu", 0.1), (None, None)])
def test_all_formats_of_a_token_map_are_written_with_its_threshold(tmp_path, source, expected):
    formats = ["png", "geojson", "tiff"] + (["mask"] if source else [])
    saved = save_case(HeatmapSaver(str(tmp_path), formats, threshold=source), token_case())
    assert saved.threshold == (None if expected is None else pytest.approx(expected, abs=0.01))
    np.testing.assert_array_equal(saved.scores, token_case()["heatmap"][0])
    names = {path.name for path in (tmp_path / "heatmaps").iterdir()}
    assert names == {"a.h5", "a.png", "a.geojson", "a.tif"} | ({"a_mask.tif"} if source else set())
    features = json.loads((tmp_path / "heatmaps" / "a.geojson").read_text())["features"]
    areas = [feature["properties"]["measurements"].get("area mm^2") for feature in features]
    assert [area for area in areas if area] == ([pytest.approx(100 * 100 * 0.25e-6)] if source else [])


def test_a_slide_below_its_operating_point_keeps_its_scores_but_no_foreground(tmp_path):
    saver = HeatmapSaver(str(tmp_path), ["mask"], threshold="network", operating_points=[0.3], classes=CLASSES)
    saved = save_case(saver, token_case())
    assert saved.threshold == math.inf
    assert saved.attributes["prediction"] == "normal"
    np.testing.assert_array_equal(saved.scores, token_case()["heatmap"][0])
    assert save_case(saver, token_case(pred=torch.tensor([0.31]))).threshold == pytest.approx(0.45)


def label_case(**changes):
    """Three labels; tile 0 is bright for the first, tile 1 for the second, none for the third."""
    heatmap = torch.full((3, 3, 4, 4), 0.1)
    heatmap[0, 0], heatmap[1, 1] = 0.7, 0.8
    thresholds = torch.tensor([0.4, 0.5, 0.6])
    return token_case(pred=torch.tensor([0.9, 0.2, 0.6]), heatmap=heatmap, threshold=thresholds, **changes)


def run(saver, item):
    engine = Engine(lambda engine, batch: [item])
    saver.attach(engine)
    engine.run([0])


def test_every_label_s_map_is_written_with_its_own_threshold_and_gate(tmp_path):
    options = {"multi_label": True, "threshold": "network", "operating_points": [0.5, 0.5, 0.5]}
    saver = HeatmapSaver(
        str(tmp_path), ["png", "geojson", "tiff", "mask"], class_index="all", classes=["x", "y z", "w"], **options
    )
    run(saver, label_case())
    saver.raise_failures()
    written = {path.name for path in (tmp_path / "heatmaps").iterdir()}
    endings = (".h5", ".png", ".geojson", ".tif", "_mask.tif")
    assert written == {f"a_{name}{ending}" for name in ("x", "y z", "w") for ending in endings}
    for index, (name, threshold) in enumerate([("x", 0.4), ("y z", math.inf), ("w", 0.6)]):
        saved = Heatmap.load(tmp_path / "heatmaps" / f"a_{name}.h5")
        np.testing.assert_array_equal(saved.scores, label_case()["heatmap"][index])
        assert saved.name == f"heatmap {name}"
        assert saved.threshold == pytest.approx(threshold)
        features = json.loads((tmp_path / "heatmaps" / f"a_{name}.geojson").read_text())["features"]
        regions = [one for one in features if one["properties"]["objectType"] == "annotation"]
        assert len(regions) == (name == "x"), "y z is gated, w has nothing above its threshold"


def test_all_of_one_map_is_one_file_and_classes_without_names_are_numbered(tmp_path):
    run(HeatmapSaver(str(tmp_path / "one"), class_index="all", classes=CLASSES), token_case())
    assert [path.name for path in (tmp_path / "one" / "heatmaps").iterdir()] == ["a.h5"]
    run(HeatmapSaver(str(tmp_path / "many"), class_index="all"), label_case())
    assert sorted(path.name for path in (tmp_path / "many" / "heatmaps").iterdir()) == ["a_0.h5", "a_1.h5", "a_2.h5"]


def test_a_failing_label_is_named_and_the_others_are_written(tmp_path):
    (tmp_path / "heatmaps" / "a_y.png").mkdir(parents=True)
    saver = HeatmapSaver(str(tmp_path), ["png"], class_index="all", classes=["x", "y", "z"])
    run(saver, label_case())
    assert (tmp_path / "heatmaps" / "a_z.png").is_file()
    with pytest.raises(CohortError, match=r"of 1 slides failed.*\n  a \(y png\)"):
        saver.raise_failures()


def test_a_class_that_cannot_name_a_file_is_refused():
    with pytest.raises(ValueError, match="class 'DCIS/ADH' cannot name the files"):
        HeatmapSaver("out", class_index="all", classes=["DCIS/ADH", "FEA"])


def test_a_mask_of_tokens_removes_padded_tiles_only():
    mask = torch.ones(3, 4, 4, dtype=torch.bool)
    mask[1, 2:], mask[2] = False, False
    _, scores, coords = read_scores(Case.of(token_case(mask=mask)), None, None)
    assert scores.shape == (2, 4, 4)
    assert coords.tolist() == [[0, 0], [100, 0]]


@pytest.mark.parametrize(
    ("pred", "points", "multi_label", "text", "columns"),
    [
        ([0.2], [0.15], False, "tumor", ["0.85", "0.15"]),
        ([0.2], [0.25], False, "normal", ["0.75", "0.25"]),
        ([0.8, 0.2], [0.85, 0.15], False, "tumor", ["0.85", "0.15"]),
        ([0.4, 0.2], [0.3, 0.1], True, "normal;tumor", ["0.3", "0.1"]),
        ([0.7, 0.6], [0.8, 0.7], True, "", ["0.8", "0.7"]),
    ],
)
def test_the_table_calls_classes_from_their_operating_points_on(tmp_path, pred, points, multi_label, text, columns):
    saver = PredictionSaver(str(tmp_path), CLASSES, multi_label, operating_points=points)
    engine = Engine(lambda engine, batch: [case(pred=torch.tensor(pred))])
    saver.attach(engine)
    engine.run([0])
    (row,) = rows(tmp_path / "predictions.csv")
    assert row["pred"] == text
    assert [row[f"operating_point_{name}"] for name in CLASSES] == columns


def test_operating_points_of_another_network_are_refused():
    with pytest.raises(CohortError, match="slide 'a': 3 operating points for 2 predictions"):
        read_prediction(Case.of(case(slide_id="a")), CLASSES, False, [0.1, 0.2, 0.3])

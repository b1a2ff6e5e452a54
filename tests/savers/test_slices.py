import csv
import logging

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator

from monai_mil.bags import LoadBagd, collate_bags
from monai_mil.cohorts import read_cohort
from monai_mil.errors import CohortError, SettingsError
from monai_mil.heatmaps import ScanHeatmap, otsu
from monai_mil.networks import ABMIL
from monai_mil.networks.blocks.moments import attention_moments
from monai_mil.reports import write_report
from monai_mil.savers import HeatmapSaver, PredictionSaver, SliceSaver
from monai_mil.savers.case import Case
from monai_mil.savers.prediction import read_prediction
from monai_mil.scans import Depth, load_scan
from monai_mil.synthetic import ShiftedMean, make_scan_cohort, make_shifted_mean_cohort
from monai_mil.training import FullOutputInferer, prepare_bag_batch
from tests.heatmaps.examples import scan_frame

CLASSES = ("negative", "positive")


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def case(frame=None, order=None, padding=3, heads=1, **changes):
    """A decollated case as an evaluator gives it: padded, the slices in ``order``."""
    frame = frame or scan_frame()
    n = len(frame)
    order = np.arange(n) if order is None else order
    attention = torch.from_numpy(np.random.default_rng(0).random((heads, n))).float()
    attention = attention / attention.sum(dim=1, keepdim=True)
    coords = torch.from_numpy(np.stack([order, 0 * order], axis=1))
    item = {
        "image": MetaTensor(torch.zeros(4, n + padding), meta={"scan_frame": frame.to_json(), "slide_id": "scan"}),
        "scan_id": frame.scan_id,
        "coords": torch.nn.functional.pad(coords, (0, 0, 0, padding)),
        "attention": torch.nn.functional.pad(attention[:, order], (0, padding)),
        "mask": torch.arange(n + padding) < n,
        "pred": torch.tensor([0.75]),
    }
    return attention.numpy(), item | changes


def save(folder, items, **options):
    saver = SliceSaver(str(folder), **({"formats": (), "classes": CLASSES} | options))
    engine = Engine(lambda engine, item: [item])
    saver.attach(engine)
    engine.run(items)
    return saver


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Scans of different length through MONAI's evaluator, in padded batches of two."""
    folder = tmp_path_factory.mktemp("run")
    cohort = read_cohort(make_shifted_mean_cohort(folder / "cohort", ShiftedMean(width=8), scans=(1, 1, 5)))
    items = cohort.datalist("test", bag_dir=folder / "cohort" / "bags")
    network = ABMIL(8, 1)
    loader = DataLoader(Dataset(items, LoadBagd(extras=("instance_labels",))), batch_size=2, collate_fn=collate_bags)
    SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=loader,
        network=network,
        inferer=FullOutputInferer(),
        prepare_batch=prepare_bag_batch,
        val_handlers=[SliceSaver(str(folder), classes=CLASSES), PredictionSaver(str(folder), classes=CLASSES)],
    ).run()
    bags = [LoadBagd(extras=("instance_labels",))(item) for item in items]
    return folder, network, bags


def test_the_tables_hold_what_the_network_said_of_each_slice(evaluated):
    folder, network, bags = evaluated
    table = rows(folder / "scans.csv")
    assert [row["scan_id"] for row in table] == [bag["scan_id"] for bag in bags]
    assert len({bag["image"].shape[1] for bag in bags}) > 1, "padding is part of this test"
    for row, bag in zip(table, bags, strict=True):
        with torch.no_grad():
            output = network(bag["image"][None], return_dict=True)
        attention = output["attention"][0, 0].numpy()
        slices = rows(folder / "slices" / f"{bag['scan_id']}.csv")
        assert [int(line["slice"]) for line in slices] == list(range(1, len(attention) + 1))
        np.testing.assert_allclose([float(line["score"]) for line in slices], attention, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose([float(line["attention"]) for line in slices], attention, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose([float(line["position_mm"]) for line in slices], bag["positions_mm"], atol=1e-3)
        assert [int(line["label"]) for line in slices] == bag["instance_labels"].tolist()
        center, width = attention_moments(output["attention"], bag["positions_mm"])
        assert float(row["attention_center_mm"]) == pytest.approx(float(center), abs=1e-3)
        assert float(row["attention_width_mm"]) == pytest.approx(float(width), abs=1e-3)
        assert int(row["highest_slice"]) == attention.argmax() + 1
        assert float(row["prob_positive"]) == pytest.approx(float(output["logits"].sigmoid()), abs=1e-5)


def test_predictions_name_scans_and_the_report_shows_them(evaluated):
    folder, _, bags = evaluated
    table = rows(folder / "predictions.csv")
    assert next(iter(table[0])) == "scan_id"
    assert [row["scan_id"] for row in table] == [bag["scan_id"] for bag in bags]
    page = write_report(
        folder / "predictions.csv", folder / "heatmaps", folder / "report.html", resamples=50
    ).read_text()
    assert "<h2>Scans</h2>" in page
    assert "5 scans, 5 labelled" in page, "no patients: their ids are only the scans' names"
    assert "slide" not in page.split("<main>")[1].split("<script>")[0].replace('class="slide', "").replace(
        '"slides"', ""
    )
    assert page.count('alt="Slice scores of ') == 5
    assert page.count("its file or folder was not found; give the path of the scan): scores only.") == 5


def test_scans_that_are_not_at_hand_have_everything_but_the_montage(evaluated):
    folder, _, bags = evaluated
    names = {path.name for path in (folder / "heatmaps").iterdir()}
    assert names == {f"{bag['scan_id']}{end}" for bag in bags for end in (".h5", "_curve.png", ".nii.gz")}


def test_a_raw_series_has_its_montage_and_its_uids(tmp_path):
    cohort = make_scan_cohort(tmp_path / "cohort", num_scans=4, slices=(12, 12), size=64, fractions=(1, 0, 0))
    frame = load_scan(next((cohort.parent / "scans").iterdir())).frame
    saver = save(tmp_path, [case(frame)[1]], formats=("montage",), window="lung", slices=3)
    saver.raise_failures()
    assert (tmp_path / "heatmaps" / f"{frame.scan_id}_montage.png").is_file()
    assert [line["sop_uid"] for line in rows(tmp_path / "slices" / f"{frame.scan_id}.csv")] == list(frame.sop_uids)
    heatmap = ScanHeatmap.load(tmp_path / "heatmaps" / f"{frame.scan_id}.h5")
    assert heatmap.attributes["window"] == "-600/1500"
    (row,) = rows(tmp_path / "scans.csv")
    assert row["highest_sop_uid"] == frame.sop_uids[heatmap.peak]

    (tmp_path / "predictions.csv").write_text(
        f"scan_id,pred,prob_negative,prob_positive,remarks\n{frame.scan_id},positive,0,1,3 slices stored twice\n"
    )
    page = write_report(tmp_path / "predictions.csv", tmp_path / "heatmaps", tmp_path / "a.html", tiles=3).read_text()
    assert "Remarks of the reader: 3 slices stored twice" in page
    assert '<td class="small">3 slices stored twice</td>' in page
    assert "window (centre/width) -600/1500 HU" in page
    assert page.count("data:image/jpeg;base64,") == 1


def test_slices_in_another_order_come_back_in_the_scan_s(tmp_path):
    order = np.random.default_rng(1).permutation(10)
    labels = torch.cat([torch.from_numpy((order == 4).astype(int)), torch.full((3,), -1)])
    attention, item = case(order=order, instance_labels=labels)
    save(tmp_path, [item]).raise_failures()
    heatmap = ScanHeatmap.load(tmp_path / "heatmaps" / "scan.h5")
    np.testing.assert_allclose(heatmap.scores, attention[0], rtol=1e-6)
    np.testing.assert_allclose(heatmap.attention, attention, rtol=1e-6)
    assert heatmap.labels.tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0, 0]


def test_every_head_has_its_columns_and_the_score_is_their_mean(tmp_path):
    attention, item = case(heads=2)
    save(tmp_path, [item]).raise_failures()
    slices = rows(tmp_path / "slices" / "scan.csv")
    for column, expected in (
        ("attention_1", attention[0]),
        ("attention_2", attention[1]),
        ("score", attention.mean(0)),
    ):
        np.testing.assert_allclose([float(line[column]) for line in slices], expected, rtol=1e-5)
    (row,) = rows(tmp_path / "scans.csv")
    centers = [float(row[f"attention_center_mm{end}"]) for end in ("", "_1", "_2")]
    assert centers[0] == pytest.approx((centers[1] + centers[2]) / 2, abs=1e-3)
    assert centers[1] != centers[2]


def test_scores_that_differ_by_class_have_a_column_each(tmp_path):
    scores = torch.arange(2 * 13.0).reshape(2, 13)
    _, item = case(instance_scores=scores, pred=torch.tensor([0.9, 0.1]))
    save(tmp_path, [item], name="evidence").raise_failures()
    slices = rows(tmp_path / "slices" / "scan.csv")
    assert [float(line["score_positive"]) for line in slices] == list(range(13, 23))
    heatmap = ScanHeatmap.load(tmp_path / "heatmaps" / "scan.h5")
    assert heatmap.scores.tolist() == list(range(13, 23)), "the finding is drawn, on a scan without it too"
    assert heatmap.name == "evidence"


def test_spatial_scores_are_kept_and_their_highest_cell_is_the_slice_s(tmp_path):
    scores = torch.rand(1, 13, 2, 3)
    _, item = case(heatmap=scores)
    save(tmp_path, [item], formats=("curve", "nifti"), threshold=0.5).raise_failures()
    heatmap = ScanHeatmap.load(tmp_path / "heatmaps" / "scan.h5")
    np.testing.assert_array_equal(heatmap.scores, scores[0, :10])
    assert (heatmap.name, heatmap.threshold) == ("heatmap", 0.5)
    slices = rows(tmp_path / "slices" / "scan.csv")
    np.testing.assert_allclose([float(line["score"]) for line in slices], scores[0, :10].amax(dim=(1, 2)), rtol=1e-5)


def test_every_label_s_maps_of_a_scan_are_written_and_the_tables_tell_of_the_most_probable(tmp_path):
    maps = torch.full((2, 13, 2, 3), 0.1)
    maps[0, 3, 0, 0], maps[1, 7, 1, 2] = 0.6, 0.9
    _, item = case(heatmap=maps, pred=torch.tensor([0.9, 0.2]), threshold=torch.tensor([0.3, 0.4]))
    item["label"] = torch.tensor([1.0, float("nan")])
    options = {"multi_label": True, "class_index": "all", "operating_points": [0.5, 0.5], "threshold": "network"}
    save(tmp_path, [item], formats=("curve", "nifti", "mask"), **options).raise_failures()
    endings = (".h5", "_curve.png", ".nii.gz", "_mask.nii.gz")
    written = {path.name for path in (tmp_path / "heatmaps").iterdir()}
    assert written == {f"scan_{name}{ending}" for name in CLASSES for ending in endings}
    first, second = (ScanHeatmap.load(tmp_path / "heatmaps" / f"scan_{name}.h5") for name in CLASSES)
    np.testing.assert_array_equal(second.scores, maps[1, :10])
    assert (first.threshold, second.threshold) == (pytest.approx(0.3), np.inf)
    assert second.name == "heatmap positive"
    assert rows(tmp_path / "scans.csv")[0]["highest_slice"] == "4"
    assert [float(line["score_positive"]) for line in rows(tmp_path / "slices" / "scan.csv")][7] == pytest.approx(0.9)
    write_predictions = Engine(lambda engine, item: [item])
    PredictionSaver(str(tmp_path), CLASSES, multi_label=True).attach(write_predictions)
    write_predictions.run([item])
    page = write_report(tmp_path / "predictions.csv", tmp_path / "heatmaps", tmp_path / "a.html").read_text()
    assert "<h3>scan · negative</h3>" in page
    assert "<h3>scan · positive</h3>" in page
    assert "2 heatmaps are shown, one a class" in page
    assert '<a href="#scan-1">scan</a>' in page


def test_the_report_says_what_the_contour_on_the_slices_means(tmp_path):
    cohort = make_scan_cohort(tmp_path / "cohort", num_scans=4, slices=(12, 12), size=64, fractions=(1, 0, 0))
    frame = load_scan(next((cohort.parent / "scans").iterdir())).frame
    maps = torch.rand(1, 15, 3, 3)
    for threshold, points, text in ((0.5, None, "HU; contour at 0.5"), (0.5, [0.8], "HU; below the operating point")):
        item = case(frame, heatmap=maps)[1]
        folder = tmp_path / str(points)
        save(folder, [item], threshold=threshold, operating_points=points).raise_failures()
        (folder / "predictions.csv").write_text(
            f"scan_id,pred,prob_negative,prob_positive\n{frame.scan_id},positive,0,1\n"
        )
        assert text in write_report(folder / "predictions.csv", folder / "heatmaps", folder / "a.html").read_text()


def test_slices_that_the_network_did_not_see_do_not_move_otsu_s_threshold(tmp_path):
    """Of 300 slices 10 in the middle were seen; what the others have in the map is no score."""
    frame = scan_frame(range(0, 900, 3))
    maps = torch.rand(1, 10, 6, 6, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
    maps[0, 4, :3] = 0.95
    _, item = case(frame, padding=0)
    del item["attention"], item["mask"]
    depth = Depth(10, "middle")
    item["coords"] = torch.from_numpy(np.stack([depth.indices(300), np.zeros(10, int)], axis=1))
    item["image"].meta["scan_depth"] = depth.to_json()
    save(tmp_path, [item | {"heatmap": maps}], threshold="otsu").raise_failures()
    heatmap = ScanHeatmap.load(tmp_path / "heatmaps" / "scan.h5")
    assert heatmap.threshold == pytest.approx(otsu(maps[0].numpy()))
    assert heatmap.threshold > 0.4
    assert otsu(heatmap) < 0.4, "zeros of unseen slices would have split off"


def test_a_failing_scan_is_named_and_the_others_are_written(tmp_path, caplog):
    _, good = case(scan_frame(scan_id="good"))
    _, short = case(scan_frame(scan_id="short"))
    short["coords"] = short["coords"][:9]
    short["attention"] = short["attention"][:, :9]
    del short["mask"]
    _, lost = case(scan_frame(scan_id="lost"), image=MetaTensor(torch.zeros(4, 13), meta={"scan_frame": ""}))
    with caplog.at_level(logging.ERROR):
        saver = save(tmp_path, [short, lost, good])
    assert list(saver.failures) == ["short", "lost"]
    assert [row["scan_id"] for row in rows(tmp_path / "scans.csv")] == ["good"]
    assert "no complete slice scores of 2 scans: short, lost" in caplog.text
    message = (
        r"(?s)slice scores of 2 scans failed.*scan 'short': its 9 instances are not the 10 slices.*scan 'lost': its bag"
    )
    with pytest.raises(CohortError, match=message):
        saver.raise_failures()


def test_a_failing_picture_is_named_and_the_rest_is_written(tmp_path):
    (tmp_path / "heatmaps" / "scan_curve.png").mkdir(parents=True)
    saver = save(tmp_path, [case()[1]], formats=("curve", "nifti"))
    assert (tmp_path / "heatmaps" / "scan.nii.gz").is_file()
    with pytest.raises(CohortError, match=r"1 scans failed.*\n  scan \(curve\)"):
        saver.raise_failures()


def test_a_scan_is_named_by_its_own_key_or_by_its_image(tmp_path):
    _, item = case()
    assert read_prediction(Case.of(item), CLASSES, False).row()["scan_id"] == "scan"
    del item["scan_id"]
    assert read_prediction(Case.of(item), CLASSES, False).row()["scan_id"] == "scan"
    with pytest.raises(CohortError, match=r"scan_id '\.\./a' cannot name a file"):
        read_prediction(Case.of(item | {"scan_id": "../a"}), CLASSES, False)
    with pytest.raises(CohortError, match="scan 'scan': 2 predictions for the 3 classes"):
        read_prediction(Case.of(item | {"pred": torch.tensor([0.5, 0.5])}), ("a", "b", "c"), False)


def test_the_saver_of_slides_says_what_to_take_for_scans(tmp_path):
    saver = HeatmapSaver(str(tmp_path))
    engine = Engine(lambda engine, item: [item])
    saver.attach(engine)
    engine.run([case()[1]])
    with pytest.raises(CohortError, match="a scan has slices, no tiles; write its results with SliceSaver"):
        saver.raise_failures()


def test_the_saver_is_made_from_a_bundle_s_json(tmp_path):
    target = {"_target_": "monai_mil.savers.SliceSaver", "output_dir": str(tmp_path), "window": "head_rsna"}
    saver = ConfigParser({"saver": target}).get_parsed_content("saver")
    assert (saver.window.center, saver.window.width) == (40, 80)


def test_unknown_settings_are_refused_before_anything_runs():
    with pytest.raises(ValueError, match="unknown slice formats pdf; choose from curve, montage, nifti"):
        SliceSaver("out", formats=["pdf"])
    with pytest.raises(SettingsError, match="slice preset 'spleen': unknown"):
        SliceSaver("out", window="spleen")

"""DICOM objects among the formats of the savers, and one decision in all that is written of a case."""

import csv
import logging

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from monai_mil.dicom import Algorithm
from monai_mil.errors import CohortError, SettingsError
from monai_mil.heatmaps import Heatmap, ScanHeatmap
from monai_mil.reports.predictions import read_predictions
from monai_mil.savers import HeatmapSaver, PredictionSaver, SliceSaver
from monai_mil.scans import load_scan
from monai_mil.slides import write_pyramid
from tests.dicom.examples import plain_series, slide_map

CLASSES = ("negative", "positive")
DICOM = ("seg", "fractional", "pm", "sc", "sr")


def scan_item(path, pred, name="scan"):
    frame = load_scan(path).frame
    n = len(frame)
    scores = torch.from_numpy(np.random.default_rng(0).random((1, n, 4, 4))).float()
    meta = {"scan_frame": frame.to_json()}
    coords = torch.stack([torch.arange(n), torch.zeros(n, dtype=torch.long)], dim=1)
    answer = torch.tensor(pred, dtype=torch.float64)
    return {"image": MetaTensor(torch.zeros(4, n), meta=meta), "scan_id": name, "coords": coords} | {
        "heatmap": scores,
        "pred": answer,
    }


def slide_item(heatmap, pred, name="slide"):
    frame = heatmap.frame
    meta = {"slide_path": frame.slide_path, "mpp": frame.mpp, "level0_size": frame.level0_size}
    image = MetaTensor(torch.zeros(4, len(heatmap)), meta=meta | {"tile_size_level0": frame.tile_size_level0})
    return {"image": image, "slide_id": name, "coords": torch.from_numpy(heatmap.coords)} | {
        "heatmap": torch.from_numpy(heatmap.scores)[None],
        "pred": torch.tensor(pred, dtype=torch.float64),
    }


def run(items, *savers):
    engine = Engine(lambda engine, item: [item])
    for saver in savers:
        saver.attach(engine)
    engine.run(items)
    return savers


def said(report):
    """The words of a report, in the order of its findings."""
    groups = report.ContentSequence[-1].ContentSequence
    words = {"Positive", "Negative"}
    concepts = [
        item.ConceptCodeSequence[0].CodeMeaning
        for g in groups
        for item in g.ContentSequence
        if item.ValueType == "CODE"
    ]
    return [word for word in concepts if word in words]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return plain_series(tmp_path_factory.mktemp("series") / "scan", n=5)


def beside(point):
    """Probabilities on both sides of a point, as near as numbers go and as tables round, and on it."""
    near = [np.nextafter(point, 0), point, np.nextafter(point, 1)]
    return [point - 1e-7, *map(float, near), point + 1e-7]


@pytest.mark.parametrize(
    ("outputs", "points"),
    [(1, [0.40127839148044586]), (2, [0.59872160851955414, 0.40127839148044586]), (1, None), (2, None)],
)
def test_one_decision_in_table_heatmap_report_and_page(tmp_path, path, outputs, points):
    probs = beside(0.5 if points is None else points[-1])
    positive = [False, False, True, True, True]
    settings = {"classes": CLASSES, "operating_points": points}
    slices = SliceSaver(str(tmp_path), ("seg", "sr"), key="heatmap", threshold=0.5, **settings)
    answers = [[prob] if outputs == 1 else [1 - prob, prob] for prob in probs]
    items = [scan_item(path, answer, f"s{number}") for number, answer in enumerate(answers)]
    run(items, slices, PredictionSaver(str(tmp_path), **settings))
    assert not slices.failures
    for table in ("predictions.csv", "scans.csv"):
        with (tmp_path / table).open() as file:
            assert [row["pred"] for row in csv.DictReader(file)] == [CLASSES[word] for word in positive]
    assert read_predictions(tmp_path / "predictions.csv").predicted[:, 1].tolist() == positive
    for number, word in enumerate(positive):
        heatmap = ScanHeatmap.load(tmp_path / "heatmaps" / f"s{number}.h5")
        assert heatmap.attributes["called"] is word
        assert heatmap.attributes["prediction"] == CLASSES[word]
        report = pydicom.dcmread(tmp_path / "heatmaps" / f"s{number}_sr.dcm")
        assert said(report) == [("Negative", "Positive")[word]], probs[number]
        assert (tmp_path / "heatmaps" / f"s{number}_seg.dcm").exists() is word


def test_classes_that_do_not_exclude_each_other_have_a_word_each(tmp_path, path):
    item = scan_item(path, [0.4, 0.3])
    item["heatmap"] = item["heatmap"].repeat(2, 1, 1, 1)
    (saver,) = run(
        [item],
        SliceSaver(
            str(tmp_path),
            ("seg", "pm", "sr"),
            ("nodule", "fluid"),
            multi_label=True,
            key="heatmap",
            class_index="all",
            threshold=0.5,
            operating_points=[0.5, 0.3],
        ),
    )
    assert not saver.failures
    assert said(pydicom.dcmread(tmp_path / "heatmaps" / "scan_sr.dcm")) == ["Negative", "Positive"]
    names = {file.name for file in (tmp_path / "heatmaps").glob("*.dcm")}
    assert names == {"scan_sr.dcm", "scan_nodule_pm.dcm", "scan_fluid_pm.dcm", "scan_fluid_seg.dcm"}


def test_a_series_has_all_objects_and_a_nifti_beside_it_one_line(tmp_path, path, caplog):
    nibabel.save(nibabel.Nifti1Image(np.zeros((32, 24, 5), np.int16), np.diag([1, 1, 2, 1])), tmp_path / "a.nii.gz")
    items = [scan_item(tmp_path / "a.nii.gz", [0.8], "volume"), scan_item(path, [0.8], "series")]
    with caplog.at_level(logging.ERROR):
        (saver,) = run(
            items, SliceSaver(str(tmp_path), DICOM, CLASSES, key="heatmap", threshold=0.5, window="lung", slices=2)
        )
    assert saver.failures == {
        "volume": "volume (DICOM): scan 'a': no DICOM objects, for it is no DICOM; give the DICOM series"
    }
    assert sum("no DICOM objects" in record.message for record in caplog.records) == 1
    with pytest.raises(CohortError, match="the slice scores of 1 scans failed"):
        saver.raise_failures()
    names = {file.name for file in (tmp_path / "heatmaps").glob("*.dcm")}
    assert names == {f"series_{form}.dcm" for form in DICOM}
    assert (tmp_path / "heatmaps" / "volume.h5").exists()


def test_a_dicom_slide_has_all_objects_and_a_tiff_beside_it_one_line(tmp_path):
    heatmap = slide_map(tmp_path / "slide.dcm")
    write_pyramid(tmp_path / "a.tif", np.full((192, 256, 3), 255, np.uint8), mpp=0.5)
    other = slide_item(heatmap, [0.8], "tiff")
    other["image"].meta["slide_path"] = str(tmp_path / "a.tif")
    forms = (*DICOM, "ann")
    options = {"sc": {"canvas_max": 200}}
    (saver,) = run(
        [other, slide_item(heatmap, [0.8])],
        HeatmapSaver(str(tmp_path), forms, options, key="heatmap", classes=CLASSES, threshold=0.7),
    )
    assert saver.failures == {
        "tiff": "tiff (DICOM): slide 'tiff': no DICOM objects, for it is no DICOM; give the DICOM slide"
    }
    assert {file.name for file in (tmp_path / "heatmaps").glob("*.dcm")} == {f"slide_{form}.dcm" for form in forms}
    assert Heatmap.load(tmp_path / "heatmaps" / "tiff.h5").attributes["called"] is True


def test_a_negative_case_leaves_no_segmentation_of_an_earlier_run(tmp_path, path):
    heatmap = slide_map(tmp_path / "slide.dcm")
    for prob, expected in ((0.8, {"scan_seg.dcm", "slide_seg.dcm"}), (0.2, set())):
        slices = SliceSaver(str(tmp_path), ("seg",), CLASSES, key="heatmap", threshold=0.5)
        slides = HeatmapSaver(str(tmp_path), ("seg",), key="heatmap", classes=CLASSES, threshold=0.7)
        run([scan_item(path, [prob])], slices)
        run([slide_item(heatmap, [prob])], slides)
        assert {file.name for file in (tmp_path / "heatmaps").glob("*.dcm")} == expected


def test_objects_name_the_bundle_and_uids_follow_the_operating_point(tmp_path, path):
    uids = set()
    for point in (0.3, 0.4):
        algorithm = Algorithm("INSIGHT for CT", "0.1.0", settings={"depth": 32})
        saver = SliceSaver(
            str(tmp_path), ("pm",), CLASSES, key="heatmap", operating_points=[point], algorithm=algorithm
        )
        run([scan_item(path, [0.8])], saver)
        made = pydicom.dcmread(tmp_path / "heatmaps" / "scan_pm.dcm")
        assert made.ManufacturerModelName == "INSIGHT for CT"
        uids.add(made.SOPInstanceUID)
    assert len(uids) == 2


def test_a_risk_and_an_answer_for_several_slides_get_no_report(tmp_path, path):
    item = scan_item(path, [0.8]) | {"risk": torch.tensor(0.3)}
    saver = SliceSaver(str(tmp_path), ("sr",), None, key="heatmap")
    run([item], saver)
    assert "no report of a survival network's risk" in saver.failures["scan"]
    assert not list((tmp_path / "heatmaps").glob("*.dcm"))


def test_segmentations_need_a_threshold(tmp_path):
    for saver in (SliceSaver, HeatmapSaver):
        with pytest.raises(SettingsError, match='the format "seg" needs a threshold'):
            saver(str(tmp_path), ("seg",))

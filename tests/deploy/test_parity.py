"""The application on DICOM and ``monai.bundle run`` on NIfTI say the same of the same chest."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from monai_mil.deploy import Exit, Job, run_job
from monai_mil.runs import copy_bundle, find_bundle, predict_run
from tests.deploy.drawn import draw_study
from tests.scans.chest import write_volume

pytest.importorskip("highdicom", exc_type=ImportError, reason="highdicom needs pydicom 3")
PROBABILITY = 0.61902841
"""What the shipped model says of the drawn chest."""


@pytest.fixture(scope="module", params=[-1e-4, 1e-4], ids=["at a point below", "at a point above"])
def both(request, tmp_path_factory):
    """Folders of the application's results and of the run's, at an operating point beside the probability."""
    place, point = tmp_path_factory.mktemp("parity"), PROBABILITY + request.param
    bundle = find_bundle(copy_bundle(find_bundle("ct_insight"), place))
    conf = json.loads(bundle.config("deploy").read_text()) | {"operating_points": [point], "pictures": ["nifti"]}
    bundle.config("deploy").write_text(json.dumps(conf))
    draw_study(place / "study")
    assert run_job(Job("ct", place / "study", place / "out", bundle.root)) is Exit.OK
    volume = write_volume(place / "chest.nii.gz")
    predict_run(bundle, [volume], place / "run", heatmaps=["nifti"], settings={"operating_points": [point]}).start()
    return place / "out" / "results", place / "run", point


def test_probability_and_decision_are_the_same(both):
    results, run, point = both
    said = json.loads((results / "result.json").read_text())
    with (run / "predictions.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert said["probabilities"]["positive"] == pytest.approx(float(row["prob_positive"]), abs=1e-5)
    assert said["probabilities"]["positive"] == pytest.approx(PROBABILITY, abs=1e-5)
    assert said["operating_points"]["positive"] == pytest.approx(point, abs=1e-9)
    word = "positive" if point < PROBABILITY else "negative"
    assert said["prediction"] == row["pred"] == word


def test_every_object_says_the_same_word(both):
    results, _, point = both
    called = point < PROBABILITY
    report = pydicom.dcmread(results / "sr.dcm")
    words = {"Positive", "Negative"} & set(_meanings(report))
    assert words == {"Positive" if called else "Negative"}
    assert (results / "seg.dcm").exists() == called


def test_the_heatmap_is_the_same_on_the_source_s_grid(both):
    results, run, _ = both
    ours, theirs = (nibabel.load(path) for path in (results / "heatmap.nii.gz", run / "heatmaps" / "chest.nii.gz"))
    orientation = nibabel.orientations.io_orientation(theirs.affine)
    ours = ours.as_reoriented(
        nibabel.orientations.ornt_transform(nibabel.orientations.io_orientation(ours.affine), orientation)
    )
    assert ours.affine == pytest.approx(theirs.affine, abs=1e-4)
    assert np.abs(np.asarray(ours.dataobj) - np.asarray(theirs.dataobj)).max() < 1e-5


def test_the_map_lies_on_the_slices_it_was_made_of(both):
    results, _, _ = both
    positions = {
        tuple(float(value) for value in frame.PlanePositionSequence[0].ImagePositionPatient)
        for frame in pydicom.dcmread(results / "pm.dcm").PerFrameFunctionalGroupsSequence
    }
    source = Path(results.parents[1] / "study")
    slices = {
        tuple(float(value) for value in pydicom.dcmread(path, stop_before_pixels=True).ImagePositionPatient)
        for path in source.rglob("IM*")
    }
    assert positions == slices


def _meanings(dataset):
    """Every CodeMeaning of a report's values."""
    for element in dataset.iterall():
        if element.keyword == "CodeMeaning":
            yield str(element.value)

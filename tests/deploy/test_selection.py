"""Which series is read: by rules, in a total order, told without naming anybody."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from pydicom.uid import generate_uid

from monai_mil.deploy import Exit, JobError, choose_series, find_scan, find_slide
from monai_mil.errors import ScanReadError, SettingsError
from monai_mil.runs import shipped_bundles
from monai_mil.scans import read_study
from monai_mil.slides import write_pyramid
from tests.scans.conftest import phantom, write_series

RULES = [{"ImageType": ["PRIMARY", "AXIAL", "!LOCALIZER"], "SliceThickness": [0.1, 3]}, {"ImageType": ["!LOCALIZER"]}]


def series(folder, slices=8, uid="1.2.3.1", number=1, **attributes):
    facts = {"SeriesInstanceUID": uid, "SeriesNumber": number} | attributes
    return write_series(folder, phantom(slices, 4, 4), **facts)


def chosen(folder, rules=RULES):
    source = find_scan(folder, rules)
    return source.series_uid, source.report["reason"]


MANY = "it meets rule 1 of 2, and of the 2 that do, with as many slices, the lowest"


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ({"slices": 5}, {"slices": 9, "SliceThickness": 5.0}, "it meets rule 1 of 2"),
        ({"slices": 9}, {"slices": 5}, "it meets rule 1 of 2, and has the most slices of the 2 that do"),
        ({"number": 2}, {"number": 3}, f"{MANY} SeriesNumber"),
        ({"number": 2}, {"number": None}, f"{MANY} SeriesNumber"),
        ({}, {}, f"{MANY} UID"),
    ],
    ids=["better rule", "most slices", "lowest number", "a number", "lowest UID"],
)  # fmt: skip
@pytest.mark.parametrize("swapped", [False, True])
def test_of_two_series_the_same_is_read_in_whatever_order_they_lie(tmp_path, first, second, reason, swapped):
    folders = ["b", "a"] if swapped else ["a", "b"]
    series(tmp_path / folders[0], **{"uid": "1.2.3.1", **first})
    series(tmp_path / folders[1], **{"uid": "1.2.3.2", **second})
    assert chosen(tmp_path) == ("1.2.3.1", reason)


def test_series_in_one_folder_are_told_apart(tmp_path):
    for uid, slices in (("1.2.3.1", 5), ("1.2.3.2", 9)):
        for path in sorted(series(tmp_path / uid, slices, uid).iterdir()):
            path.rename(tmp_path / f"{random.random()}.dcm")
        (tmp_path / uid).rmdir()
    source = find_scan(tmp_path, RULES)
    assert (source.series_uid, source.place) == ("1.2.3.2", tmp_path)
    assert source.item("case") == {"image": str(tmp_path), "scan_id": "case", "series_uid": "1.2.3.2"}


@pytest.mark.parametrize(
    ("rule", "meets"),
    [
        ({"SeriesDescription": "thorax|chest"}, True),
        ({"SeriesDescription": "^head"}, False),
        ({"slices": [6, None]}, True),
        ({"slices": [7, None]}, False),
        ({"SliceThickness": [None, 2]}, True),
        ({"SliceThickness": [2.5, 5]}, False),
        ({"KVP": [100, 140]}, True),
        ({"ConvolutionKernel": ["B30f"]}, True),
        ({"ConvolutionKernel": ["!B30F"]}, False),
        ({"BodyPartExamined": ["CHEST"]}, False),
        ({"Modality": "CT"}, True),
    ],
)
def test_a_rule_asks_for_texts_numbers_and_expressions(tmp_path, rule, meets):
    series(tmp_path, 6, SeriesDescription="CT Chest", KVP=120, ConvolutionKernel="B30f")
    found, rank = choose_series(read_study(tmp_path).series, [rule])
    assert (found is not None, rank) == (meets, 1 if meets else None)


def test_a_rule_that_asks_for_something_else_is_refused(tmp_path):
    series(tmp_path)
    with pytest.raises(SettingsError, match="asks 'KVP' for 120"):
        find_scan(tmp_path, [{"KVP": 120}])


def test_what_is_no_ct_is_never_read(tmp_path):
    series(tmp_path / "mr", 20, "1.2.3.1", SOPClassUID="1.2.840.10008.5.1.4.1.1.4", Modality="MR")
    series(tmp_path / "scout", 20, "1.2.3.2", number=2, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    (tmp_path / "notes.txt").write_text("no scan")
    (tmp_path / "zeros").write_bytes(bytes(500))
    with pytest.raises(JobError, match="it holds 1: MR, 0 slices; 2: CT, 0 slices") as caught:
        find_scan(tmp_path, RULES)
    assert caught.value.exit_code is Exit.NO_INPUT
    series(tmp_path / "ct", 4, "1.2.3.3")
    assert find_scan(tmp_path, RULES).report["other_files"] == 2
    assert chosen(tmp_path)[0] == "1.2.3.3"


def test_an_empty_folder_holds_no_series(tmp_path):
    with pytest.raises(JobError, match="it holds no DICOM series") as caught:
        find_scan(tmp_path, RULES)
    assert caught.value.exit_code is Exit.NO_INPUT


@pytest.mark.parametrize(
    ("other", "what"),
    [({"PatientID": "SECRET-18"}, "2 patients"), ({"StudyInstanceUID": "1.2.4"}, "2 studies")],
    ids=["patients", "studies"],
)
def test_files_of_two_are_refused_even_where_one_of_them_has_no_scan(tmp_path, other, what):
    series(tmp_path / "a")
    series(tmp_path / "b", 1, "1.2.3.2", Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4", **other)
    with pytest.raises(JobError, match=what) as caught:
        find_scan(tmp_path, RULES)
    assert caught.value.exit_code is Exit.INVALID_INPUT
    assert "SECRET" not in str(caught.value)


def test_a_damaged_header_is_refused(tmp_path):
    series(tmp_path)
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(ScanReadError):
        find_scan(tmp_path, RULES)


def test_the_report_lists_every_series_and_names_nobody(tmp_path):
    secrets = {"PatientName": "Doe^Jane", "PatientID": "SECRET-17", "SeriesDescription": "JaneDoe", "StudyID": "SID9"}
    series(tmp_path / "DOE_JANE", uid="1.2.3.1", number=4, **secrets)
    series(tmp_path / "other", 3, "1.2.3.2", number=5, SliceThickness=9.0, **secrets)
    series(tmp_path / "sr", 1, "1.2.3.3", None, Modality="JANE_DOE", SOPClassUID=generate_uid(), **secrets)
    report, thickness = find_scan(tmp_path, [RULES[0]]).report, "SliceThickness"
    assert report["chosen"] == 1
    assert report["series"] == [
        {"index": 1, "modality": "CT", "number": 4, "slices": 8, "files": 8, "rule": 1},
        {"index": 2, "modality": "CT", "number": 5, "slices": 3, "files": 3, "rule": None, "not_met": [[thickness]]},
        {"index": 3, "modality": "no known modality", "number": None, "slices": 0, "files": 1, "rule": None},
    ]  # fmt: skip
    told = json.dumps(report).lower()
    assert not [secret for secret in ("doe", "secret", "sid9", "1.2.3", str(tmp_path).lower()) if secret in told]


def test_every_bundle_of_scans_takes_a_usual_series(tmp_path):
    rules = [json.loads(bundle.config("deploy").read_text()) for bundle in shipped_bundles() if bundle.reads == "scans"]
    series(tmp_path)
    assert [chosen(tmp_path, each["series"])[0] for each in rules] == ["1.2.3.1"] * 2


@pytest.mark.parametrize(
    ("part", "fits"), [(None, True), ("", True), ("CHEST", True), ("HEAD", False), ("Skull", False)]
)
def test_what_says_that_it_shows_no_chest_is_not_read_by_a_model_of_chests(tmp_path, part, fits):
    (series(tmp_path) if part is None else series(tmp_path, BodyPartExamined=part))
    for bundle in shipped_bundles():
        if bundle.reads == "scans":
            rules = json.loads(bundle.config("deploy").read_text())["series"]
            assert (choose_series(read_study(tmp_path).series, rules)[0] is not None) is fits


def test_one_slide_is_read_and_no_other_number(tmp_path):
    with pytest.raises(JobError) as caught:
        find_slide(tmp_path)
    assert caught.value.exit_code is Exit.NO_INPUT
    write_pyramid(tmp_path / "one.tif", np.zeros((64, 64, 3), np.uint8), mpp=0.5)
    source = find_slide(tmp_path)
    assert (source.item("case"), source.is_dicom) == (
        {"image": str(tmp_path / "one.tif"), "slide_id": "case"},
        False,
    )
    write_pyramid(tmp_path / "two.tif", np.zeros((64, 64, 3), np.uint8), mpp=0.5)
    with pytest.raises(JobError, match="2 slides") as caught:
        find_slide(tmp_path)
    assert caught.value.exit_code is Exit.INVALID_INPUT

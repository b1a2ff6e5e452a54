"""What every object says: of the patient, of its source, of what made it, and of nothing else."""

import logging
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest

from monai_mil.dicom import (
    Algorithm,
    Finding,
    Terms,
    scan_source,
    write_overlay,
    write_parametric_map,
    write_report,
    write_segmentation,
)
from monai_mil.errors import DicomError
from monai_mil.scans import load_scan
from tests.dicom.examples import ALGORITHM, CALLED, plain_series, planted, read

FINDING = Finding("positive", 0.8, True, 0.4)
NUMBERS = {"sr": 9001, "seg": 9002, "fractional": 9003, "pm": 9004, "sc": 9006}
PATIENT = {
    "SpecificCharacterSet": "ISO_IR 192",
    "PatientName": "山田^太郎",
    "PatientID": "P-17",
    "IssuerOfPatientID": "Hospital",
    "PatientBirthDate": "19500203",
    "PatientSex": "F",
    "PatientAge": "070Y",
    "StudyID": "S1",
    "StudyDate": "20200304",
    "StudyTime": "101112",
    "StudyDescription": "Thorax für alle",
    "AccessionNumber": "A1",
    "ReferringPhysicianName": "Doe^Jane",
    "BodyPartExamined": "CHEST",
    "ContentDate": "20200305",
    "ContentTime": "121314.5",
}


def written(folder, path, algorithm=ALGORITHM, **changes):
    """Every object of a series, by its format."""
    scan = load_scan(path)
    heatmap, source = planted(scan, **changes), scan_source(scan.frame)
    folder.mkdir(exist_ok=True)
    made = {
        "sr": write_report(folder / "sr.dcm", source, [FINDING], algorithm, heatmap=heatmap),
        "seg": write_segmentation(folder / "seg.dcm", source, heatmap, algorithm),
        "fractional": write_segmentation(folder / "fractional.dcm", source, heatmap, algorithm, fractional=True),
        "pm": write_parametric_map(folder / "pm.dcm", source, heatmap, algorithm),
        "sc": write_overlay(folder / "sc.dcm", source, heatmap, algorithm, window="lung", cell=60),
    }
    return {form: made_path for form, made_path in made.items() if made_path is not None}


def texts(dataset):
    """All that an object says, as one text."""
    found = []
    dataset.walk(lambda _, element: found.append(str(element.value)) if element.VR not in ("OW", "OB", "OF") else None)
    return "\n".join(found)


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    folder = tmp_path_factory.mktemp("objects")
    path = plain_series(folder / "series", **PATIENT)
    return load_scan(path), {form: read(made) for form, made in written(folder / "out", path).items()}


def test_patient_and_study_are_the_source_s(objects):
    scan, made = objects
    for form, dataset in made.items():
        for keyword, value in PATIENT.items():
            if keyword == "BodyPartExamined" and form == "sr":
                continue
            assert str(dataset[keyword].value) == value, (form, keyword)
        assert dataset.StudyInstanceUID == scan.frame.study_uid
        assert dataset.SeriesInstanceUID != scan.frame.series_uid
        if form in ("seg", "fractional", "pm"):
            assert dataset.FrameOfReferenceUID == scan.frame.frame_of_reference_uid


def test_objects_say_what_made_them_and_that_it_is_research(objects):
    for form, dataset in objects[1].items():
        assert dataset.SeriesNumber == NUMBERS[form]
        assert dataset.SeriesDescription.startswith("AI ")
        assert dataset.SeriesDescription.endswith(", research use only")
        assert dataset.ContentQualification == "RESEARCH"
        assert dataset.ManufacturerModelName == "INSIGHT for CT"
        assert dataset.DeviceSerialNumber == ALGORITHM.weights
    segment = objects[1]["seg"].SegmentSequence[0]
    (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("INSIGHT for CT", "0.1.0")
    assert ALGORITHM.weights in algorithm.AlgorithmParameters
    assert ALGORITHM.configuration in algorithm.AlgorithmParameters


def test_all_source_instances_are_referenced(objects):
    scan, made = objects
    for form, dataset in made.items():
        assert all(uid in texts(dataset) for uid in scan.frame.sop_uids), form


def test_the_report_is_partial_unverified_and_says_one_word(objects):
    report = objects[1]["sr"]
    flags = (report.CompletionFlag, report.VerificationFlag, report.PreliminaryFlag)
    assert flags == ("PARTIAL", "UNVERIFIED", "PRELIMINARY")
    said = texts(report)
    assert "Positive" in said
    assert "Negative" not in said
    for text in ("0.8", "0.4", ALGORITHM.weights, ALGORITHM.note, "research use only"):
        assert text in said, text
    scan = objects[0]
    peak = scan.frame.sop_uids[planted(scan).peak]
    image = report.ContentSequence[-1].ContentSequence[0].ContentSequence[-1]
    assert image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == peak


def test_a_map_has_what_dcmqi_reads_it_by(objects):
    shared = objects[1]["pm"].SharedFunctionalGroupsSequence[0]
    anatomy = shared.FrameAnatomySequence[0]
    assert anatomy.AnatomicRegionSequence[0].CodeMeaning == "Chest"
    (mapping,) = shared.RealWorldValueMappingSequence
    assert mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0].CodeMeaning == "Probability"
    assert str(objects[1]["pm"].ContentCreatorName) == "monai-mil^"


def test_codes_are_those_of_who_runs_it(tmp_path):
    scan = load_scan(plain_series(tmp_path / "series"))
    terms = Terms(
        procedure=("241540006", "SCT", "CT of chest"),
        findings={"positive": ("427359005", "SCT", "Solitary nodule of lung")},
        kind=("27925004", "SCT", "Nodule"),
        region=("39607008", "SCT", "Lung"),
    )
    source, heatmap = scan_source(scan.frame), planted(scan)
    report = read(write_report(tmp_path / "sr.dcm", source, [FINDING], ALGORITHM, terms=terms))
    assert all(text in texts(report) for text in ("CT of chest", "Solitary nodule of lung"))
    segment = read(write_segmentation(tmp_path / "a.dcm", source, heatmap, ALGORITHM, terms=terms)).SegmentSequence[0]
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "27925004"
    assert segment.AnatomicRegionSequence[0].CodeMeaning == "Lung"


@pytest.mark.parametrize("changes", [{"threshold": math.inf}, {"attributes": {**CALLED, "called": False}}])
def test_a_negative_scan_has_a_report_and_no_segmentation(tmp_path, changes):
    path = plain_series(tmp_path / "series")
    made = written(tmp_path / "out", path, **changes)
    assert set(made) == {"sr", "pm", "sc"}
    assert not list((tmp_path / "out").glob("seg*"))


def test_a_segmentation_without_a_pixel_is_not_written(tmp_path):
    scan = load_scan(plain_series(tmp_path / "series"))
    heatmap = planted(scan, threshold=2.0)
    assert write_segmentation(tmp_path / "a.dcm", scan_source(scan.frame), heatmap, ALGORITHM) is None
    assert not (tmp_path / "a.dcm").exists()


def test_fractions_are_the_map_in_steps_of_a_255th(tmp_path):
    scan = load_scan(plain_series(tmp_path / "series"))
    heatmap, source = planted(scan), scan_source(scan.frame)
    made = read(write_segmentation(tmp_path / "a.dcm", source, heatmap, ALGORITHM, fractional=True))
    maps = [heatmap.slice_map(index, smooth=True) for index in range(len(heatmap))]
    order = {uid: place for place, uid in enumerate(scan.frame.sop_uids)}
    for item, values in zip(made.PerFrameFunctionalGroupsSequence, made.pixel_array, strict=True):
        uid = item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        np.testing.assert_allclose(values / 255, maps[order[uid]], atol=1 / 510 + 1e-6)


@pytest.mark.parametrize(
    ("changes", "told"), [({"attributes": CALLED | {"uniform": 0.1}}, "shares of attention"), ({}, "from 0 to 2")]
)
def test_what_is_no_fraction_is_not_written_as_one(tmp_path, changes, told):
    scan = load_scan(plain_series(tmp_path / "series"))
    heatmap = planted(scan, **changes)
    if not changes:
        heatmap = replace(heatmap, scores=np.clip(heatmap.scores * 2 - 0.01, 0, 2).round(1) * 1.0 + 0.0)
        heatmap = replace(heatmap, scores=heatmap.scores / heatmap.scores.max() * 2)
    with pytest.raises(DicomError, match=told):
        write_segmentation(tmp_path / "a.dcm", scan_source(scan.frame), heatmap, ALGORITHM, fractional=True)


@pytest.mark.parametrize(
    ("characters", "kept"),
    [(["", "ISO 2022 IR 87"], ["", "ISO 2022 IR 87"]), ("GB18030", "GB18030"), ("ISO_IR 192", "ISO_IR 192")],
)
def test_names_in_any_character_set_survive_in_every_object(tmp_path, characters, kept):
    path = plain_series(
        tmp_path / "series", **(PATIENT | {"SpecificCharacterSet": characters, "StudyDescription": "a"})
    )
    for form, made in written(tmp_path / "out", path).items():
        dataset = read(made)
        assert dataset.PatientName == "山田^太郎", form
        assert dataset.SpecificCharacterSet == kept, form


@pytest.mark.parametrize("characters", [None, "ISO_IR 100"])
def test_a_class_that_the_source_s_characters_lack_makes_it_unicode(tmp_path, characters):
    name = None if characters is None else "Müller^Jürgen"
    tags = {"SpecificCharacterSet": characters} | ({} if name is None else {"PatientName": name})
    scan = load_scan(plain_series(tmp_path / "series", **tags))
    source = scan_source(scan.frame)
    made = read(write_report(tmp_path / "a.dcm", source, [Finding("腫瘍", 0.8, True)], ALGORITHM))
    assert made.SpecificCharacterSet == "ISO_IR 192"
    assert "腫瘍" in texts(made)
    assert made.PatientName == (name or "Doe^Jane")


def test_a_source_without_what_the_standard_asks_for_is_blank_there(tmp_path):
    path = plain_series(tmp_path / "series", PatientName=None, PatientID=None, SliceThickness=None)
    for form, made in written(tmp_path / "out", path).items():
        dataset = read(made)
        for keyword in ("PatientName", "PatientID", "PatientSex", "PatientBirthDate", "StudyDate", "StudyID"):
            assert keyword in dataset, (form, keyword)
            assert not dataset[keyword].value, (form, keyword)


def test_odd_values_of_the_source_are_kept_as_they_are(tmp_path):
    odd = {"PatientSex": "X", "StudyDate": "2020-03-04", "PatientBirthDate": "1950", "StudyTime": "noon"}

    def change(_, dataset):
        import pydicom

        with pydicom.config.disable_value_validation():
            for keyword, value in odd.items():
                setattr(dataset, keyword, value)

    path = plain_series(tmp_path / "series", change=change)
    for form, made in written(tmp_path / "out", path).items():
        dataset = read(made)
        assert {keyword: str(dataset[keyword].value) for keyword in odd} == odd, form


def test_no_warning_and_no_log_names_the_patient(tmp_path, caplog):
    path = plain_series(tmp_path / "series", PatientName="SECRET", PatientSex="SECRET", ReferringPhysicianName="SECRET")
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        written(tmp_path / "out", path)
    assert "SECRET" not in caplog.text + "".join(str(each.message) for each in told)


def test_a_rerun_is_the_same_to_the_byte_and_anything_else_has_other_uids(tmp_path):
    path = plain_series(tmp_path / "series", **PATIENT)
    first = written(tmp_path / "a", path)
    again = written(tmp_path / "b", path, Algorithm(**vars(ALGORITHM)))
    assert {form: made.read_bytes() for form, made in first.items()} == {
        form: made.read_bytes() for form, made in again.items()
    }
    others = {
        "weights": written(tmp_path / "c", path, replace(ALGORITHM, weights="1111")),
        "operating point": written(tmp_path / "d", path, replace(ALGORITHM, settings={"operating_points": [0.5]})),
        "version": written(tmp_path / "e", path, replace(ALGORITHM, version="0.2.0")),
        "map": written(tmp_path / "f", path, width_mm=4.0),
        "source": written(tmp_path / "g", plain_series(tmp_path / "other", **PATIENT)),
    }
    for form, made in first.items():
        uids = {read(other[form]).SOPInstanceUID for other in others.values()} | {read(made).SOPInstanceUID}
        assert len(uids) == (len(others) if form == "sr" else len(others) + 1), form
        series = {read(other[form]).SeriesInstanceUID for other in others.values()}
        assert read(made).SeriesInstanceUID not in series or form == "sr"


def test_no_object_knows_when_it_was_written(objects):
    from datetime import UTC, datetime

    today = datetime.now(UTC).strftime("%Y%m%d")
    for form, dataset in objects[1].items():
        said = texts(dataset)
        assert today not in said, form
        assert "InstanceCreationDate" not in dataset
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
        assert str(dataset.SOPInstanceUID).startswith("2.25.")
        assert len(dataset.SOPInstanceUID) <= 64

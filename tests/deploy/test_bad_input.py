"""What hospitals send: every kind of it ends with its code, without half an object, and without anybody's name."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pydicom
import pytest

from monai_mil.deploy import Exit, Job, Redaction, run_job
from monai_mil.deploy.logs import ALLOW, logged
from monai_mil.runs import copy_bundle, find_bundle
from tests.deploy.drawn import PATIENT, draw_study
from tests.scans.conftest import phantom, write_series

pytest.importorskip("highdicom", exc_type=ImportError, reason="highdicom needs pydicom 3")
KEPT = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate")
SECRETS = ("yamada", "tarou", "山田", "secret", "acc-4711", "referrer", "sid-9", "19700102")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return draw_study(tmp_path_factory.mktemp("study"))


@pytest.fixture
def run(study, tmp_path, capfd, monkeypatch):
    """The application on a copy of the study that ``change`` has altered; how it ended, and its folder."""
    monkeypatch.delenv(ALLOW, raising=False)

    def application(change=None, model=Path("ct_insight")) -> tuple[Exit, Path]:
        place, out = tmp_path / "YAMADA_TAROU_in", tmp_path / "out"
        shutil.copytree(study, place)
        if change is not None:
            change(sorted(path for path in place.rglob("*") if path.is_file()))
        redaction = Redaction(place)
        with logged(redaction, "INFO"):
            logging.getLogger("monai_mil").info("given: %s", place)
            code = run_job(Job("ct", place, out, model), redaction=redaction)
        told = "".join(capfd.readouterr())
        names = [path.relative_to(out).as_posix() for path in out.rglob("*")]
        texts = [path.read_text() for path in out.rglob("*") if path.suffix in (".json", ".csv", ".geojson")]
        assert "given: (input)" in told
        assert not [secret for secret in SECRETS if secret in "\n".join([told, *names, *texts]).lower()]
        assert json.loads((out / "status.json").read_text())["exit_code"] == code
        if code is not Exit.OK:
            assert names == ["status.json"]
        return code, out

    return application


def each(change):
    """Alters every file."""

    def alter(paths):
        for path in paths:
            dataset = pydicom.dcmread(path)
            change(dataset)
            dataset.save_as(path)

    return alter


def one(change, index=12):
    """Alters one file."""
    return lambda paths: each(change)(paths[index : index + 1])


def without(keyword):
    return lambda dataset: delattr(dataset, keyword)


def having(**attributes):
    return lambda dataset: [setattr(dataset, keyword, value) for keyword, value in attributes.items()]


def magnetic(dataset):
    dataset.Modality = "MR"
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"


def rows(dataset):
    dataset.Rows = 32
    dataset.PixelData = dataset.PixelData[: len(dataset.PixelData) // 2]


def cut_off(paths):
    paths[3].write_bytes(paths[3].read_bytes()[:-2000])


def unknown_syntax(dataset):
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID("1.2.840.10008.1.2.4.100")
    dataset.PixelData = pydicom.encaps.encapsulate([b"\0" * 100])


def second_study(paths):
    write_series(paths[0].parent.parent / "more", phantom(8), SeriesInstanceUID="1.2.9", StudyInstanceUID="1.2.8")


def a_gap(paths):
    by_place = sorted(paths, key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2])
    for path in by_place[9:12]:
        path.unlink()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (each(magnetic), Exit.NO_INPUT),
        (lambda paths: [path.unlink() for path in paths], Exit.NO_INPUT),
        (lambda paths: [path.unlink() for path in paths[1:]], Exit.NO_INPUT),
        (each(having(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])), Exit.NO_INPUT),
        (cut_off, Exit.INVALID_INPUT),
        (a_gap, Exit.INVALID_INPUT),
        (second_study, Exit.INVALID_INPUT),
        (one(having(PatientID="SECRET-18")), Exit.INVALID_INPUT),
        (each(without("ImagePositionPatient")), Exit.INVALID_INPUT),
        (one(rows), Exit.INVALID_INPUT),
        (one(unknown_syntax), Exit.INVALID_INPUT),
    ],
    ids=[
        "another modality", "an empty folder", "one slice", "a scout", "pixels cut off", "a gap", "two studies",
        "two patients", "no positions", "other sizes", "an unknown transfer syntax",
    ],
)  # fmt: skip
def test_what_cannot_be_read_ends_with_its_code_and_leaves_nothing(run, change, code):
    assert run(change)[0] is code


def test_operating_points_that_the_model_has_not_are_a_fault_of_the_settings(run, tmp_path):
    bundle = find_bundle(copy_bundle(find_bundle("ct_insight"), tmp_path))
    conf = json.loads(bundle.config("deploy").read_text()) | {"operating_points": [0.4, 0.6, 0.5]}
    bundle.config("deploy").write_text(json.dumps(conf))
    code, out = run(model=bundle.root)
    assert code is Exit.USAGE
    assert "3 operating points" in json.loads((out / "status.json").read_text())["message"]


def test_strays_earlier_results_and_missing_attributes_change_no_answer(run, tmp_path):
    """Text and zeros beside the slices, our own objects of an earlier run among them, and no PatientSex."""
    code, out = run(each(without("PatientSex")))
    assert code is Exit.OK
    first = {path.name: path.read_bytes() for path in (out / "results").iterdir()}
    place = tmp_path / "YAMADA_TAROU_in"
    for path in (out / "results").glob("*.dcm"):
        shutil.copy(path, next(place.rglob("IM0000")).parent / f"earlier_{path.name}")
    (place / "notes.txt").write_text("no scan")
    (place / "zeros.dcm").write_bytes(bytes(500))
    assert run_job(Job("ct", place, out, Path("ct_insight"))) is Exit.OK
    again = {path.name: path.read_bytes() for path in (out / "results").iterdir()}
    assert {name for name in first if name.endswith(".dcm")} >= {"sr.dcm", "pm.dcm"}
    differing = {name for name in first | again if first.get(name) != again.get(name)}
    assert differing <= {"result.json"}  # which tells what lay beside the slices
    results = [json.loads(files["result.json"]) for files in (first, again)]
    assert results[0]["probabilities"] == results[1]["probabilities"]
    assert "ignored" in results[1]["remarks"]


def test_one_file_of_legacy_converted_enhanced_ct_has_the_same_answer_of_the_same_patient(study, tmp_path):
    import highdicom

    slices = [pydicom.dcmread(path) for path in study.rglob("IM*")]
    for dataset in slices:
        for keyword in ("AcquisitionDate", "ContentDate"):
            setattr(dataset, keyword, dataset.StudyDate)
        for keyword in ("AcquisitionTime", "ContentTime"):
            setattr(dataset, keyword, dataset.StudyTime)
        dataset.AcquisitionNumber, dataset.KVP, dataset.PositionReferenceIndicator = 1, 120, ""
    converted = highdicom.legacy.LegacyConvertedEnhancedCTImage(slices, "1.2.3", 2, "1.2.3.4", 1)
    (tmp_path / "in").mkdir()
    converted.save_as(tmp_path / "in" / "ct.dcm")
    said = {}
    for name, place in (("slices", study), ("frames", tmp_path / "in")):
        assert run_job(Job("ct", place, tmp_path / name, Path("ct_insight"))) is Exit.OK
        said[name] = json.loads((tmp_path / name / "results" / "result.json").read_text())
        objects = {path.name: pydicom.dcmread(path) for path in (tmp_path / name / "results").glob("*.dcm")}
        assert set(objects) >= {"sr.dcm", "seg.dcm", "pm.dcm"}
        for dataset in objects.values():
            assert {keyword: str(dataset.get(keyword)) for keyword in KEPT} == {word: PATIENT[word] for word in KEPT}
    assert said["frames"]["probabilities"] == said["slices"]["probabilities"]

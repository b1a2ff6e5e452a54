"""The application for slides: the same answer of the same pixels as TIFF and as DICOM, and nobody's name."""

from __future__ import annotations

import json
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian

from monai_mil.deploy import Exit, Job, Redaction, run_job
from monai_mil.deploy.logs import ALLOW, logged
from monai_mil.slides import open_slide
from tests.deploy.drawn import PATIENT
from tests.label.drawn import draw_slide
from tests.slides.test_dicom import tiles, write

pytest.importorskip("highdicom", exc_type=ImportError, reason="highdicom needs pydicom 3")

SIZE = (1024, 768)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Where the results lie of one slide as TIFF and as DICOM, and all that was logged."""
    place = tmp_path_factory.mktemp("slides")
    tiff = draw_slide(place / "YAMADA_TAROU" / "tiff" / "YAMADA_TAROU.tif", positive=True, seed=1)
    with open_slide(tiff) as slide:
        pixels = slide.read(0, 0, SIZE)
    dicom = place / "YAMADA_TAROU" / "dicom"
    dicom.mkdir()
    facts = {name: value for name, value in PATIENT.items() if name not in ("SeriesNumber", "Manufacturer")}
    frames = [tile.tobytes() for tile in tiles(pixels)]
    write(dicom / "SECRET-17.dcm", frames, ExplicitVRLittleEndian, "RGB", size=SIZE, **facts)
    out = {name: place / f"out_{name}" for name in ("tiff", "dicom")}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(ALLOW, raising=False)
        for name, folder in out.items():
            source = place / "YAMADA_TAROU" / name
            with logged(Redaction(source), "INFO"):
                code = run_job(Job("slide", source, folder, Path("pathology_insight")))
            assert code is Exit.OK, (folder / "status.json").read_text()
    return {name: folder / "results" for name, folder in out.items()}


def test_the_same_pixels_have_the_same_answer(answers):
    said = {name: json.loads((folder / "result.json").read_text()) for name, folder in answers.items()}
    assert said["dicom"]["probabilities"] == pytest.approx(said["tiff"]["probabilities"], abs=1e-5)
    assert said["dicom"]["prediction"] == said["tiff"]["prediction"]


def test_dicom_objects_are_made_of_a_dicom_slide_alone(answers):
    names = {name: {path.name for path in folder.iterdir()} for name, folder in answers.items()}
    pictures = {"heatmap.geojson", "heatmap.png", "heatmap.tif", "result.json"}
    assert names["tiff"] == pictures
    assert names["dicom"] >= pictures | {"sr.dcm", "ann.dcm"}
    for path in answers["dicom"].glob("*.dcm"):
        assert str(pydicom.dcmread(path).PatientName) == PATIENT["PatientName"]


def test_no_file_but_the_dicom_objects_names_anybody(answers):
    for folder in answers.values():
        for path in (*folder.iterdir(), folder.parent / "status.json"):
            content = b"" if path.suffix == ".dcm" else path.read_bytes().lower()
            assert not [name for name in (b"yamada", b"tarou", b"secret") if name in content], path.name

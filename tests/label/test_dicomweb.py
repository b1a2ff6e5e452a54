"""Scans in Orthanc, asked as OHIF asks: of our application, and of MONAI Label's own with a copied bundle.

Needs MONAI Label and Orthanc (``apt-get install orthanc orthanc-dicomweb``).
"""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813

from monai_mil.label import LabelStore, init_project
from monai_mil.runs import copy_for_monailabel, find_bundle
from monai_mil.synthetic import make_scan_cohort
from tests import orthanc
from tests.conftest import SHARED, unpacked
from tests.label.clients import Ohif
from tests.label.served import Served

monailabel = pytest.importorskip("monailabel", reason="MONAI Label is absent: run scripts/setup.sh label")
pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(orthanc.PROGRAM is None or not orthanc.PLUGIN.exists(), reason=orthanc.ABSENT),
]

MODEL = "ct_insight"
NAMES = ["medium", "high"]
LIDC = "1.3.6.1.4.1.14519.5.2.1.6279.6001.154677396354641150280013275227"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Three small synthetic series, and the real one of LIDC-IDRI-0314 where it is at hand."""
    folder = tmp_path_factory.mktemp("orthanc")
    make_scan_cohort(folder / "made", num_scans=8, slices=(8, 9), size=96, slice_mm=20.0, seed=1)
    with orthanc.running(folder / "store") as running:
        for series in sorted((folder / "made" / "scans").iterdir())[:3]:
            running.add(series)
        archive = "data/ct_chest_lidc0314/lidc0314_5mm_dicom.tar.xz"
        if (SHARED / archive).exists():
            running.add(unpacked(archive, folder / "lidc"))
        yield running


@pytest.fixture(scope="module")
def made(store):
    """The UIDs of the synthetic series."""
    return sorted({each["MainDicomTags"]["SeriesInstanceUID"] for each in store.series("CT")} - {LIDC})


def served(folder: Path, store, **kind) -> Served:
    server = Served(folder, store.address, **kind)
    server.start()
    return server


@pytest.fixture(scope="module")
def ours(store, tmp_path_factory):
    """Ours, with an operating point so low that every scan has heat."""
    app = init_project(tmp_path_factory.mktemp("ours") / "app", [MODEL])
    conf = json.loads((app / "label.json").read_text())
    conf["settings"][MODEL] = {"operating_points": [0.0]}
    (app / "label.json").write_text(json.dumps(conf))
    server = served(app, store)
    yield server
    server.stop()


def parts_of(reply) -> tuple[dict, sitk.Image]:
    """What a client is told, and the label map beside it."""
    from requests_toolbelt.multipart.decoder import MultipartDecoder

    assert reply.status == 200, reply.body[:500]
    params, image = MultipartDecoder(reply.body, reply.kind).parts
    with NamedTemporaryFile(suffix=".nrrd") as file:
        file.write(image.content)
        file.flush()
        return json.loads(params.content), sitk.ReadImage(file.name)


def volume_of(ours: Served, uid: str) -> sitk.Image:
    return sitk.ReadImage(str(next((ours.app / "studies").glob(f"*/{uid}.nii.gz"))))


def check_seg(reply, uid: str) -> None:
    assert (reply.status, reply.kind) == (200, "application/dicom")
    seg = pydicom.dcmread(io.BytesIO(reply.body))
    assert (seg.Modality, seg.ReferencedSeriesSequence[0].SeriesInstanceUID) == ("SEG", uid)
    assert seg.SegmentSequence[0].SegmentLabel in NAMES
    assert seg.pixel_array.any()


def test_series_are_listed_and_the_next_one_is_chosen_among_them(ours, store, made):
    client = Ohif(ours.port)
    info = client.send("GET", "/info/").json
    assert info["datastore"]["total"] == len(store.series("CT"))
    assert "heat" not in info["strategies"]
    assert client.next("first").json["id"] in [*made, LIDC]
    assert client.send("GET", "/ohif/").status == 200
    assert len(client.send("GET", "/proxy/dicom/qido/series").json) == info["datastore"]["total"]
    assert client.infer(MODEL, "1.2.3").json["detail"] == "no image '1.2.3' among the studies of the server"


def test_the_answer_lies_on_the_voxels_that_the_viewer_shows(ours, made):
    client = Ohif(ours.port)
    told, mask = parts_of(client.infer(MODEL, made[0]))
    volume = volume_of(ours, made[0])
    assert mask.GetSize() == volume.GetSize()
    for said, true in zip(
        (mask.GetOrigin(), mask.GetSpacing()), (volume.GetOrigin(), volume.GetSpacing()), strict=True
    ):
        np.testing.assert_allclose(said, true, atol=1e-3)
    assert told["scan_id"] == made[0]
    assert set(told["probabilities"]) == {"negative", "positive"}
    values = sitk.GetArrayViewFromImage(mask)
    assert set(np.unique(values)) <= {0, 1, 2}
    assert values[told["highest"]["slice"]].any()
    check_seg(client.infer(MODEL, made[0], "dicom_seg", label_info=[{"name": name} for name in NAMES]), made[0])


def test_a_real_series_is_answered_on_its_own_voxels(ours, store):
    if not any(each["MainDicomTags"]["SeriesInstanceUID"] == LIDC for each in store.series("CT")):
        pytest.skip("reference data 'data/ct_chest_lidc0314' is absent; set MONAI_MIL_SHARED")
    client = Ohif(ours.port)
    told, mask = parts_of(client.infer(MODEL, LIDC))
    volume = volume_of(ours, LIDC)
    assert mask.GetSize() == volume.GetSize() == (512, 512, 55)
    np.testing.assert_allclose(mask.GetOrigin(), volume.GetOrigin(), atol=1e-3)
    assert told["highest"]["sop_uid"].startswith("1.3.6.1.4.1.14519")
    check_seg(client.infer(MODEL, LIDC, "dicom_seg", label_info=[{"name": name} for name in NAMES]), LIDC)


def test_masks_are_labels_here_and_dicom_seg_there_and_train_the_model(ours, store, made):
    client = Ohif(ours.port)
    shapes = [volume_of(ours, made[0]).GetSize()]
    for uid in made[1:]:
        client.infer(MODEL, uid)
        shapes.append(volume_of(ours, uid).GetSize())
    drawn = np.zeros(shapes[0], np.uint8)
    drawn[2:9, 2:9, 3:5] = 1
    other = client.submit(made[0], drawn[:, :, 1:].tobytes(order="F"), NAMES)
    assert other.status == 400
    assert "was it drawn on another scan?" in other.json["detail"]
    assert client.submit(made[0], drawn.tobytes(order="F"), NAMES).status == 200
    for uid, shape in zip(made[1:], shapes[1:], strict=True):  # nothing there: a label too, and no DICOM SEG
        assert client.submit(uid, np.zeros(shape, np.uint8).tobytes(), NAMES).status == 200
    labels_kept = LabelStore(ours.app / "studies" / ".mil")
    labels = {uid: labels_kept.read(uid).label for uid in made}
    assert [labels[uid].label for uid in made] == ["positive", "negative", "negative"]
    assert labels[made[0]].model == MODEL
    (seg,) = store.series("SEG")
    kept = store.send("GET", f"/instances/{seg['Instances'][0]}/file").body
    assert pydicom.dcmread(io.BytesIO(kept)).ReferencedSeriesSequence[0].SeriesInstanceUID == made[0]
    assert client.send("GET", "/info/").json["datastore"]["completed"] == 3
    assert client.train(MODEL, max_epochs=1, val_split=0).status == 200
    task = ours.ended("/train/")
    assert task["status"] == "DONE", "\n".join(task["details"])
    assert client.next("uncertainty").json.get("id", LIDC) == LIDC


def test_monai_label_s_own_application_answers_with_a_copied_bundle(store, made, tmp_path):
    app = tmp_path / "monaibundle"
    shutil.copytree(Path(sys.prefix) / "monailabel" / "sample-apps" / "monaibundle", app)
    copy = copy_for_monailabel(find_bundle(MODEL), app / "model")
    card = json.loads((copy / "models" / "model.json").read_text())
    (copy / "models" / "model.json").write_text(json.dumps({**card, "operating_points": [0.0]}))
    stock = (("models", MODEL), ("zoo_source", "local"), ("skip_trainers", "true"))
    cache = {"MONAI_LABEL_DICOMWEB_CACHE_PATH": str(tmp_path / "cache"), "MONAI_LABEL_DICOMWEB_CACHE_EXPIRY": "1"}
    server = served(app, store, stock=stock, environment=cache)
    try:
        client = Ohif(server.port)
        assert client.next("first").json["id"] in [*made, LIDC]
        told, mask = parts_of(client.infer(MODEL, made[1]))
        volume = sitk.ReadImage(str(next((tmp_path / "cache").glob(f"*/{made[1]}.nii.gz"))))
        assert mask.GetSize() == volume.GetSize()
        assert set(told["probabilities"]) == {"negative", "positive"}
        check_seg(client.infer(MODEL, made[1], "dicom_seg", label_info=[{"name": name} for name in NAMES]), made[1])
    finally:
        server.stop()

"""The real server on loopback, asked by the clients that pathologists use; one start for all of this file.

Needs MONAI Label: ``scripts/setup.sh label`` and ``.venv-label/bin/python -m pytest tests/label``.
"""

from __future__ import annotations

import io
import json
import shutil
import socket
import threading
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from monai_mil.label import ANCHOR, init_project
from monai_mil.model_card import read_model
from tests.label.clients import Archive, Script
from tests.label.drawn import LESION, asap, draw_slide, draw_studies
from tests.label.served import Served
from tests.slides.scn import CANVAS, CORNER, write_scn

monailabel = pytest.importorskip("monailabel", reason="MONAI Label is absent: run scripts/setup.sh label")
pytestmark = pytest.mark.timeout(900)

MODELS = ["pathology_asmil", "pathology_insight", "ct_normal_guidance"]
SIZE = (1024, 768)
PLANTED = "SURNAME^PLANTED"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("label")
    studies = draw_studies(folder / "studies", count=12)
    (studies / "pos_0.xml").write_text("beside a slide, and no slide")
    draw_slide(studies / f"{PLANTED}.tif", positive=False, seed=99)
    image = np.full((768, 768, 3), (200, 120, 170), np.uint8)
    image[256:512, 256:512] = np.random.default_rng(0).integers(40, 120, (256, 256, 3))
    write_scn(studies / "bounded.scn", image)
    server = Served(init_project(folder / "app", MODELS), studies)
    server.start()
    yield server
    server.stop()


def drawn(xml: bytes) -> list[tuple[str, np.ndarray]]:
    """Class and corners of every annotation, as QuPath reads them."""
    return [
        (each.get("Name"), np.array([(float(c.get("X")), float(c.get("Y"))) for c in each.iter("Coordinate")]))
        for each in ElementTree.fromstring(xml).iter("Annotation")
    ]


def share_within(polygons: list[tuple[str, np.ndarray]], box: tuple[float, float, float, float]) -> float:
    """Of the area of polygons the share whose box lies within another, by the middles of their own."""
    near, far = np.array(box[:2]), np.array(box[2:])
    areas = [(np.ptp(points, axis=0).prod(), (points.min(axis=0) + points.max(axis=0)) / 2) for _, points in polygons]
    return sum(area for area, middle in areas if ((middle >= near) & (middle <= far)).all()) / sum(
        area for area, _ in areas
    )


def test_info_lists_models_trainers_strategies_and_scoring(served):
    info = served.qupath.send("GET", "/info/").json
    assert list(info["models"]) == list(info["trainers"]) == MODELS
    assert info["labels"] == ["MIL medium", "MIL high"]
    assert info["models"]["pathology_insight"]["classes"] == ["normal", "tumor"]
    assert {"uncertainty", "heat", "bald", "committee", "diversity", "hybrid", "random", "first"} == set(
        info["strategies"]
    )
    assert set(info["scoring"]) == {"scores", "agreement"}
    assert all(value is not None for each in info["trainers"].values() for value in each["config"].values())
    assert info["datastore"]["total"] == 14
    assert info["datastore"]["completed"] == 0


def test_it_listens_on_this_machine_only(served):
    address = socket.gethostbyname(socket.gethostname())
    if not address.startswith("127."):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((address, served.port), timeout=2)


def test_qupath_finds_slides_by_name_and_gets_polygons_on_the_lesion(served):
    assert [served.qupath.has_image(name) for name in ("pos_1", "neg_0", "other")] == [200, 200, 404]
    reply = served.qupath.infer("pathology_insight", "pos_1", (0, 0, *SIZE))
    assert (reply.status, reply.kind.partition(";")[0]) == (200, "application/xml")
    polygons = drawn(reply.body)
    assert {name for name, _ in polygons} <= {"MIL medium", "MIL high"}
    corners = np.concatenate([points for _, points in polygons])
    assert (corners >= 0).all()
    assert (corners <= SIZE).all()
    assert share_within(polygons, (*np.array(LESION[:2]) - 64, *np.array(LESION[2:]) + 64)) > 0.5
    record = served.store.read("pos_1")
    assert record.shown["127.0.0.1"] == (
        "pathology_insight",
        read_model(served.app / "model" / MODELS[1] / "models" / "model.pt").weights,
    )
    assert record.scores["pathology_insight"].prediction == "tumor"


def test_the_rectangle_clips_what_is_drawn(served):
    x, y, width, height = 600, 300, 200, 100
    polygons = drawn(served.qupath.infer("pathology_insight", "pos_1", (x, y, width, height)).body)
    corners = np.concatenate([points for _, points in polygons])
    assert (corners >= (x, y)).all()
    assert (corners <= (x + width, y + height)).all()


def test_a_picture_of_a_rectangle_is_answered_in_its_own_pixels(served):
    import tifffile
    from PIL import Image

    pixels = tifffile.imread(served.studies / "batch" / "pos_1.tif", key=0)[128:640, 384:1024]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    reply = served.qupath.infer_picture("pathology_insight", file.getvalue())
    assert reply.status == 200
    corners = np.concatenate([points for _, points in drawn(reply.body)])
    assert (corners >= 0).all()
    assert (corners <= (640, 512)).all()
    assert served.qupath.infer_picture("pathology_insight", b"no picture").status == 400


def test_the_archive_gets_the_whole_slide_and_a_heatmap_in_level_0_pixels(served):
    reply = Archive(served.port).infer("pathology_insight", "bounded")
    annotation = reply.json
    assert (reply.status, reply.kind) == (200, "application/json")
    grid = annotation["elements"][-1]
    assert grid["type"] == "griddata"
    assert len(grid["values"]) % grid["gridWidth"] == 0
    assert grid["origin"][0] > CORNER[0] - 256  # the first tile reaches over the corner of the scanned part
    description = json.loads(json.loads("{" + reply.body.decode().splitlines()[-2] + "}")["description"])
    assert description["model"] == "pathology_insight"
    assert {each["type"] for each in annotation["elements"][:-1]} <= {"polyline"}


def test_qupath_and_the_archive_are_answered_each_in_its_own_frame(served):
    whole = (0, 0, *(side - corner for side, corner in zip(CANVAS, CORNER, strict=True)))
    qupath = served.qupath.infer("pathology_asmil", "bounded", whole, output="json").json
    archive = Archive(served.port).infer("pathology_asmil", "bounded").json["elements"]
    assert qupath["frame_origin"] == list(CORNER)
    in_qupath = [np.array(feature["geometry"]["coordinates"][0][:-1]) for feature in qupath["features"]]
    in_archive = [np.array(each["points"])[:, :2] for each in archive if each["type"] == "polyline"]
    assert len(in_qupath) == len(in_archive) > 0
    for first, second in zip(in_qupath, in_archive, strict=True):
        np.testing.assert_allclose(first + CORNER, second)


_WSI, _LABEL = "/infer/wsi/pathology_asmil?image=pos_1", "/datastore/label?image=pos_1"
_SCAN = "/infer/ct_normal_guidance?image=pos_1"
_OF_NO_GROUP = b'{"elements":[{"type":"point","group":{"a":1},"center":[1,2,0]}]}'


def form(client, method, path, **fields):
    """Send a form; files are called .json."""
    files = ("label", "file")
    parts = [(name, said, "sent.json" if name in files else None) for name, said in fields.items()]
    return client._multipart(method, path, parts)


@pytest.mark.parametrize(
    ("send", "status", "said"),
    [
        (lambda q: q.infer("pathology_asmil", "other", (0, 0, 10, 10)), 404, "no image 'other'"),
        (lambda q: q.infer("ct_normal_guidance", "pos_1", (0, 0, 10, 10)), 400, "reads scans"),
        (lambda q: q.infer("nothing", "pos_1", (0, 0, 10, 10)), 400, "no model 'nothing'"),
        (lambda q: q.submit("other", asap("tumor", LESION)), 404, "no image 'other'"),
        (lambda q: q.submit("pos_1", asap("stroma", LESION)), 400, "no class of the model among 'stroma'"),
        (lambda q: q.submit("pos_1", asap("tumor", (9000, 9000, 9001, 9001))), 400, "outside the slide"),
        (lambda q: q.submit("pos_1", "<ASAP_Annotations></ASAP_Annotations>"), 400, "is empty"),
        (lambda q: q.submit("pos_1", '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'), 400, "declares a document type"),
        (lambda q: q.submit("pos_1", "a \" < & '"), 400, "no XML of ASAP"),
        (lambda q: q.send("POST", "/activelearning/first", b'{"n": "many"}'), 400, "n 'many' is no whole number"),
        (lambda q: q.send("POST", "/activelearning/heat", b'{"image": "pos_1", "patch_size": 5}'), 400, "patch_size 5"),
        (lambda q: q.next("anchor"), 400, "no model has the anchor"),
        (lambda q: q.send("POST", "/infer/wsi/pathology_asmil?image=pos_1", b"{"), 422, ""),
        (lambda q: q.send("POST", "/infer/wsi/pathology_asmil?image=" + "x" * 3000, b"{}"), 404, "no image 'xxx"),
        (lambda q: q.send("POST", "/infer/wsi/pathology_asmil", b"{}"), 400, "Neither Image nor File"),
        (lambda q: q.send("POST", _WSI, b'{"location":[1],"size":[5,5]}'), 400, "two whole numbers each"),
        (lambda q: q.send("POST", _WSI, b'{"params":{"wsi_tiles":[{"location":[0,0]}]}}'), 400, "two whole numbers"),
        (lambda q: q.send("POST", _WSI, b'{"params":{"model":["x"]}}'), 400, "no model '['x']'"),
        (lambda q: form(q, "POST", "/infer/ct_normal_guidance?image=other", params=b"{}"), 404, "no image 'other'"),
        (lambda q: form(q, "POST", "/infer/ct_normal_guidance?image=other", params=b"{"), 400, "'params' is no JSON"),
        (lambda q: form(q, "POST", "/infer/ct_normal_guidance?image=pos_1", params=b"[1]"), 400, "no JSON object"),
        (lambda q: form(q, "POST", _SCAN, params=b'{"result_extension":"/../x.nii"}'), 400, "result_extension"),
        (lambda q: form(q, "PUT", _LABEL, label=b"{}", params=b"{"), 400, "'params' is no JSON"),
        (lambda q: form(q, "PUT", _LABEL, label=_OF_NO_GROUP), 400, "none of the Digital Slide Archive"),
        (
            lambda q: form(q, "PUT", "/datastore/image?image=new", file=b"no slide"),
            400,
            "'new.json' is no slide or scan",
        ),
        (
            lambda q: form(q, "PUT", "/model/pathology_asmil", file=b"weights"),
            405,
            "weights come and go with their card",
        ),
        (lambda q: q.send("DELETE", "/model/pathology_asmil"), 405, "weights come and go with"),
        (lambda q: q.send("POST", "/train/nothing", b"{}"), 400, "no model 'nothing'"),
        (lambda q: q.send("POST", "/activelearning/first", b'{"strategy":["x"]}'), 400, "no strategy ['x']"),
        (lambda q: q.send("POST", "/activelearning/heat", b'{"n":1e400}'), 400, "n inf is no whole number"),
    ],
)
def test_bad_input_is_one_clear_answer_and_the_server_goes_on(served, send, status, said):
    reply = send(served.qupath)
    assert reply.status == status
    assert said in str(reply.json["detail"])
    assert served.qupath.send("GET", "/info/").status == 200
    assert not served.store.read("pos_1").submissions


def test_an_image_that_is_no_slide_is_told(served):
    path = served.studies / "no_slide.tif"
    path.write_text("no slide")
    try:
        client = served.qupath
        client.send("GET", "/datastore/?output=all")
        reply = client.infer("pathology_asmil", "no_slide", (0, 0, 10, 10))
        assert reply.status == 400
        assert "no_slide.tif" in reply.json["detail"]
    finally:
        path.unlink()


def test_others_are_answered_within_a_second_while_a_slide_is(served):
    served.qupath.infer("pathology_insight", "pos_0", (0, 0, *SIZE))  # its features are there then
    slowest, replies = 0.0, []

    def ask() -> None:
        replies.append(served.qupath.infer("pathology_insight", "neg_4", (0, 0, *SIZE)).status)  # its are made now
        replies.extend(served.qupath.infer("pathology_insight", "pos_0", (0, 0, *SIZE)).status for _ in range(5))

    thread = threading.Thread(target=ask)
    thread.start()
    while thread.is_alive():
        begun = time.monotonic()
        assert served.qupath.send("GET", "/info/").status == 200
        slowest = max(slowest, time.monotonic() - begun)
    assert replies == [200] * 6
    assert slowest < 1


def test_the_next_image_is_the_most_doubtful_of_fresh_scores(served):
    begun_by_the_server = served.ended("/scoring/")
    assert begun_by_the_server["status"] == "DONE"
    scoring = served.qupath.send("POST", "/scoring/scores?run_sync=true", b"{}").json
    assert scoring["scored"]["pathology_asmil"] == 14
    scores = {record.image: record.scores["pathology_asmil"].values for record in served.store.records()}
    order = sorted(scores, key=lambda name: (-scores[name]["uncertainty"], name))
    reply = served.qupath.next("uncertainty").json
    assert reply["id"] == order[0]
    assert Path(reply["path"]).stem == order[0]
    assert served.qupath.next("uncertainty").json["id"] == order[0]
    ben = json.dumps({"client_id": "ben", "n": 3}).encode()
    batch = served.qupath.send("POST", "/activelearning/uncertainty", ben).json
    assert batch["ids"] == order[1:4]


def test_the_next_part_lies_within_the_slide_at_the_hottest_tile(served):
    reply = served.qupath.next("heat", "pos_2", SIZE).json
    x, y, width, height = reply["bbox"]
    assert reply["id"] == "pos_2"
    assert all(isinstance(value, int) for value in reply["bbox"])
    assert 0 <= x <= SIZE[0] - width
    assert 0 <= y <= SIZE[1] - height
    assert (width, height) == (256, 256)


def test_monai_label_s_own_client_is_answered(served, tmp_path):
    from monailabel.client import MONAILabelClient

    client = MONAILabelClient(f"http://127.0.0.1:{served.port}", tmpdir=str(tmp_path), client_id="cleo")
    assert set(client.info()["models"]) == set(MODELS)
    body = {"location": [0, 0], "size": list(SIZE), "min_poly_area": 0, "params": {}}
    _, reply = client.wsi_infer("pathology_asmil", "neg_1", body, output="json")
    assert json.loads(reply)["type"] == "FeatureCollection"
    assert client.next_sample("first", {})["id"]


def test_a_scan_s_answer_is_a_mask_on_its_own_grid(served, tmp_path):
    import nibabel
    from monailabel.client import MONAILabelClient

    rng = np.random.default_rng(0)
    voxels = rng.integers(-900, 100, (64, 64, 12)).astype(np.int16)
    affine = np.diag([-0.7, -0.7, 5.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(voxels, affine), served.studies / "scan_1.nii.gz")
    client = MONAILabelClient(f"http://127.0.0.1:{served.port}", tmpdir=str(tmp_path), client_id="cleo")
    mask, params = client.infer("ct_normal_guidance", "scan_1", {"result_extension": ".nii.gz"})
    answered = nibabel.load(mask)
    assert answered.shape == voxels.shape
    np.testing.assert_allclose(answered.affine, affine, atol=1e-4)
    assert set(params["probabilities"]) == {"negative", "positive"}
    assert params["label_names"] == {"MIL medium": 1, "MIL high": 2}
    client.save_label("scan_1", mask, params={"label_info": []})
    assert served.store.read("scan_1").label.annotator == "cleo"


def test_labels_train_a_model_that_is_served_without_a_restart(served):
    qupath, weights = served.qupath, served.weights("pathology_asmil")
    before = read_model(weights).weights
    for number in (0, 1, 2, 3):
        qupath.infer("pathology_asmil", f"pos_{number}", (0, 0, *SIZE))
        assert qupath.submit(f"pos_{number}", asap("tumor", LESION)).status == 200
        assert qupath.submit(f"neg_{number}", asap("Normal", (0, 0, 100, 100))).status == 200
    assert qupath.submit("neg_0", asap("MIL high", LESION)).status == 200  # left over from the model
    label = served.store.read("pos_0").label
    assert (label.annotator, label.model, label.fingerprint) == ("127.0.0.1", "pathology_asmil", before)
    assert label.time
    started = qupath.train("pathology_asmil", max_epochs=8, val_split=0.25, learning_rate=0.003)
    assert started.status == 200
    task = served.ended("/train/")
    assert task["status"] == "DONE", "\n".join(task["details"])
    after = read_model(weights).weights
    assert after != before
    table = next((served.app / "runs").glob("*/cohort.csv")).read_text()
    assert (table.count("normal"), table.count("tumor")) == (4, 4)
    said = {
        name: qupath.infer("pathology_asmil", name, (0, 0, *SIZE), output="json").json for name in ("pos_5", "neg_5")
    }
    assert all(reply["fingerprint"] == after for reply in said.values())
    assert said["pos_5"]["probabilities"]["tumor"] > 0.8 > 0.5 > said["neg_5"]["probabilities"]["tumor"]
    assert weights.with_name(ANCHOR).is_file()
    assert "anchor" in qupath.send("GET", "/info/").json["strategies"]
    assert qupath.next("anchor").json["id"]
    fresh = served.store.read(qupath.next("uncertainty").json["id"]).scores["pathology_asmil"]
    assert fresh.fingerprint == after


def test_when_all_is_labelled_nothing_is_next(served):
    for path in (*served.studies.rglob("*.tif"), served.studies / "bounded.scn"):
        name = path.name.partition(".")[0]
        if served.store.read(name).label is None:
            assert served.qupath.submit(name, asap("Normal", (10, 10, 20, 20))).status == 200
    assert served.qupath.next("uncertainty").json == {}
    info = served.qupath.send("GET", "/info/").json["datastore"]
    assert info["completed"] == info["total"]


def test_agreement_and_batches_are_answered(served):
    served.ended("/scoring/")
    agreement = served.qupath.send("POST", "/scoring/agreement?run_sync=true", b"{}").json
    assert agreement["pathology_asmil"]["images"] == 14
    assert 0 <= agreement["pathology_asmil"]["agree"] <= 1
    asked = "/batch/infer/pathology_asmil?images=labeled&run_sync=true"
    batch = served.qupath.send("POST", asked, b'{"max_batch_size": 2}')
    assert batch.status == 200
    assert [reply["params"]["model"] for reply in batch.json.values()] == ["pathology_asmil"] * 2


def test_the_script_for_newer_qupath_is_answered(served):
    script = Script(served.port)
    heat = script.heatmap("pathology_asmil", "bounded", (1, 1)).json
    assert heat["type"] == "FeatureCollection"
    assert heat["prediction"] in ("normal", "tumor")
    ring = [[10, 10], [200, 10], [200, 200], [10, 10]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}}
    feature["properties"] = {"objectType": "annotation", "classification": {"name": "tumor"}}
    submitted = script.submit("bounded", json.dumps({"type": "FeatureCollection", "features": [feature]}))
    assert submitted.status == 200
    label = served.store.read("bounded").label
    assert (label.label, label.annotator, label.model) == ("tumor", "anna", "pathology_asmil")
    assert label.boxes == ((CORNER[0] + 10, CORNER[1] + 10, CORNER[0] + 200, CORNER[1] + 200),)
    x, y, width, height = script.next("uncertainty", "bounded", CANVAS).json["bbox"]
    assert 0 <= x < x + width <= CANVAS[0]
    assert 0 <= y < y + height <= CANVAS[1]


def test_a_patch_that_qupath_sends_is_a_part_of_its_slide(served):
    name = "bounded-patch-10_20_256_256"
    before = served.qupath.send("GET", "/info/").json["datastore"]["total"]
    sent = form(served.qupath, "PUT", f"/datastore/image?image={name}", file=b"a picture of the rectangle")
    assert (sent.status, sent.json) == (200, {"image": name})
    assert served.qupath.submit(name, asap("tumor", (0, 0, 50, 40))).status == 200
    kept = served.store.read("bounded").submissions[-1]
    assert (kept.label, kept.boxes) == ("tumor", ((CORNER[0] + 10, CORNER[1] + 20, CORNER[0] + 60, CORNER[1] + 60),))
    assert served.qupath.send("GET", "/info/").json["datastore"]["total"] == before


def test_logs_name_no_patient(served):
    served.qupath.infer("pathology_asmil", PLANTED, (0, 0, *SIZE))
    served.qupath.infer("pathology_asmil", PLANTED + "^OTHER", (0, 0, *SIZE))
    served.qupath.infer("pathology_asmil", PLANTED.lower(), (0, 0, *SIZE))
    path = served.studies / f"{PLANTED}.tif"
    broken = served.studies / "batch" / f"{PLANTED}^2.tif"
    shutil.move(path, served.studies / "kept")
    path.write_text("damaged")
    broken.write_text("damaged")
    assert served.qupath.infer("pathology_asmil", PLANTED, (0, 0, *SIZE)).status == 400
    served.qupath.send("GET", "/logs/?lines=100&image=" + PLANTED)
    served.qupath.send("POST", "/scoring/scores", b"{}")  # another process, which cannot read the broken slide
    assert served.ended("/scoring/")["status"] == "DONE"
    shutil.move(served.studies / "kept", path)
    broken.unlink()
    logs = [served.app / "said.log", *(served.app / "logs").glob("*")]
    assert logs
    for log in logs:
        said = log.read_text(errors="replace").upper()
        assert "not scored" in said.lower() or log.name != "said.log"
        for part in PLANTED.split("^"):
            assert part not in said, log

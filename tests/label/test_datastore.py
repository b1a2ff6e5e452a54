"""A project as MONAI Label's endpoints see it, without a server: what is there, taken, and never removed."""

import zipfile
from pathlib import Path

import pytest

from monai_mil.label import Project, init_project
from tests.label.drawn import asap, draw_slide

pytest.importorskip("monailabel", reason="MONAI Label is absent: run scripts/setup.sh label")
from fastapi import HTTPException

from monai_mil.label.datastore import ProjectDatastore

MODEL = "pathology_asmil"


@pytest.fixture
def store(tmp_path):
    """Two slides, of which ``a`` was called normal at first and then a tumour."""
    studies = tmp_path / "studies"
    for seed, name in enumerate(("a", "b")):
        draw_slide(studies / f"{name}.tif", positive=False, seed=seed)
    store = ProjectDatastore(Project(init_project(tmp_path / "app", [MODEL]), studies))
    for name in ("normal", "tumor"):
        label = tmp_path / "label.xml"
        label.write_text(asap(name, (0, 0, 100, 100)))
        assert store.save_label("a", str(label), "final", {"client_id": "anna", "label_info": []}) == "a"
    return store


def refused(call, *arguments):
    with pytest.raises(HTTPException) as told:
        call(*arguments)
    return told.value.status_code, told.value.detail


def test_it_lists_images_and_the_latest_label_of_each(store):
    folder = store.project.images.folder
    assert store.list_images() == ["a", "b"]
    assert (store.get_labeled_images(), store.get_unlabeled_images()) == (["a"], ["b"])
    assert store.datalist() == [{"image": str(folder / "a.tif"), "label": "tumor"}]
    assert store.status() == {"total": 2, "completed": 1, "label_tags": {"final": 1}}
    assert store.json() == {"objects": {"a": {"final": "a"}, "b": {}}}
    assert (store.get_label_by_image_id("a", "final"), store.get_label_by_image_id("b", "final")) == ("a", "")


def test_an_image_is_its_file_and_a_patch_is_that_of_its_slide(store):
    path = store.project.images.folder / "a.tif"
    patch = "a-patch-10_20_256_256"
    assert [store.get_image_uri(name) for name in ("a", "a.tif", patch, "other")] == [str(path)] * 3 + [""]
    assert store.get_image(patch).read() == path.read_bytes()
    assert store.get_image_info("a") == {"path": str(path), "name": "a.tif", "probabilities": {}}
    assert refused(store.get_image, "other")[0] == 404


def test_a_label_is_the_file_that_was_submitted_last_and_all_of_them_are_told(store):
    assert store.get_label("a", "final").read().decode() == asap("tumor", (0, 0, 100, 100))
    assert store.get_label("b", "final") is None
    told = store.get_label_info("a", "final")["submissions"]
    assert [(each["number"], each["annotator"], each["label"]) for each in told] == [
        (1, "anna", "normal"),
        (2, "anna", "tumor"),
    ]


def test_what_a_model_drew_is_kept_beside_what_was_submitted(store, tmp_path):
    drawn = tmp_path / "drawn.nii.gz"
    drawn.write_bytes(b"a mask")
    assert store.get_label_uri("b", "original") == ""
    assert store.save_label("b", str(drawn), "original", {}) == "b"
    assert store.get_labels_by_image_id("b") == {"original": "b"}
    assert Path(store.get_label_uri("b", "original")).name == "b.nii.gz"
    assert store.get_label("b", "original").read() == b"a mask"
    assert store.get_labeled_images() == ["a"]


def test_an_archive_holds_records_and_submissions_and_no_slide(store):
    path = Path(store.get_dataset_archive(None))
    names = {Path(name).suffix for name in zipfile.ZipFile(path).namelist()}
    path.unlink()
    assert names == {".json", ".xml"}


def test_a_new_slide_is_taken_once_and_a_patch_is_its_slide(store, tmp_path):
    new = draw_slide(tmp_path / "new.tif", positive=False, seed=5)
    assert store.add_image("c", str(new), {}) == "c"
    assert store.add_image("", str(new), {}) == "new"
    assert store.add_image("a-patch-10_20_256_256", str(new), {}) == "a-patch-10_20_256_256"
    assert store.list_images() == ["a", "b", "c", "new"]
    assert (store.project.images.folder / "c.tif").read_bytes() == new.read_bytes()
    assert refused(store.add_image, "c", str(new), {}) == (409, "an image 'c' is there already; it is not replaced")
    assert refused(store.add_image, "../d", str(new), {})[0] == 400
    text = tmp_path / "text.txt"
    text.write_text("no slide")
    code, said = refused(store.add_image, "d", str(text), {})
    assert (code, said) == (400, "'d.txt' is no slide or scan that the models here read")
    assert not (store.project.images.folder / "d.txt").exists()


def test_nothing_is_removed_and_nothing_is_changed_behind_the_annotator_s_back(store):
    assert refused(store.remove_image, "a")[0] == 405
    assert refused(store.remove_label, "a", "final")[0] == 405
    before = store.get_label_info("a", "final")
    store.update_image_info("a", {"label": "normal"})
    store.update_label_info("a", "final", {"label": "normal"})
    store.set_name("other")
    store.set_description("other")
    assert (store.name(), store.description()) == ("monai-mil", "slides and scans with weak labels")
    assert store.get_label_info("a", "final") == before

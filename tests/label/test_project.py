"""A folder of studies being labelled, without a server: names, submissions, strategies and training."""

import json

import pytest

from monai_mil.errors import AnnotationError, CohortError, SettingsError
from monai_mil.label import ANCHOR, Project, StudyImages, init_project, publish, train_on_labels
from monai_mil.model_card import read_model
from tests.label.drawn import LESION, asap, draw_studies


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    return draw_studies(tmp_path_factory.mktemp("studies"))


@pytest.fixture
def project(studies, tmp_path):
    """A new project on slides whose features an earlier test may have left."""
    for record in (studies / ".mil" / "images").glob("*.json"):
        record.unlink()
    return Project(init_project(tmp_path / "app", ["pathology_asmil"]), studies)


def submit(project, name, label, tmp_path, annotator="anna", box=(0, 0, 100, 100), **params):
    file = tmp_path / "label.xml"
    file.write_text(asap(label, box))
    return project.submit(name, file, annotator, params)


def test_images_are_found_in_sub_folders_and_by_any_spelling_of_their_file(project):
    assert [image.name for image in project.images.all()][:3] == ["neg_0", "neg_1", "neg_2"]
    assert project.images.find("pos_1.tif").name == project.images.find("pos_1").name == "pos_1"
    with pytest.raises(CohortError, match="no image 'other'"):
        project.images.find("other")


def test_a_submission_is_kept_with_its_label_or_refused_with_a_reason(project, tmp_path):
    assert submit(project, "pos_0", "Tumor", tmp_path).label == "tumor"
    assert submit(project, "pos_0", "MIL high", tmp_path).label is None
    patch = submit(project, "neg_0-patch-10_20_512_512", "normal", tmp_path)
    assert (patch.label, patch.boxes) == (None, ((10, 20, 110, 120),))
    assert submit(project, "neg_0-patch-10_20_512_512", "tumor", tmp_path, bag_label="normal").label == "normal"
    for name, label, box, error, said in (
        ("other", "tumor", (0, 0, 1, 1), CohortError, "no image 'other'"),
        ("pos_0", "stroma", (0, 0, 1, 1), AnnotationError, "no class of the model among 'stroma'"),
        ("pos_0", "tumor", (5000, 0, 5001, 1), AnnotationError, "outside the slide of 1024 x 768"),
    ):
        with pytest.raises(error, match=said):
            submit(project, name, label, tmp_path, box=box)
    assert len(project.store.read("pos_0").submissions) == 2
    assert {name: label.name for name, label in project.labels(project.model()).items()} == {
        "neg_0": "normal",
        "pos_0": "tumor",
    }


def test_strategies_that_these_models_do_not_allow_say_why(project):
    assert set(project.strategies()) == {"uncertainty", "heat", "bald", "diversity", "hybrid", "random", "first"}
    with pytest.raises(SettingsError, match="no strategy 'anchor': no model has the anchor"):
        project.next_images("anchor", "anna")
    with pytest.raises(SettingsError, match="no strategy 'committee': there are not two models"):
        project.next_images("committee", "anna")


def test_a_server_of_scans_alone_has_no_strategy_of_slides(tmp_path, studies):
    project = Project(init_project(tmp_path / "app", ["ct_insight"]), tmp_path / "scans")
    assert set(project.strategies()) == {"uncertainty", "diversity", "hybrid", "random", "first"}
    with pytest.raises(SettingsError, match="no strategy 'heat': the models read scans"):
        project.next_images("heat", "anna")
    assert project.next_images("uncertainty", "anna") == []
    project.images = StudyImages(studies, ["scans"])  # slides lie there, which no model here reads
    assert project.images.all() == []


def test_the_next_image_has_the_highest_fresh_score_and_nobody_gets_it_twice(project, tmp_path):
    model = project.model()
    scores = project.score_all(model)
    assert len(scores) == 8
    order = sorted(scores, key=lambda name: (-scores[name].values["uncertainty"], name))
    assert project.next_images("uncertainty", "anna") == order[:1]
    assert project.next_images("uncertainty", "anna") == order[:1]
    assert project.next_images("uncertainty", "ben", count=2) == order[1:3]
    submit(project, order[0], "tumor", tmp_path)
    assert project.next_images("uncertainty", "anna") == order[3:4]  # ben has the second and the third
    for strategy in ("heat", "bald", "diversity", "hybrid", "random", "first"):
        (name,) = project.next_images(strategy, "anna")
        assert name not in order[:3]
    for name in order:
        submit(project, name, "tumor", tmp_path, "cleo")
    assert project.next_images("uncertainty", "anna") == []


def test_a_slide_that_cannot_be_read_hides_no_other(project, studies, monkeypatch):
    broken = studies / "a_first.tif"
    broken.write_text("no slide")
    monkeypatch.setattr(type(project.model()), "has_features", lambda model, name: False)
    try:
        project.images.refresh()
        assert project.images.all()[0].name == "a_first"
        assert project.next_images("uncertainty", "anna") == ["neg_0"]
        assert project.next_images("first", "anna") == ["neg_0"]
        assert "a_first" not in project.next_images("random", "anna", count=9)
    finally:
        broken.unlink()
        project.images.refresh()


def test_the_next_part_of_a_slide_is_where_the_model_looks_and_nobody_drew(project, tmp_path):
    x, y, width, height = project.next_part("pos_0", (256, 256))
    assert (width, height) == (256, 256)
    submit(project, "pos_0", "tumor", tmp_path, box=(x, y, x + width, y + height))
    assert project.next_part("pos_0", (256, 256)) != (x, y, width, height)
    submit(project, "pos_0", "tumor", tmp_path, box=(0, 0, 1024, 768))
    assert project.next_part("pos_0", (256, 256)) is None


def test_training_on_submissions_publishes_a_model_that_is_not_worse(project, tmp_path):
    model = project.model()
    before = model.fingerprint
    project.scores(model, project.images.find("pos_3"))
    with pytest.raises(CohortError, match="at least two classes of normal, tumor; there are 0 of 0"):
        train_on_labels(project, model, tmp_path / "none")
    for name in ("pos_0", "pos_1", "pos_2"):
        submit(project, name, "tumor", tmp_path, box=LESION)
        submit(project, name.replace("pos", "neg"), "normal", tmp_path)
        submit(project, name.replace("pos", "neg"), "MIL high", tmp_path)  # left over from the model
    outcome = train_on_labels(
        project, model, tmp_path / "run", max_epochs=4, val_split=0.3, settings={"optimizer::lr": 0.006}
    )
    assert outcome.published
    assert outcome.loss <= outcome.loss_before
    assert outcome.images == (4, 2)
    assert model.fingerprint == outcome.fingerprint != before
    assert read_model(model.weights).earlier_weights == before
    found = {name: model.answer(name, project.images.find(name).path) for name in ("pos_3", "neg_3")}
    positive, negative = (answer.facts["probabilities"]["tumor"] for answer in found.values())
    assert positive > 0.8 > 0.5 > negative
    assert project.stale() == ["pathology_asmil"]
    assert (project.store.read("pos_3").scores["pathology_asmil"].fingerprint) == before
    assert model.weights.with_name(ANCHOR).is_file()
    assert "anchor" in project.strategies()
    assert len(project.next_images("anchor", "anna")) == 1
    assert project.store.read("pos_3").scores["pathology_asmil"].fingerprint == outcome.fingerprint
    table = (tmp_path / "run" / "cohort.csv").read_text()
    assert table.count("normal") == 3


def test_what_is_not_whole_is_never_published(project, tmp_path):
    model = project.model()
    served = model.weights.read_bytes()
    half = tmp_path / "half" / "model.pt"
    half.parent.mkdir()
    half.write_bytes(served[:500])
    with pytest.raises(SettingsError, match="cannot be read as weights"):
        publish(half, model.weights)
    assert model.weights.read_bytes() == served


def test_a_folder_without_a_conf_or_with_an_unknown_bundle_is_told(project, tmp_path):
    with pytest.raises(SettingsError, match="monai-mil label init"):
        Project(tmp_path, tmp_path)
    with pytest.raises(SettingsError, match="no bundle 'nothing'"):
        init_project(tmp_path / "new", ["nothing"])
    conf = json.loads((project.folder / "label.json").read_text())
    assert conf["bundles"] == ["pathology_asmil"]
    assert (project.folder / "main.py").read_text().count("\n") == 1

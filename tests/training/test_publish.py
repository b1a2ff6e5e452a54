"""A trained model takes the place of another, whole and with its card."""

import torch

from monai_mil.model_card import ModelCard, read_model, weights_digest
from monai_mil.training import publish_model


def model(path, value):
    path.parent.mkdir(exist_ok=True)
    weights = {"weight": torch.full((3,), float(value))}
    torch.save(weights, path)
    ModelCard({"class_names": ["a", "b"], "value": value}, weights_digest(weights), path=path).write()
    return path


def test_weights_and_card_come_together(tmp_path):
    trained, place = model(tmp_path / "run" / "model.pt", 2), model(tmp_path / "models" / "model.pt", 1)
    publish_model(trained, place)
    assert torch.load(place, weights_only=True)["weight"].tolist() == [2, 2, 2]
    assert read_model(place).get("value") == 2
    assert trained.exists()


def test_a_place_may_be_empty(tmp_path):
    publish_model(model(tmp_path / "run" / "model.pt", 2), tmp_path / "models" / "model.pt")
    assert read_model(tmp_path / "models" / "model.pt").get("value") == 2


def test_killed_between_its_two_files_it_can_still_be_read(tmp_path, monkeypatch):
    trained, place = model(tmp_path / "run" / "model.pt", 2), model(tmp_path / "models" / "model.pt", 1)
    monkeypatch.setattr("monai_mil.training.publish.save_atomically", lambda *_: None)  # as if killed before it
    publish_model(trained, place)
    assert torch.load(place, weights_only=True)["weight"].tolist() == [1, 1, 1]
    assert read_model(place).weights == weights_digest(torch.load(place, weights_only=True)), (
        "no error, and its own digest"
    )

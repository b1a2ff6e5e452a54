"""A training begins with another model's weights, but for heads of another number of classes."""

import logging

import pytest
import torch

from monai_mil.errors import SettingsError
from monai_mil.model_card import ModelCard, weights_digest
from monai_mil.networks import ABMIL
from monai_mil.training import Anchor, build_network, describe_network, fit_weights, known_model


def model(folder, classes=2, **settings):
    torch.manual_seed(classes)
    network = ABMIL(6, classes, hidden_dim=8, attention_dim=4)
    folder.mkdir()
    path = folder / "model.pt"
    torch.save(network.state_dict(), path)
    own = {"class_names": list("abc")[:classes], "label_columns": ["label"], "multi_label": False, "method": "abmil"}
    own |= {"network": describe_network(network)}
    ModelCard(own | settings, weights_digest(network.state_dict()), path=path).write()
    return network, path


def test_all_but_the_heads_is_loaded_and_told(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    old, path = model(tmp_path / "old", classes=3)
    new = ABMIL(6, 2, hidden_dim=8, attention_dim=4)
    before = {name: value.clone() for name, value in new.state_dict().items()}
    card = known_model(tmp_path / "new" / "model.pt", pretrained=path)
    fit_weights(new, card)
    for name, value in new.state_dict().items():
        expected = before if name.startswith("classifier.") else old.state_dict()
        assert torch.equal(value, expected[name]), name
    (record,) = caplog.records
    assert "but for classifier.weight, classifier.bias, which are of another number of classes" in record.getMessage()
    assert card.fine_tuned_from == weights_digest(old.state_dict())


def test_heads_that_begin_anew_are_not_frozen(tmp_path):
    _, path = model(tmp_path / "old", classes=3)
    new = build_network(ABMIL(6, 2, hidden_dim=8, attention_dim=4), ["hidden", "classifier"])
    with pytest.raises(SettingsError, match=r"freeze holds classifier.weight, classifier.bias, which begin anew"):
        fit_weights(new, known_model(tmp_path / "model.pt", pretrained=path))


def test_as_many_classes_are_loaded_whole(tmp_path):
    old, path = model(tmp_path / "old")
    new = ABMIL(6, 2, hidden_dim=8, attention_dim=4)
    fit_weights(new, known_model(tmp_path / "model.pt", pretrained=path))
    assert weights_digest(new.state_dict()) == weights_digest(old.state_dict())


def test_the_anchor_begins_with_the_weights(tmp_path):
    old, path = model(tmp_path / "old")
    new = ABMIL(6, 2, hidden_dim=8, attention_dim=4)
    anchor = Anchor(new)
    fit_weights(new, known_model(tmp_path / "model.pt", pretrained=path))
    anchor._begin_epoch(None)
    assert torch.equal(anchor.network.state_dict()["gates.weight"], old.state_dict()["gates.weight"])


def test_the_task_may_be_another_and_nothing_else(tmp_path):
    _, path = model(tmp_path / "old", classes=3, encoder="uni", in_channels=6)
    card = known_model(tmp_path / "model.pt", pretrained=path)
    card.check({"class_names": ["x", "y"], "label_columns": ["grade"], "multi_label": True, "method": "abmil"})
    assert (card.get("method"), card.get("encoder"), card.get("class_names")) == ("abmil", "uni", None)
    for name, value in {"method": "clam_sb", "encoder": "conch", "in_channels": 7}.items():
        with pytest.raises(SettingsError, match=f"{name} '?{card.get(name)}'?, and this run says '?{value}'?"):
            card.check({name: value})


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (ABMIL(6, 2, hidden_dim=16, attention_dim=4), "would with --network_def::hidden_dim 8"),
        (ABMIL(12, 2, hidden_dim=8, attention_dim=4), "would with --network_def::in_channels 6"),
        (ABMIL(6, 2, hidden_dim=4, attention_dim=4), "would with --network_def::hidden_dim 8"),  # as classes, by half
    ],
)
def test_other_widths_are_no_heads(tmp_path, network, words):
    _, path = model(tmp_path / "old")
    before = weights_digest(network.state_dict())
    with pytest.raises(SettingsError, match=words):
        fit_weights(network, known_model(tmp_path / "model.pt", pretrained=path))
    assert weights_digest(network.state_dict()) == before


def test_names_that_are_missing_or_too_many_are_listed(tmp_path):
    network, path = model(tmp_path / "old")
    weights = {name: value for name, value in network.state_dict().items() if name != "score.bias"}
    torch.save(weights | {"extra": torch.zeros(1)}, path)
    path.with_suffix(".json").unlink()
    with pytest.raises(SettingsError, match=r"missing: score.bias; unexpected: extra"):
        fit_weights(network, known_model(tmp_path / "model.pt", pretrained=path))


def test_a_run_that_goes_on_keeps_its_own_weights_and_says_so(tmp_path, caplog):
    _, old = model(tmp_path / "old", classes=3)
    _, own = model(tmp_path / "own")
    card = known_model(own, resume=True, pretrained=old)
    assert (card.path, card.fine_tuned) == (own, False)
    assert f"pretrained '{old}' is left aside" in caplog.text
    assert known_model(tmp_path / "new" / "model.pt", resume=True, pretrained=old).fine_tuned


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"pretrained '.*none\.pt': no such file"):
        known_model(tmp_path / "model.pt", pretrained=tmp_path / "none.pt")
    assert known_model(tmp_path / "model.pt") == ModelCard()

"""A model's card: written with its weights, read by who uses them, and held to what a run says."""

import json
import logging

import pytest
import torch

from monai_mil.errors import SettingsError
from monai_mil.model_card import ModelCard, card_path, read_model, weights_digest

SETTINGS = {"class_names": ["normal", "tumor"], "in_channels": 8, "network": {"class": "ABMIL", "layer.heads": 4}}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pt"


def save(path, seed=0, **fields):
    torch.manual_seed(seed)
    weights = torch.nn.Linear(3, 2).state_dict()
    torch.save(weights, path)
    ModelCard(SETTINGS, weights_digest(weights), path=path, **fields).write()
    return weights


def test_what_is_written_is_read(path):
    weights = save(path, operating_points=(0.25,), operating_point_rule="youden", training_data="0f")
    card = read_model(path)
    assert card.settings == SETTINGS
    assert card.weights == weights_digest(weights)
    assert (card.operating_points, card.operating_point_rule, card.training_data) == ((0.25,), "youden", "0f")
    assert card.get("in_channels", 5) == 8
    assert card.get("encoder", "texture") == "texture"


def test_an_agreeing_run_passes_and_every_contradiction_is_named_with_both_values(path):
    save(path)
    card = read_model(path)
    card.check({"class_names": ("normal", "tumor"), "network": {"class": "ABMIL", "layer.heads": 4}, "further": 1})
    said = {"class_names": ["tumor", "normal"], "network": {"class": "ABMIL", "layer.heads": 8}}
    with pytest.raises(SettingsError) as raised:
        card.check(said)
    message = str(raised.value)
    assert str(path) in message
    assert "class_names ['normal', 'tumor'], and this run says ['tumor', 'normal']" in message
    assert "network::layer.heads 4, and this run says 8" in message
    assert "leave class_names and network::layer.heads out" in message


def test_an_encoder_is_held_to_name_and_weights(path):
    card = ModelCard({"encoder": "texture", "encoder_digest": "ab"}, path=path)

    class Encoder:
        name, digest = "texture", "cd"

    with pytest.raises(SettingsError, match="encoder_digest 'ab', and this run says 'cd'"):
        card.check_encoder(Encoder)
    ModelCard({"encoder": "texture", "encoder_digest": None}, path=path).check_encoder(Encoder)


def test_weights_without_a_card_are_taken_with_one_remark(path, caplog):
    torch.save(torch.nn.Linear(3, 2).state_dict(), path)
    with caplog.at_level(logging.WARNING):
        card = read_model(path)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [f"model '{path}' has no model.json"]
    assert card.get("class_names", ["a"]) == ["a"]
    card.check({"class_names": ["whatever"]})
    assert read_model(None) == read_model(path.with_name("none.pt")) == ModelCard()


def test_the_card_of_other_weights_is_refused(path):
    save(path)
    torch.save(torch.nn.Linear(3, 2).state_dict(), path)
    with pytest.raises(SettingsError, match=r"model\.json' is of other weights than"):
        read_model(path)


def test_a_run_killed_between_its_two_files_leaves_a_model_that_can_be_read(path):
    weights = save(path)
    later = {name: value + 1 for name, value in weights.items()}
    ModelCard(SETTINGS, weights_digest(later), weights_digest(weights), path=path).write()
    assert read_model(path).weights == weights_digest(weights)


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "no card of a model"), ('{"format": 1}', "no card"), ('{"format": 2}', "later version"), ("[]", "no card")],
)
def test_a_damaged_or_later_card_is_an_error(path, text, words):
    save(path)
    card_path(path).write_text(text)
    with pytest.raises(SettingsError, match=words):
        read_model(path)


@pytest.mark.parametrize("content", [None, b"\x80\x02c__main__\nodd\n."], ids=["cut short", "another program"])
def test_damaged_weights_are_an_error(path, content):
    save(path)
    path.write_bytes(path.read_bytes()[:100] if content is None else content)
    with pytest.raises(SettingsError, match="cannot be read as weights") as caught:
        read_model(path)
    assert "\n" not in str(caught.value)


def test_a_changed_byte_of_weights_that_have_no_card_is_an_error(path):
    torch.save(torch.nn.Linear(64, 64).state_dict(), path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(SettingsError, match="cannot be read as weights"):
        read_model(path)


def test_the_digest_knows_names_types_shapes_and_values():
    one = {"a": torch.arange(4.0), "b": torch.tensor(2)}
    others = [
        {"a": torch.arange(4.0) + 1e-6, "b": torch.tensor(2)},
        {"a": torch.arange(4.0).reshape(2, 2), "b": torch.tensor(2)},
        {"a": torch.arange(4), "b": torch.tensor(2)},
        {"c": torch.arange(4.0), "b": torch.tensor(2)},
        {"a": torch.arange(4.0)},
        {"a": torch.zeros(0), "b": torch.tensor(2)},
    ]
    assert weights_digest(dict(reversed(one.items()))) == weights_digest(one)
    assert len({weights_digest(each) for each in (one, *others)}) == 7
    assert weights_digest({"a": torch.zeros(2, dtype=torch.bfloat16)}) != weights_digest({"a": torch.zeros(2).half()})


def test_the_file_is_plain_json(path):
    save(path)
    assert json.loads(card_path(path).read_text())["settings"] == SETTINGS


def test_a_card_nested_deeper_than_python_can_follow_is_an_error(path):
    save(path)
    card_path(path).write_text('{"settings":' * 100_000)
    with pytest.raises(SettingsError, match="nested too deep"):
        read_model(path)

"""A method's file is all there is to say of it: parts, variants, changes, and what is refused."""

import json

import pytest
import torch

from monai_mil.errors import SettingsError
from monai_mil.losses import BagCrossEntropy
from monai_mil.networks import ABMIL
from monai_mil.training import Methods, Recipe

RECIPE = {"optimizer": "Adam", "lr": 0.1, "weight_decay": 0.0, "max_epochs": 7}
ABMIL_SAID = {
    "title": "a",
    "paper": "p",
    "attention": "yes",
    "network": {
        "_target_": "monai_mil.networks.ABMIL",
        "in_channels": "@in_channels",
        "num_classes": 2,
        "hidden_dim": 8,
        "attention_dim": 4,
    },
    "loss": {
        "terms": {
            "bag": "@bag_loss",
            "highest": {"_target_": "monai_mil.losses.MaxInstance", "loss": "@bag_loss"},
        },
        "weights": {"bag": 0.75, "highest": 0.25},
    },
    "published": {"network": {"hidden_dim": 16}},
    "survival": {"network": {"gated": False}, "loss": None},
    "own": {"network": {"gate_dropout": 0.25}, "recipe": {**RECIPE, "select": "loss"}},
}
PLAIN_SAID = {key: ABMIL_SAID[key] for key in ("title", "paper", "attention", "network")}
SHARED = Recipe("AdamW", lr=0.2, weight_decay=0.0, max_epochs=3)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "configs" / "methods"
    folder.mkdir(parents=True)
    (folder.parent / "metadata.json").touch()
    for name, said in (("gated", ABMIL_SAID), ("plain", PLAIN_SAID)):
        (folder / f"{name}.json").write_text(json.dumps(said))
    return folder


@pytest.fixture
def methods(folder):
    return Methods(folder.parents[1], "mine", {"in_channels": 5})


def test_every_file_of_the_folder_is_a_method_that_builds_its_network(methods):
    assert list(methods) == ["gated", "plain"]
    build = methods["gated"]
    assert build.func is ABMIL
    assert build.keywords == {"in_channels": 5, "num_classes": 2, "hidden_dim": 8, "attention_dim": 4}
    chosen = methods.choose("gated")
    assert chosen.network() is not chosen.network()


def test_variants_change_what_they_name_and_nothing_else(methods):
    network = methods.choose("gated", "survival", "published", "own", SHARED).network()
    told = network.arguments()
    assert {key: told[key] for key in ("hidden_dim", "gated", "gate_dropout", "attention_dim")} == {
        "hidden_dim": 16,
        "gated": False,
        "gate_dropout": 0.25,
        "attention_dim": 4,
    }
    assert methods.choose("plain", "survival", "published").network().arguments()["hidden_dim"] == 8


def test_the_loss_is_the_bag_s_alone_where_the_file_names_none(methods):
    bag_loss = BagCrossEntropy()
    loss = methods.choose("gated").loss(bag_loss)
    assert loss.weights == {"bag": 0.75, "highest": 0.25}
    assert loss.terms["bag"] is bag_loss
    assert loss.terms["highest"].loss is bag_loss
    for alone in (methods.choose("plain"), methods.choose("gated", "survival")):
        assert alone.loss(bag_loss).weights == {"bag": 1.0}


def test_changes_win_over_the_file_and_leave_the_rest(methods):
    changes = {"network": {"hidden_dim": 32}, "loss": {"weights": {"highest": 0}, "terms": {}}}
    chosen = methods.choose("gated", widths="published", changes=changes)
    assert chosen.build_network.keywords["hidden_dim"] == 32
    assert chosen.loss(BagCrossEntropy()).weights == {"bag": 0.75, "highest": 0}
    assert methods.choose("plain", changes=changes | {"loss": {"terms": {}}}).loss(BagCrossEntropy()).weights == {
        "bag": 1
    }
    assert methods["gated"].keywords["hidden_dim"] == 8


def test_a_method_is_trained_by_its_own_recipe_or_the_shared_one(methods):
    assert methods.choose("gated", shared=SHARED).recipe is SHARED
    own = methods.choose("gated", recipe="own", shared=SHARED).recipe
    assert (own.optimizer, own.max_epochs, own.select) == ("Adam", 7, "loss")
    assert methods.choose("gated", "survival", recipe="own").recipe.select == "metric", (
        "a concordance, no loss of classes"
    )
    with pytest.raises(SettingsError, match=r"plain.json' has no recipe of its own"):
        methods.choose("plain", recipe="own")
    with pytest.raises(SettingsError, match="chosen without a recipe"):
        _ = methods.choose("gated").recipe


def test_transforms_are_those_of_the_file(methods, folder):
    item = {"image": torch.zeros(2, 3)}
    assert methods.choose("plain").transforms()(item) == item
    (folder / "cast.json").write_text(
        json.dumps(
            {**PLAIN_SAID, "transforms": [{"_target_": "CastToTyped", "keys": "image", "dtype": "$torch.float64"}]}
        )
    )
    assert methods.choose("cast").transforms()(item)["image"].dtype == torch.float64


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({**PLAIN_SAID, "optimiser": {}}, "nobody reads: optimiser"),
        ({**PLAIN_SAID, "own": {"lr": 1}}, "nobody reads: own::lr"),
        ({"title": "a"}, "lacks attention, network, paper"),
    ],
)
def test_a_file_with_other_parts_is_refused(methods, folder, said, told):
    (folder / "other.json").write_text(json.dumps(said))
    with pytest.raises(SettingsError, match=told):
        methods.choose("other")


def test_what_is_not_there_is_told_with_what_there_is(methods, folder, tmp_path):
    with pytest.raises(SettingsError, match=r"no method 'clam'.*there are gated, plain"):
        methods.choose("clam")
    with pytest.raises(SettingsError, match="no variant 'wide'"):
        methods.choose("gated", widths="wide")
    with pytest.raises(SettingsError, match="--bundle_root"):
        Methods(tmp_path / "none", "none", {})
    (folder / "torn.json").write_text("{")
    with pytest.raises(SettingsError, match=r"torn.json' cannot be read"):
        methods.choose("torn")


def test_a_config_that_does_not_know_where_it_lies_gets_the_methods_of_the_package(folder, tmp_path):
    assert "gated_abmil" in list(Methods(tmp_path / "elsewhere", "mil_baselines", {}))
    assert list(Methods(tmp_path, "mil_baselines", {})) == ["gated", "plain"]

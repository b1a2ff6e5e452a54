"""Weights that do not fit end in one line that says which settings would."""

from functools import partial

import pytest

from monai_mil.errors import SettingsError
from monai_mil.networks import ABMIL, ASMIL, CLAM_SB, DSMIL, HAGMIL, INSIGHT, MeanPooling
from monai_mil.training import require_fit

SIZES = {"in_channels": 12, "num_classes": 2, "hidden_dim": 16, "attention_dim": 4}
METHODS = {
    "gated_abmil": partial(ABMIL, **SIZES),
    "abmil": partial(ABMIL, **SIZES, gated=False),
    "clam_sb": partial(CLAM_SB, **SIZES),
    "dsmil": partial(DSMIL, in_channels=12, num_classes=2),
    "mean_pooling": partial(MeanPooling, in_channels=12, num_classes=2, hidden_dim=16),
}


def refusal(network, other, settings=None, methods=None):
    with pytest.raises(SettingsError) as raised:
        require_fit(network, other.state_dict(), "x/model.pt", settings, methods)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(f"weights 'x/model.pt' do not fit the configured {type(network).__name__};")
    return str(raised.value)


@pytest.mark.parametrize(
    ("other", "wanted"),
    [
        (partial(METHODS["gated_abmil"], in_channels=1024), "--in_channels 1024 "),
        (partial(METHODS["gated_abmil"], hidden_dim=128), "--methods::gated_abmil::hidden_dim 128 "),
        (partial(METHODS["gated_abmil"], num_classes=3), "3 outputs (--class_names) "),
        (METHODS["abmil"], "--method abmil "),
        (partial(METHODS["clam_sb"], in_channels=7), "--method clam_sb and --in_channels 7 "),
        (METHODS["dsmil"], "--method dsmil "),
        (METHODS["mean_pooling"], "--method mean_pooling "),
    ],
)
def test_the_setting_that_would_fit_is_told(other, wanted):
    settings = {"method": "gated_abmil", "in_channels": 12}
    said = refusal(METHODS["gated_abmil"](), other(), settings, METHODS)
    assert f"they would with {wanted}" in said


@pytest.mark.parametrize(
    ("network", "changed", "wanted"),
    [
        (partial(ASMIL, 8, 2, hidden_dim=16, tokens=4), {"hidden_dim": 32}, "--hidden_dim 32"),
        (partial(ASMIL, 8, 2, hidden_dim=16, tokens=4), {"tokens": 2}, "--network_def::tokens 2"),
        (partial(HAGMIL, 8, 2, hidden_dims=[8, 8], instance_channels=6), {"levels": 2}, "--network_def::levels 2"),
        (
            partial(HAGMIL, 8, 2, hidden_dims=[8, 8], instance_channels=6),
            {"hidden_dims": [8, 16]},
            '--network_def::hidden_dims "[8, 16]"',
        ),
        (partial(INSIGHT, 8, 1, grid=(4, 4), reduced=8), {"grid": [5, 5]}, '--network_def::grid "[5, 5]"'),
    ],
)
def test_lists_levels_and_tokens_are_found_too(network, changed, wanted):
    assert f"they would with {wanted} (" in refusal(network(), network(**changed), {"hidden_dim": 16})


def test_weights_of_another_kind_are_told_by_names():
    said = refusal(METHODS["gated_abmil"](), ASMIL(8, 2, hidden_dim=16), {"in_channels": 12}, METHODS)
    assert (
        "they are of another network (missing: hidden.bias, gates.weight, gates.bias and 2 more; unexpected: " in said
    )


def test_weights_that_fit_are_let_pass():
    require_fit(METHODS["abmil"](), METHODS["abmil"]().state_dict(), "model.pt")


def test_heads_are_what_the_number_of_classes_changes():
    heads = {"dsmil": ["instances", "classifier"], "clam_sb": ["classifier", "branch.classifiers"]}
    for method, names in heads.items():
        other = METHODS[method](num_classes=5).state_dict()
        found = require_fit(METHODS[method](), other, "model.pt", any_classes=True)
        assert found == [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]
    levels = partial(HAGMIL, 8, hidden_dims=[8, 8], instance_channels=6)
    found = require_fit(levels(num_classes=2), levels(num_classes=3).state_dict(), "model.pt", any_classes=True)
    assert {name.split(".", 2)[2].rsplit(".", 1)[0] for name in found} == {"classifier", "branch.classifiers"}


def test_the_number_of_classes_is_no_advice_where_it_may_be_another():
    other = partial(METHODS["clam_sb"], num_classes=5, in_channels=7)().state_dict()
    with pytest.raises(SettingsError, match=r"would with --in_channels 7 \("):
        require_fit(METHODS["clam_sb"](), other, "model.pt", {"in_channels": 12}, any_classes=True)

"""What is frozen stays bit for bit, whatever the optimiser and the trainer do."""

import copy
import logging

import pytest
import torch
from torch import nn

from monai_mil.errors import SettingsError
from monai_mil.networks import ABMIL
from monai_mil.training import build_network, freeze_parameters, trained_parameters


def steps(network, optimizer):
    for _ in range(3):
        network.train()
        optimizer.zero_grad()
        network(torch.randn(2, 4)).square().sum().backward()
        optimizer.step()


def test_parameters_and_running_statistics_stay():
    torch.manual_seed(0)
    network = nn.ModuleDict({"body": nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), "head": nn.Linear(4, 1)})
    network.forward = lambda rows: network["head"](network["body"](rows))
    freeze_parameters(network, ["body"])
    before = copy.deepcopy(network.state_dict())
    steps(network, torch.optim.AdamW(trained_parameters(network), lr=0.1, weight_decay=0.5))
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("body."), name


@pytest.mark.parametrize(
    ("patterns", "trained"),
    [
        (
            ["hidden"],
            {"gates.weight", "gates.bias", "score.weight", "score.bias", "classifier.weight", "classifier.bias"},
        ),
        (
            "hidden",
            {"gates.weight", "gates.bias", "score.weight", "score.bias", "classifier.weight", "classifier.bias"},
        ),
        (["hidden", "gates", "score", "classifier.weight"], {"classifier.bias"}),
        (["*.weight"], {"hidden.bias", "gates.bias", "score.bias", "classifier.bias"}),
    ],
)
def test_names_and_patterns(patterns, trained):
    network = build_network(ABMIL(4, 2, hidden_dim=8, attention_dim=4), patterns)
    assert {name for name, each in network.named_parameters() if each.requires_grad} == trained
    assert len(trained_parameters(network)) == len(trained)


def test_numbers_are_told_in_one_line(caplog):
    caplog.set_level(logging.INFO)
    build_network(ABMIL(4, 2, hidden_dim=8, attention_dim=4), ["hidden"])
    (record,) = caplog.records
    assert record.getMessage() == (
        "freeze: 40 parameters (hidden) stay as they are, 95 parameters (gates, score, classifier) train"
    )


def test_what_is_refused():
    network = ABMIL(4, 2, hidden_dim=8, attention_dim=4)
    with pytest.raises(SettingsError, match=r"freeze \['hid'\]: .* its parts are hidden, gates, score, classifier$"):
        freeze_parameters(network, ["hid", "gates"])
    with pytest.raises(SettingsError, match="every parameter is frozen"):
        freeze_parameters(network, ["*"])

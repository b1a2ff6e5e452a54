"""IBMIL's confounders: filled once, behind the first stage, with the centres of clusters of bags."""

import numpy as np
import pytest
import torch
from ignite.engine import Engine

from monai_mil.networks import ABMIL, IBMIL
from monai_mil.training import FillConfounders, MethodHandlers


def run(handler, epochs):
    trainer = Engine(lambda engine, batch: None)
    MethodHandlers([handler]).attach(trainer)
    trainer.run([0], max_epochs=epochs)


def test_confounders_are_filled_behind_the_first_stage_and_never_again():
    torch.manual_seed(0)
    network = IBMIL(4, 2, attention_dim=3, confounders=2)
    dataset = [
        {"image": torch.tensor([[1.0, 0, 0, 0], [0, 0, 2.0, 0]][each % 2])[:, None].repeat(1, 3)} for each in range(6)
    ]
    handler = FillConfounders(network, dataset, after=2)
    run(handler, 2)
    assert not network.confounders.any()
    assert network.training
    run(handler, 3)
    assert sorted(network.confounders.tolist()) == [[0, 0, 2, 0], [1, 0, 0, 0]]
    assert network.training
    handler.dataset = [{"image": torch.ones(4, 1)}]
    run(handler, 4)
    assert sorted(network.confounders.tolist()) == [[0, 0, 2, 0], [1, 0, 0, 0]]


def test_bags_are_clustered_by_direction_and_a_centre_is_their_mean():
    network = IBMIL(2, 2, confounders=2)
    FillConfounders(network, []).fill(np.array([[1.0, 0], [9, 0], [0, 1], [0, 5]]))
    assert sorted(network.confounders.tolist()) == [[0, 3], [5, 0]]


def test_few_bags_repeat_themselves():
    network = IBMIL(2, 2, confounders=3)
    FillConfounders(network, []).fill(np.array([[1.0, 0], [0, 1]]))
    assert len(network.confounders.unique(dim=0)) == 2


def test_a_network_without_confounders_is_refused():
    with pytest.raises(ValueError, match="ABMIL has no confounders"):
        FillConfounders(ABMIL(2, 2), [])

"""Runs that cannot succeed say so."""

from __future__ import annotations

import math

import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from torch import nn

from monai_mil.errors import CohortError
from monai_mil.losses import MILLoss
from monai_mil.networks import ABMIL
from monai_mil.training import FullOutputInferer, StopOnNaN, prepare_bag_batch, require_steps


class Spoiled(nn.Module):
    """A loss term that is NaN from its third call on."""

    calls = 0

    def forward(self, output: dict[str, torch.Tensor], label: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return output["logits"].sum() * (math.nan if self.calls > 2 else 1.0)


def make_trainer(cases: int, network: nn.Module, handlers: tuple[StopOnNaN, ...] = (), **loader: object):
    data = Dataset([{"image": torch.randn(4, 3), "label": index % 2} for index in range(cases)])
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=3,
        train_data_loader=DataLoader(data, **loader),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), 0.1),
        loss_function=MILLoss({"spoiled": Spoiled()}),
        inferer=FullOutputInferer(),
        prepare_batch=prepare_bag_batch,
        train_handlers=list(handlers),
    )


def test_fewer_cases_than_a_batch_with_drop_last_are_an_error() -> None:
    trainer = make_trainer(40, ABMIL(4, 2), batch_size=64, drop_last=True)
    with pytest.raises(CohortError, match="0 batches: 40 cases are fewer than the batch_size 64 with drop_last; set"):
        require_steps(trainer)


def test_an_empty_data_list_is_an_error_and_a_single_batch_is_none() -> None:
    with pytest.raises(CohortError, match="0 batches: the data list is empty"):
        require_steps(make_trainer(0, ABMIL(4, 2)))
    require_steps(make_trainer(40, ABMIL(4, 2), batch_size=64))
    require_steps(make_trainer(64, ABMIL(4, 2), batch_size=64, drop_last=True))


def test_a_loss_that_is_not_a_number_ends_training_before_it_spoils_the_weights() -> None:
    network = ABMIL(4, 2)
    trainer = make_trainer(2, network, (StopOnNaN(),))
    with pytest.raises(FloatingPointError, match="epoch 2, iteration 3: the loss is nan, spoiled nan; lower"):
        trainer.run()
    assert all(torch.isfinite(parameter).all() for parameter in network.parameters())

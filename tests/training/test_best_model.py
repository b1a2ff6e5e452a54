"""The paper's choice of an epoch, on real engines."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator, Trainer
from torch import nn

from monai_mil.training import BestModel


class Script(Evaluator):
    """A MONAI evaluator whose key metric follows a script."""

    def __init__(self, values: list[float]) -> None:
        super().__init__(device="cpu", val_data_loader=[0])
        self.values = iter(values)
        self.state.key_metric_name = "val_auroc"

    def _iteration(self, engine: Engine, batchdata: object) -> dict[str, object]:
        self.state.metrics["val_auroc"] = next(self.values)
        return {}


class Epochs(Trainer):
    """A MONAI trainer whose key metric follows a script; its network's bias is the number of the epoch."""

    def __init__(self, network: nn.Linear, values: list[float], first: int) -> None:
        super().__init__(device="cpu", max_epochs=first + len(values), data_loader=[0])
        self.network, self.values = network, iter(values)
        self.state.key_metric_name = "train_auroc"
        self.state.epoch = first

    def _iteration(self, engine: Engine, batchdata: object) -> dict[str, object]:
        nn.init.constant_(self.network.bias, self.state.epoch)
        self.state.metrics["train_auroc"] = next(self.values)
        return {}


def select(path: Path, train: list[float], val: list[float], state: dict | None = None) -> BestModel:
    network = nn.Linear(1, 1)
    trainer, evaluator = Epochs(network, train, 0 if state is None else state["epochs"]), Script(val)
    best = BestModel(network, path, paper_rule_trainer=trainer)
    best.attach(evaluator)
    if state is not None:
        best.load_state_dict(state["best"])
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(trainer.state.epoch))
    trainer.run()
    return best


def saved(path: Path) -> float:
    return float(torch.load(path, weights_only=True)["bias"])


def test_the_first_best_validation_below_its_training_is_chosen(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    best = select(path, train=[0.6, 0.7, 0.8, 0.85, 0.7], val=[0.7, 0.65, 0.75, 0.75, 0.9])
    assert (best.best, best.best_epoch, saved(path)) == (0.75, 3, 3)


def test_a_better_validation_that_does_not_qualify_gives_way_to_one_that_does(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    best = select(path, train=[0.5, 0.6], val=[0.9, 0.55])
    assert (best.best, best.best_epoch, saved(path)) == (0.55, 2, 2)


def test_train_not_above_validation_in_every_epoch_keeps_the_best_validation_and_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "model.pt"
    with caplog.at_level(logging.WARNING):
        best = select(path, train=[0.5, 0.6, 0.7], val=[0.5, 0.8, 0.7])
    assert (best.best, best.best_epoch, saved(path)) == (0.8, 2, 2)
    assert "in no epoch was the training metric better than the validation's" in caplog.text
    assert "epoch 2" in caplog.text


def test_a_chosen_epoch_is_not_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    select(tmp_path / "model.pt", train=[0.9], val=[0.5])
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_a_resumed_run_chooses_as_an_uninterrupted_one(tmp_path: Path, cut: int) -> None:
    train, val = [0.5, 0.7, 0.8, 0.9, 0.95], [0.8, 0.6, 0.7, 0.7, 0.65]
    whole = select(tmp_path / "whole.pt", train, val)
    path = tmp_path / "model.pt"
    first = select(path, train[:cut], val[:cut])
    second = select(path, train[cut:], val[cut:], {"best": first.state_dict(), "epochs": cut})
    assert second.state_dict() == whole.state_dict()
    assert saved(path) == saved(tmp_path / "whole.pt") == 3


def test_a_training_metric_that_is_not_a_number_does_not_qualify(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="training metric 'train_auroc' is nan"):
        best = select(tmp_path / "model.pt", train=[float("nan"), 0.7], val=[0.9, 0.6])
    assert best.best_epoch == 2


def test_a_trainer_without_a_key_metric_is_an_error(tmp_path: Path) -> None:
    network, evaluator = nn.Linear(1, 1), Script([0.5])
    trainer = Epochs(network, [0.5], 0)
    trainer.state.key_metric_name = None
    BestModel(network, tmp_path / "model.pt", paper_rule_trainer=trainer).attach(evaluator)
    with pytest.raises(ValueError, match="the trainer has no key metric; give it 'key_train_metric'"):
        evaluator.run(1)

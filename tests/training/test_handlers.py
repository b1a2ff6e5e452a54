"""Best model, early stop, seeding and checkpoint files, each on a real engine."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset
from monai.engines import Evaluator
from monai.transforms import RandGaussianNoised
from torch import nn

from monai_mil.errors import SettingsError
from monai_mil.training import BestModel, Checkpointer, EarlyStop, EpochSeeder, finish_distributed
from monai_mil.training.state_files import plain, save_atomically


class Validation(Evaluator):
    """A real MONAI evaluator whose key metric follows a script, one value a run."""

    def __init__(self, values: list[float]) -> None:
        super().__init__(device="cpu", val_data_loader=[0])
        self.values = iter(values)
        self.state.key_metric_name = "metric"

    def _iteration(self, engine: Engine, batchdata: object) -> dict[str, object]:
        self.state.metrics["metric"] = np.float64(next(self.values))
        return {}


def trainer_with(evaluator: Validation, epochs: int = 10) -> Engine:
    trainer = Engine(lambda engine, batch: None)
    trainer.state.max_epochs = epochs
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(trainer.state.epoch))
    return trainer


def saved_bias(path: Path) -> float:
    return float(torch.load(path, weights_only=True)["bias"])


def run_best_model(values: list[float], path: Path, mode: str = "max") -> BestModel:
    """Validate once for each value; the network's bias is the number of the epoch."""
    network, evaluator = nn.Linear(1, 1), Validation(values)
    best = BestModel(network, path, mode=mode)
    best.attach(evaluator)
    for epoch in range(1, len(values) + 1):
        nn.init.constant_(network.bias, epoch)
        evaluator.run(epoch)
    return best


def test_the_latest_of_the_best_validations_is_kept_as_a_bare_state_dict(tmp_path: Path) -> None:
    best = run_best_model([0.5, 0.8, 0.8, 0.7], tmp_path / "models" / "model.pt")
    assert (best.best, best.best_epoch) == (0.8, 3)
    assert saved_bias(tmp_path / "models" / "model.pt") == 3
    assert torch.load(tmp_path / "models" / "model.pt", weights_only=True).keys() == {"weight", "bias"}


def test_a_low_metric_can_be_the_good_one(tmp_path: Path) -> None:
    run_best_model([0.5, 0.2, 0.3], tmp_path / "model.pt", mode="min")
    assert saved_bias(tmp_path / "model.pt") == 2


def test_a_metric_that_is_not_a_number_warns_and_never_blocks_a_later_best(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="'metric' is nan, not a finite number"):
        best = run_best_model([float("nan"), float("nan")], tmp_path / "model.pt")
    assert best.best is None
    assert saved_bias(tmp_path / "model.pt") == 2
    with pytest.warns(UserWarning, match="not a finite number"):
        run_best_model([float("nan"), 0.6, float("nan")], tmp_path / "model.pt")
    assert saved_bias(tmp_path / "model.pt") == 2


def test_a_restored_best_model_is_not_overwritten_by_a_worse_one(tmp_path: Path) -> None:
    first = run_best_model([0.9], tmp_path / "model.pt")
    network, evaluator = nn.Linear(1, 1), Validation([0.4])
    second = BestModel(network, tmp_path / "model.pt")
    second.attach(evaluator)
    second.load_state_dict(first.state_dict())
    evaluator.run(2)
    assert saved_bias(tmp_path / "model.pt") == 1
    assert evaluator.get_stats() == {"rank": 0, "best_validation_epoch": 1, "best_validation_metric": 0.9}


@pytest.mark.filterwarnings("ignore:validation metric")
def test_an_infinite_metric_cannot_become_the_best(tmp_path: Path) -> None:
    assert run_best_model([0.5, float("inf"), 0.6], tmp_path / "model.pt").best == 0.6


def test_early_stop_ends_training_after_its_patience() -> None:
    evaluator = Validation([0.5, 0.6, 0.55, 0.6, 0.58, 0.9])
    trainer, stop = trainer_with(evaluator), EarlyStop(patience=3)
    stop.attach(evaluator, trainer)
    trainer.run([0], max_epochs=10)
    assert trainer.state.epoch == 5
    assert stop.state_dict() == {"best": 0.6, "waited": 3}


def test_early_stop_counts_improvement_from_min_delta_and_survives_nan() -> None:
    evaluator = Validation([0.5, 0.505, float("nan"), 0.9])
    trainer, stop = trainer_with(evaluator), EarlyStop(patience=2, min_delta=0.01)
    stop.attach(evaluator, trainer)
    with pytest.warns(UserWarning, match="not a finite number"):
        trainer.run([0], max_epochs=10)
    assert trainer.state.epoch == 3


def test_an_evaluator_without_a_key_metric_is_an_error(tmp_path: Path) -> None:
    evaluator = Validation([0.5])
    evaluator.state.key_metric_name = None
    with pytest.raises(ValueError, match="no key metric"):
        BestModel(nn.Linear(1, 1), tmp_path / "model.pt")(evaluator)


def test_every_epoch_draws_the_same_numbers_in_every_run() -> None:
    def draws(first_epoch: int) -> list[list[float]]:
        data = Dataset([{"image": torch.zeros(1, 1)}], RandGaussianNoised("image", prob=1.0))
        loader, seen = DataLoader(data), []
        trainer = Engine(lambda _, batch: seen.append([*batch["image"].flatten().tolist(), random.random()]))
        EpochSeeder(3).attach(trainer)

        @trainer.on(Events.STARTED)
        def skip() -> None:
            trainer.state.epoch = first_epoch

        trainer.run(loader, max_epochs=4)
        return seen

    whole = draws(0)
    assert len({tuple(row) for row in whole}) == 4
    assert draws(2) == whole[2:]


def test_numpy_numbers_in_a_state_load_with_weights_only(tmp_path: Path) -> None:
    state = {"score": np.float64(0.5), "list": [np.int64(3)], "array": np.arange(3), "pair": (np.bool_(True), "x")}
    save_atomically(state, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    assert loaded["score"] == 0.5
    assert loaded["list"] == [3]
    assert loaded["array"].tolist() == [0, 1, 2]
    assert loaded["pair"] == (True, "x")
    assert plain(np.float32(2.0)) == 2.0


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_atomically({"a": 1}, path)
    with pytest.raises(Exception, match=r"pickle|local object"):
        save_atomically({"a": lambda: None}, path)
    assert torch.load(path, weights_only=True) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    trainer = Engine(lambda engine, batch: None)
    Checkpointer(tmp_path, {"network": nn.Linear(1, 1)}).attach(trainer)
    trainer.run([0], max_epochs=1)
    other = Engine(lambda engine, batch: None)
    Checkpointer(tmp_path, {"teacher": nn.Linear(1, 1)}, resume=True).attach(other)
    with pytest.raises(ValueError, match=r"holds \['network'\], this run needs \['teacher'\]"):
        other.run([0], max_epochs=2)


def test_a_checkpoint_of_another_network_is_named(tmp_path: Path) -> None:
    def run(network: nn.Linear, optimizer: torch.optim.Optimizer, *, resume: bool) -> None:
        trainer = Engine(lambda engine, batch: None)
        Checkpointer(tmp_path, {"network": network, "optimizer": optimizer}, resume=resume).attach(trainer)
        trainer.run([0], max_epochs=1 + resume)

    one, wide = nn.Linear(1, 1), nn.Linear(2, 1)
    run(one, torch.optim.SGD(one.parameters()), resume=False)
    with pytest.raises(SettingsError, match=r"weights '.*=1.pt' do not fit .* \(.*weight \[1, 1\] for \[1, 2\]\)"):
        run(wide, torch.optim.SGD(wide.parameters()), resume=True)
    with pytest.raises(ValueError, match=r"checkpoint '.*epoch=1.pt': its optimizer is another than this run's"):
        run(one, torch.optim.SGD([one.weight]), resume=True)


def train(folder: Path, epochs: int, batches: int, resume: bool) -> list[tuple[int, int]]:
    """Run a trainer with a cosine schedule; returns epoch and batch of every iteration."""
    network, seen = nn.Linear(1, 1), []
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.SGD(network.parameters(), 0.1), epochs)
    trainer = Engine(lambda engine, batch: seen.append((engine.state.epoch, batch)))
    Checkpointer(folder, {"network": network, "scheduler": scheduler}, resume=resume).attach(trainer)
    trainer.run(list(range(batches)), max_epochs=epochs)
    return seen


def test_a_new_run_in_the_folder_of_an_old_one_keeps_its_own_checkpoints(tmp_path: Path) -> None:
    train(tmp_path, epochs=6, batches=1, resume=False)
    train(tmp_path, epochs=2, batches=1, resume=False)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["checkpoint_epoch=1.pt", "checkpoint_epoch=2.pt"]


@pytest.mark.filterwarnings("ignore:'scheduler' continues")
def test_a_run_resumed_with_another_number_of_batches_trains_whole_epochs(tmp_path: Path) -> None:
    train(tmp_path, epochs=3, batches=30, resume=False)
    assert train(tmp_path, epochs=5, batches=20, resume=True) == [(e, b) for e in (4, 5) for b in range(20)]


def test_a_schedule_of_another_length_than_the_checkpoint_s_is_told(tmp_path: Path) -> None:
    train(tmp_path, epochs=2, batches=1, resume=False)
    with pytest.warns(UserWarning, match="'scheduler' continues the schedule of the checkpoint, T_max 2, not 4"):
        train(tmp_path, epochs=4, batches=1, resume=True)


@pytest.mark.parametrize("content", [b"", bytes(1000), b"PK\3\4"], ids=["empty", "zeros", "truncated"])
def test_a_run_never_begins_anew_over_checkpoints_that_cannot_be_read(tmp_path: Path, content: bytes) -> None:
    train(tmp_path, epochs=2, batches=1, resume=False)
    (tmp_path / "checkpoint_epoch=2.pt").write_bytes(content)
    with pytest.warns(UserWarning, match=r"checkpoint_epoch=2\.pt' cannot be read"):
        assert train(tmp_path, epochs=2, batches=1, resume=True) == [(2, 0)]
    for path in tmp_path.iterdir():
        path.write_bytes(content)
    with (
        pytest.warns(UserWarning, match="cannot be read"),
        pytest.raises(ValueError, match="remove them to train from"),
    ):
        train(tmp_path, epochs=3, batches=1, resume=True)


def test_finishing_without_a_process_group_does_nothing() -> None:
    finish_distributed()

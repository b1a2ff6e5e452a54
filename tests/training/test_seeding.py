"""Who loads the bags changes nothing: losses and weights are the same, bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.data import CacheDataset, DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import ValidationHandler
from monai.transforms import Compose, RandGaussianNoised
from torch.utils.data import WeightedRandomSampler

from monai_mil.bags import SampleInstancesd, collate_bags
from monai_mil.losses import MILLoss
from monai_mil.networks import ABMIL
from monai_mil.training import Checkpointer, EpochSeeder, FullOutputInferer, prepare_bag_batch

PERSISTENT = {"num_workers": 2, "persistent_workers": True}
WAYS = [{"num_workers": 1}, {"num_workers": 2}, PERSISTENT, {"num_workers": 2, "pin_memory": True}]
Trained = tuple[list[float], dict[str, torch.Tensor]]


def bags(count: int, named: bool = True) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    data = [{"image": torch.randn(8, 5 + index, generator=generator), "label": index % 2} for index in range(count)]
    return [item | ({"slide_id": f"S{index}"} if named else {}) for index, item in enumerate(data)]


def train(
    folder: Path | None = None,
    epochs: int = 3,
    resume: bool = False,
    dataset: type[Dataset] = Dataset,
    named: bool = True,
    weighted: bool = False,
    **loading: Any,
) -> Trained:
    """Losses of every step and the last weights of a run in which bags, order, transforms and dropout are random."""
    torch.manual_seed(0)
    network = ABMIL(8, 2, hidden_dim=8, attention_dim=4, dropout=0.2)
    transforms = Compose([RandGaussianNoised("image", prob=0.5), SampleInstancesd("image", num_instances=6)])
    validator = SupervisedEvaluator("cpu", DataLoader(Dataset(bags(2)), collate_fn=collate_bags, **loading), network)
    data = dataset(bags(7, named), transforms, **({"progress": False} if dataset is CacheDataset else {}))
    order = {"sampler": WeightedRandomSampler(torch.arange(7.0), 7)} if weighted else {"shuffle": True}
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=DataLoader(data, batch_size=2, collate_fn=collate_bags, **order, **loading),
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), 1e-2),
        loss_function=MILLoss(),
        inferer=FullOutputInferer(),
        prepare_batch=prepare_bag_batch,
        train_handlers=[EpochSeeder(7), ValidationHandler(interval=1, validator=validator)],
        decollate=False,
    )
    losses: list[float] = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: losses.append(trainer.state.output["loss"].item()))
    if folder is not None:
        objects = {"network": network, "optimizer": trainer.optimizer}
        Checkpointer(folder, objects, resume=resume).attach(trainer)
    trainer.run()
    for loader in (trainer.data_loader, validator.data_loader):
        if loader._iterator is not None:  # persistent workers, whom a garbage collection waits for 5 s each
            loader._iterator._shutdown_workers()
    return losses, network.state_dict()


def assert_same(found: Trained, expected: Trained) -> None:
    assert found[0] == expected[0]
    assert all(torch.equal(found[1][name], value) for name, value in expected[1].items())


@pytest.fixture(scope="module")
def alone() -> Trained:
    return train()


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")
@pytest.mark.parametrize("loading", WAYS, ids=str)
def test_worker_processes_change_nothing(alone: Trained, loading: dict[str, Any]) -> None:
    assert_same(train(**loading), alone)


@pytest.mark.parametrize("case", [{"dataset": CacheDataset}, {"named": False}, {"weighted": True}], ids=str)
def test_nor_do_they_with_other_data_sets_and_samplers(case: dict[str, Any]) -> None:
    assert_same(train(**case, **PERSISTENT), train(**case))


def test_persistent_workers_resume_bit_identically(alone: Trained, tmp_path: Path) -> None:
    train(tmp_path, epochs=1, **PERSISTENT)
    losses, weights = train(tmp_path, resume=True, **PERSISTENT)
    assert_same((losses, weights), (alone[0][4:], alone[1]))


def test_an_item_is_drawn_anew_in_every_epoch_and_apart_from_the_others() -> None:
    seen: list[list[float]] = []
    data = Dataset([{"image": torch.zeros(1, 2), "slide_id": name} for name in "abc"], RandGaussianNoised("image", 1))
    trainer = SupervisedTrainer("cpu", 2, DataLoader(data), torch.nn.Linear(2, 2), None, None)  # type: ignore[arg-type]
    trainer._process_function = lambda engine, batch: seen.append(batch["image"].flatten().tolist())
    EpochSeeder(0).attach(trainer)
    trainer.run()
    assert len({tuple(values) for values in seen}) == 6


def test_an_epoch_is_drawn_as_in_earlier_versions() -> None:
    """Their loader without workers drew a seed and the order from torch's generator, then the network its numbers."""
    drawn = []
    loader = DataLoader(Dataset(list(range(9))), batch_size=1, shuffle=True)
    trainer = SupervisedTrainer("cpu", 1, loader, torch.nn.Linear(2, 2), None, None)  # type: ignore[arg-type]
    trainer._process_function = lambda engine, batch: drawn.append((int(batch), float(torch.rand(1))))
    EpochSeeder(7).attach(trainer)
    trainer.run()
    torch.manual_seed(1007)
    _, order = (int(torch.empty((), dtype=torch.int64).random_()) for _ in range(2))
    expected = torch.randperm(9, generator=torch.Generator().manual_seed(order)).tolist()
    assert drawn == [(index, float(torch.rand(1))) for index in expected]

"""Two gloo processes train INSIGHT on mapped bags; started by tests: ``torchrun run_token_distributed.py FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from ignite.engine import Events
from monai.data import DataLoader, Dataset, DistributedSampler
from monai.engines import SupervisedTrainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from monai_mil.bags import LoadBagd, collate_bags
from monai_mil.losses import BagBCE, MILLoss, SpectralDecoupling
from monai_mil.networks import INSIGHT
from monai_mil.training import FullOutputInferer, finish_distributed, prepare_token_batch

GRID, WIDTH = (4, 3), 6


def make_network() -> INSIGHT:
    torch.manual_seed(0)
    return INSIGHT(WIDTH, 2, grid=GRID, reduced=8, widths=(8, 6, 6), chunk_instances=4).double()


def train(network: nn.Module, loader: DataLoader, epochs: int = 1, rate: float = 1.0) -> list[float]:
    """MONAI's trainer with plain SGD; returns the loss of every step."""
    losses: list[float] = []
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=loader,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), rate),
        loss_function=MILLoss({"bag": BagBCE(), "decoupling": SpectralDecoupling()}, {"decoupling": 0.01}),
        inferer=FullOutputInferer(),
        prepare_batch=prepare_token_batch,
        decollate=False,
    )
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output["loss"].item())
    )
    trainer.run()
    return losses


def dataset_of(folder: Path, mapped: bool = True) -> Dataset:
    items = [
        {"image": str(path), "label": [float(index % 2), 1.0]} for index, path in enumerate(sorted(folder.glob("*.h5")))
    ]
    return Dataset(items, LoadBagd(width=WIDTH, grid=GRID, mapped=mapped))


def main() -> None:
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo")
    dataset = dataset_of(folder)
    loader = DataLoader(dataset, sampler=DistributedSampler(dataset, shuffle=False), collate_fn=collate_bags)
    network = make_network()
    train(DistributedDataParallel(network), loader)
    if dist.get_rank() == 0:
        torch.save(network.state_dict(), folder / "trained.pt")
    finish_distributed()


if __name__ == "__main__":
    main()

"""A small real training run, started by tests in a process of its own: ``python run_training.py FOLDER [--resume]``.

``--kill EPOCH ITERATION`` ends the process as a power cut would. Bags, dropout and a random transform all draw random
numbers, so that a resume which forgets a generator gives other weights.
"""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path

import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, ValidationHandler
from monai.transforms import Activationsd, RandGaussianNoised

from monai_mil.losses import MILLoss
from monai_mil.metrics import AUROC
from monai_mil.networks import ABMIL
from monai_mil.training import BestModel, Checkpointer, EarlyStop, EpochSeeder, FullOutputInferer, prepare_bag_batch


def bags(count: int, seed: int) -> list[dict[str, torch.Tensor | int]]:
    generator = torch.Generator().manual_seed(seed)
    data = []
    for label in (index % 2 for index in range(count)):
        image = torch.randn(8, 12, generator=generator)
        image[0, :6] += 2 * label
        data.append({"image": image, "label": label})
    return data


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--patience", type=int, default=100)
    parser.add_argument("--kill", type=int, nargs=2, metavar=("EPOCH", "ITERATION"))
    arguments = parser.parse_args()

    torch.manual_seed(0)
    network = ABMIL(8, 2, hidden_dim=8, attention_dim=4, dropout=0.2)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
    noise = RandGaussianNoised("image", prob=0.5)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(bags(12, seed=2)), batch_size=4),
        network=network,
        prepare_batch=prepare_bag_batch,
        postprocessing=Activationsd("pred", softmax=True),
        key_val_metric={"val_auroc": AUROC()},
    )
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=arguments.epochs,
        train_data_loader=DataLoader(Dataset(bags(16, seed=1), noise), batch_size=4, shuffle=True),
        network=network,
        optimizer=optimizer,
        loss_function=MILLoss(),
        inferer=FullOutputInferer(),
        prepare_batch=prepare_bag_batch,
        train_handlers=[
            EpochSeeder(7),
            LrScheduleHandler(scheduler, print_lr=False),
            ValidationHandler(interval=1, validator=evaluator),
        ],
        decollate=False,
    )
    best = BestModel(network, arguments.folder / "models" / "model.pt")
    best.attach(evaluator)
    stop = EarlyStop(arguments.patience)
    stop.attach(evaluator, trainer)
    objects = {"network": network, "optimizer": optimizer, "scheduler": scheduler, "best": best, "stop": stop}
    Checkpointer(arguments.folder, objects, resume=arguments.resume).attach(trainer)
    if arguments.kill:
        epoch, iteration = arguments.kill

        @trainer.on(Events.ITERATION_COMPLETED)
        def power_cut() -> None:
            if trainer.state.epoch == epoch and (trainer.state.iteration - 1) % 4 == iteration:
                os.kill(os.getpid(), signal.SIGKILL)

    trainer.run()
    torch.save(network.state_dict(), arguments.folder / "last.pt")
    print(f"epoch {trainer.state.epoch}, best {best.best:.6f} in epoch {best.best_epoch}")


if __name__ == "__main__":
    main()

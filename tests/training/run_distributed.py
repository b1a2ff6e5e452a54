"""Two gloo processes train and stop together; started by tests: ``torchrun run_distributed.py FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from monai.data import DataLoader, Dataset, DistributedSampler
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import ValidationHandler
from monai.transforms import Activationsd
from torch.nn.parallel import DistributedDataParallel

from monai_mil.losses import MILLoss
from monai_mil.metrics import AUROC
from monai_mil.networks import ABMIL
from monai_mil.savers import ReportSaver
from monai_mil.training import (
    BestModel,
    Checkpointer,
    EarlyStop,
    EpochSeeder,
    FullOutputInferer,
    finish_distributed,
    prepare_bag_batch,
)


def loader(count: int, seed: int) -> DataLoader:
    torch.manual_seed(seed)
    data = [{"image": torch.randn(8, 12), "label": index // 2 % 2} for index in range(count)]
    dataset = Dataset(data)
    return DataLoader(dataset, batch_size=2, sampler=DistributedSampler(dataset, shuffle=False))


def main() -> None:
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    network = DistributedDataParallel(ABMIL(8, 2, hidden_dim=8, attention_dim=4, dropout=0.5))
    optimizer = torch.optim.SGD(network.parameters(), 0.0)
    cpu = torch.device("cpu")
    common = {"device": cpu, "network": network, "prepare_batch": prepare_bag_batch}
    evaluator = SupervisedEvaluator(
        val_data_loader=loader(8, seed=2),
        postprocessing=Activationsd("pred", softmax=True),
        key_val_metric={"auroc": AUROC()},
        **common,
    )
    trainer = SupervisedTrainer(
        max_epochs=20,
        train_data_loader=loader(8, seed=1),
        optimizer=optimizer,
        loss_function=MILLoss(),
        inferer=FullOutputInferer(),
        train_handlers=[EpochSeeder(0), ValidationHandler(interval=1, validator=evaluator)],
        decollate=False,
        **common,
    )
    best, stop = BestModel(network, folder / "model.pt"), EarlyStop(patience=3)
    best.attach(evaluator)
    stop.attach(evaluator, trainer)
    ReportSaver(folder, ["normal", "tumor"], n=10).attach(evaluator)
    Checkpointer(folder, {"network": network, "optimizer": optimizer, "best": best, "stop": stop}).attach(trainer)
    trainer.run()
    draw = torch.rand(1).item()
    line = f"rank {rank} epoch {trainer.state.epoch} auroc {best.best:.6f} draw {draw:.6f}\n"
    print(line, end="", flush=True)  # one write: another process's line never comes between
    finish_distributed()


if __name__ == "__main__":
    main()

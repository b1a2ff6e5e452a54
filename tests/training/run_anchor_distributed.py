"""Two gloo processes train one network with an anchor; started by a test, or by ``torchrun run_anchor_distributed.py``.

Every process prints how many steps the anchor made, the sum of its parameters, how far it is from where it began, and
how far from a moving average that is made beside it.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from monai.data import DataLoader, Dataset, DistributedSampler
from monai.engines import SupervisedTrainer
from torch.nn.parallel import DistributedDataParallel

from monai_mil.losses import AnchorDivergence, BagCrossEntropy, MILLoss
from monai_mil.networks import ASMIL
from monai_mil.training import Anchor, AnchorInferer, EpochSeeder, finish_distributed, prepare_bag_batch


def main() -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(1)
    dataset = Dataset([{"image": torch.randn(8, 12), "label": index // 2 % 2} for index in range(8)])
    torch.manual_seed(dist.get_rank())  # DDP gives all the first one's weights
    network = DistributedDataParallel(ASMIL(8, 2, hidden_dim=16, tokens=3))
    anchor = Anchor(network, momentum=0.9)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    start = {name: value.clone() for name, value in anchor.network.named_parameters()}
    average = {name: value.clone() for name, value in start.items()}

    def follow(*_: object) -> None:
        for name, value in average.items():
            value.lerp_(network.module.get_parameter(name).detach(), 0.1)

    optimizer.register_step_post_hook(follow)
    SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=3,
        train_data_loader=DataLoader(dataset, batch_size=1, sampler=DistributedSampler(dataset, shuffle=False)),
        network=network,
        optimizer=optimizer,
        loss_function=MILLoss({"bag": BagCrossEntropy(), "anchor": AnchorDivergence()}),
        inferer=AnchorInferer(anchor),
        prepare_batch=prepare_bag_batch,
        train_handlers=[EpochSeeder(0), anchor],
        accumulation_steps=2,
        decollate=False,
    ).run()
    parameters = dict(anchor.network.named_parameters())
    total = sum(float(value.double().sum()) for value in parameters.values())
    moved, off = (max(float((parameters[name] - each[name]).abs().max()) for name in each) for each in (start, average))
    line = f"rank {dist.get_rank()} steps {anchor.steps} anchor {total:.12f} moved {moved} off {off}\n"
    print(line, end="", flush=True)  # one write: another process's line never comes between
    finish_distributed()


if __name__ == "__main__":
    main()

"""Two gloo processes measure their share of the slides; started by a test: ``torchrun ... FOLDER TRUTH``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from ignite.engine import Engine

from monai_mil.savers import DiceSaver


def main(folder: Path, truth: Path) -> None:
    dist.init_process_group("gloo")
    items = torch.load(folder / "items.pt", weights_only=False)[dist.get_rank()]
    engine = Engine(lambda engine, batch: batch)
    DiceSaver(str(folder / "two"), str(truth), n=50).attach(engine)
    engine.run([[item] for item in items])
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

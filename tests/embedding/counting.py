"""An encoder that writes down what it is asked for, and the script that runs it in a process of its own."""

import json
import resource
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from monai_mil.embedding import embed_cohort
from tests.processes import Process, start


class CountingEncoder:
    """Tile statistics as features; every call adds the number of its tiles to a log."""

    name = "counting"
    digest = "c0"
    width = 6
    grid = None
    tile_size = 256
    target_mpp = 0.5
    device = torch.device("cpu")

    def __init__(self, log: Path, seconds: float = 0.0) -> None:
        self.log = log
        self.seconds = seconds

    def __call__(self, tiles: Tensor) -> Tensor:
        time.sleep(self.seconds)
        with self.log.open("a") as log:
            log.write(f"{len(tiles)}\n")
        values = tiles.flatten(2).float()
        return torch.cat([values.mean(dim=2), values.std(dim=2)], dim=1).half()


def encoded(log: Path) -> int:
    """Tiles encoded so far, of whole lines."""
    return sum(map(int, log.read_text().split())) if log.exists() else 0


def start_counting(
    table: Path, out: Path, log: Path, *, seconds: float, limit: int | None = None, **settings: object
) -> Process:
    """This script at work in a process that may write files of so many bytes; a batch takes so many seconds."""
    return start(__file__, table, out, log, seconds, json.dumps(settings), *([] if limit is None else [limit]))


if __name__ == "__main__":
    table, out_dir, log_path = map(Path, sys.argv[1:4])
    settings = json.loads(sys.argv[5])
    for limit in map(int, sys.argv[6:]):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    report = embed_cohort(
        table, out_dir, CountingEncoder(log_path, seconds=float(sys.argv[4])), batch_size=8, progress=False, **settings
    )
    sys.exit(len(report.failed))

"""A million tiles from a mapped bag through every network in evaluation: private memory above base, and CPU seconds.

    python -m benchmarks.million                      # from scripts/: a Markdown table, some 40 minutes
    python -m benchmarks.million --only acmil,camil   # some of them
    python -m benchmarks.million --n 50000            # all of them on fewer tiles

One bag for all: float16 features of 1024 and, for networks of neighbours, the tiles' places on a square behind them. A
network's time grows with the tiles, but where it grows with their square (``wikg``, ``r2t``) 50,000 are measured unless
``--n`` is given; ``--only`` takes these too. INSIGHT sees one token a tile. A network for CT slices sees 20,000.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import nn

from benchmarks.harness import in_a_fork
from benchmarks.memory import private_peak_growth
from benchmarks.methods import BUNDLE, WIDTH
from monai_mil import networks
from monai_mil.bags import BagFile
from monai_mil.training import Methods

MILLION, SQUARES, SLICES = 1_000_000, 50_000, 20_000
_OF_SQUARES = ("wikg", "r2t")
_OTHERS: dict[str, Callable[[], nn.Module]] = {
    "ASMIL": lambda: networks.ASMIL(WIDTH, 2),
    "IAT": lambda: networks.IAT(WIDTH, 2),
    "INSIGHT": lambda: networks.INSIGHT(WIDTH, 1, grid=(1, 1)),
}
_OF_SLICES: dict[str, Callable[[], nn.Module]] = {
    name: lambda name=name: getattr(networks, name)(WIDTH, 1)
    for name in ("PredictionABMIL", "SliceABMIL", "SmoothABMIL", "TransMIL1D", "SmoothTransformer1D", "SliceClassifier")
}


def measure(bag: Path, only: list[str], n: int | None) -> dict[str, tuple[int, float, float]]:
    """Tiles, mebibytes and CPU seconds by network."""
    methods = Methods(BUNDLE, "mil_baselines", {"in_channels": WIDTH, "num_classes": 2, "multi_label": False})
    makers = {name: partial(_of_method, methods, name) for name in methods} | _OTHERS | _OF_SLICES
    measured = {}
    for name in only or makers:
        usual = SLICES if name in _OF_SLICES else SQUARES if name in _OF_SQUARES and not only else MILLION
        count = min(usual, n or usual)
        measured[name] = (count, *in_a_fork(partial(_measure, makers[name], bag, count)))
        print(f"    {name}: {measured[name]}", file=sys.stderr, flush=True)
    return measured


def _of_method(methods: Methods, name: str) -> nn.Module:
    return methods.choose(name, widths="published").network()


def _measure(make: Callable[[], nn.Module], path: Path, n: int) -> tuple[float, float]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = make().eval()
    with BagFile(path) as bag:
        features = bag.floats()[:n]
    image = features if _takes_places(network) else features[:, :WIDTH]
    image = image.T[None, :, :, None, None] if isinstance(network, networks.INSIGHT) else image.T[None]

    def evaluate(tiles: torch.Tensor) -> None:
        with torch.no_grad():
            network(tiles, return_dict=True)

    evaluate(image[:, :, :100])
    start = time.process_time()
    megabytes = private_peak_growth(lambda: evaluate(image))
    return megabytes / 1.048576, time.process_time() - start


def _takes_places(network: nn.Module) -> bool:
    return isinstance(network, networks.CAMIL | networks.PatchGCN)


def write_bag(path: Path, n: int) -> None:
    """Random features, a block of which is repeated, and each tile's column and row on a square."""
    block = np.random.default_rng(0).standard_normal((10_000, WIDTH), dtype=np.float32).astype(np.float16)
    side = int(np.ceil(np.sqrt(n)))
    with h5py.File(path, "w") as file:
        features = file.create_dataset("features", (n, WIDTH + 2), np.float16)
        for start in range(0, n, len(block)):
            number = np.arange(start, min(start + len(block), n))
            places = np.stack([number % side, number // side], axis=1).astype(np.float16)
            features[number[0] : number[-1] + 1] = np.concatenate([block[: len(number)], places], axis=1)
        file["coords"] = np.zeros((n, 2), np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, help="tiles of the longest bag")
    parser.add_argument("--only", type=lambda text: text.split(","), default=[], help="names of networks")
    parser.add_argument("--bag", type=Path, help="use this file, and write it if it is not there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bag = arguments.bag or Path(folder, "bag.h5")
        if not bag.exists():
            write_bag(bag, arguments.n or MILLION)
        measured = measure(bag, arguments.only, arguments.n)
    print("| network | tiles | memory above base, MiB | CPU s |\n|---|---|---|---|")
    for name, (n, mebibytes, seconds) in measured.items():
        print(f"| `{name}` | {n:,} | {mebibytes:.0f} | {seconds:.1f} |")


if __name__ == "__main__":
    main()

"""Training steps of ours beside torchmil's network of the same widths, step after step in one process, one thread.

    PYTHONPATH=/where/torchmil/is python -m benchmarks.beside_torchmil [transmil dsmil ...]     # from scripts/

Beside the ratio stands what it would be if our step were its matrix products alone, with everything else for nothing.
Dropout is what the method has; torchmil's steps have none.

Runs within ``benchmark.py network`` where torchmil can be imported. It asks for an older scikit-learn than ours, so it
has a folder of its own: ``pip install --no-deps --target FOLDER torchmil==1.0.2 tensordict pyvers orjson cloudpickle
importlib_metadata zipp seaborn scikit-learn joblib threadpoolctl openslide-python einops``.
"""

from __future__ import annotations

import sys
from functools import partial

import torch

from benchmarks.harness import Figure, cpu_seconds, in_a_fork
from benchmarks.methods import BUNDLE, WIDTH, N, Step, our_step, seconds_and_memory, their_step, torchmil_networks
from benchmarks.products import products_alone
from monai_mil.losses import BagBCE
from monai_mil.training import Methods

_SIZES = {"transmil": {2_000: ">= 1.4", 10_000: ">= 1.5", 30_000: ">= 1.5"}}
_OTHERS = {N: ">= 1.05"}
_NAMES = ("transmil", "dsmil", "clam_sb", "abmil", "gated_abmil")


def run(names: tuple[str, ...] = _NAMES) -> list[Figure]:
    theirs = torchmil_networks()
    if not theirs:
        return []
    figures = []
    for name in names:
        for n, target in _SIZES.get(name, _OTHERS).items():
            makers = {"ours": partial(_ours, name, n), "theirs": partial(their_step, theirs[name], n)}
            steps = {whose: make() for whose, make in makers.items()}
            for step in steps.values():
                step()
            seconds = cpu_seconds({**steps, "products": products_alone(steps["ours"])}, rounds=5)
            ratio = seconds["theirs"] / seconds["ours"]
            figures.append(
                Figure(f"{name}, {n // 1000}k: a step of torchmil's takes longer by", ratio, "times", target)
            )
            most = seconds["theirs"] / seconds["products"]
            figures.append(Figure("  than our matrix products alone: no more can be reached", most, "times"))
            if name in _SIZES:
                megabytes = {whose: in_a_fork(partial(seconds_and_memory, make))[1] for whose, make in makers.items()}
                share = megabytes["ours"] / megabytes["theirs"]
                figures.append(Figure("  memory of its step, of torchmil's", share, "fraction", "<= 0.5"))
    return figures


def _ours(name: str, n: int) -> Step:
    """Of one output, as torchmil's has."""
    methods = Methods(BUNDLE, "mil_baselines", {"in_channels": WIDTH, "num_classes": 1, "multi_label": True})
    return our_step(methods, name, n, BagBCE())


if __name__ == "__main__":
    torch.set_num_threads(1)
    for figure in run(tuple(sys.argv[1:]) or _NAMES):
        print(f"{figure.name:<60} {figure.value:8.3f} {figure.unit} {figure.target} {figure.met}", flush=True)

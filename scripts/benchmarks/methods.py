"""Every method of ``mil_baselines`` at its published widths: a training step on 10,000 instances of 1024 features.

    python -m benchmarks.methods        # from scripts/: the same as a Markdown table

CPU seconds of forward and backward pass, loss included, and the memory they need over bag and network, one thread; each
method in a process of its own. Beside ours stands torchmil's network of the same widths, where torchmil is installed
and has one that takes a bag alone.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.harness import Figure, in_a_fork
from benchmarks.memory import peak_growth
from monai_mil.losses import BagCrossEntropy
from monai_mil.training import Methods

N, WIDTH = 10_000, 1024
BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "mil_baselines"
_LABEL = torch.ones(1, dtype=torch.long)
Step = Callable[[], None]


def measure() -> dict[str, dict[str, tuple[float, float]]]:
    """Seconds and megabytes by method, of "ours" and, where there is one, of "torchmil"."""
    methods = Methods(BUNDLE, "mil_baselines", {"in_channels": WIDTH, "num_classes": 2, "multi_label": False})
    makers: dict[str, dict[str, Callable[[], Step]]] = {
        name: {"ours": lambda name=name: our_step(methods, name)} for name in methods
    }
    for name, make in torchmil_networks().items():
        makers[name]["torchmil"] = lambda make=make: their_step(make)
    measured: dict[str, dict[str, tuple[float, float]]] = {}
    for name, several in makers.items():
        measured[name] = {whose: in_a_fork(partial(seconds_and_memory, make)) for whose, make in several.items()}
        print(f"    {name}: {measured[name]}", file=sys.stderr, flush=True)
    return measured


def run() -> list[Figure]:
    measured = measure()
    base = measured["abmil"]["ours"][0]
    figures = [Figure("ABMIL, a step of 10k x 1024", base, "CPU s")]
    for name, several in measured.items():
        for whose, (seconds, megabytes) in several.items():
            label = name if whose == "ours" else f"  {whose}'s"
            figures.append(Figure(f"{label}: takes, of ABMIL's time", seconds / base, "times"))
            figures.append(Figure(f"{label}: memory over the bag", megabytes, "MB"))
    return figures


def our_step(methods: Methods, name: str, n: int = N, bag_loss: nn.Module | None = None) -> Step:
    method = methods.choose(name, widths="published")
    network, loss = method.network().train(), method.loss(bag_loss or BagCrossEntropy())
    image = torch.randn(n, WIDTH).T[None]
    if "PositionsAsFeaturesd" in json.dumps(method.said.get("transforms", [])):
        places = torch.stack([torch.arange(n) % 100, torch.arange(n) // 100]).float()
        image = torch.cat([image, places[None]], dim=1)

    def step() -> None:
        network.zero_grad()
        loss(network(image, return_dict=True), _LABEL).backward()

    return step


def their_step(make: Callable[[], nn.Module], n: int = N) -> Step:
    network, rows = make(), torch.randn(1, n, WIDTH)
    masked = {"mask": torch.ones(1, n, dtype=torch.bool)} if type(network).__name__ == "DTFDMIL" else {}

    def step() -> None:
        network.zero_grad()
        answer = network(rows, **masked)
        logits = answer[0] if isinstance(answer, tuple) else answer
        F.binary_cross_entropy_with_logits(logits.flatten(), _LABEL.float()).backward()

    return step


def torchmil_networks() -> dict[str, Callable[[], nn.Module]]:
    try:
        from torchmil import models
    except ImportError:
        return {}

    def hidden() -> nn.Module:
        return nn.Sequential(nn.Linear(WIDTH, 512), nn.ReLU())

    def pooled(network: Any, **options: Any) -> Callable[[], nn.Module]:
        return lambda: network(in_shape=(WIDTH,), feat_ext=hidden(), **options)

    return {
        "abmil": pooled(models.ABMIL, att_dim=256),
        "gated_abmil": pooled(models.ABMIL, att_dim=256, gated=True),
        "clam_sb": pooled(models.CLAM_SB, att_dim=256, gated=True, k_sample=8),
        "dsmil": lambda: models.DSMIL(in_shape=(WIDTH,), att_dim=128, nonlinear_q=True),
        "transmil": lambda: models.TransMIL(in_shape=(WIDTH,), att_dim=512, n_heads=8, n_landmarks=256),
        "dtfd_afs": pooled(models.DTFDMIL, n_groups=4, distill_mode="afs"),
        "dtfd_maxs": pooled(models.DTFDMIL, n_groups=4, distill_mode="max"),
        "dtfd_maxmins": pooled(models.DTFDMIL, n_groups=4, distill_mode="maxmin"),
    }


def seconds_and_memory(make: Callable[[], Step]) -> tuple[float, float]:
    """CPU seconds of the second of two steps, and megabytes by which the first raised the peak."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    step = make()
    megabytes = peak_growth(step)
    start = time.process_time()
    step()
    return time.process_time() - start, megabytes


def _table() -> str:
    measured = measure()
    base = measured["abmil"]["ours"][0]
    lines = [
        "| method | CPU s of a step | of ABMIL's | memory over the bag, MB | torchmil: CPU s | MB |",
        "|---|---|---|---|---|---|",
    ]
    for name, several in sorted(measured.items(), key=lambda item: item[1]["ours"][0]):
        seconds, megabytes = several["ours"]
        theirs = several.get("torchmil")
        beside = " | " if theirs is None else f"{theirs[0]:.2f} | {theirs[1]:.0f}"
        lines.append(f"| `{name}` | {seconds:.2f} | {seconds / base:.1f} | {megabytes:.0f} | {beside} |")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(_table())

"""ABMIL beside the float32 GEMM rate, a plain PyTorch ABMIL and MONAI's MILModel: speed and memory, one thread.

Every method of ``mil_baselines`` (:mod:`benchmarks.methods`), some of them beside torchmil's
(:mod:`benchmarks.beside_torchmil`), and the networks for CT slices (:mod:`benchmarks.slices_network`) follow.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import Figure, cpu_seconds
from benchmarks.memory import in_a_process, peak_growth, resident
from monai_mil.networks import ABMIL

_WIDTH, _HIDDEN, _ATTENTION = 1024, 512, 256
_FLOPS_PER_ROW = 2 * (2 * _WIDTH * _HIDDEN + 3 * _HIDDEN * 2 * _ATTENTION)
_GEMMS = 20
_MILLION = 1_000_000


class PlainABMIL(nn.Module):
    """Gated ABMIL as a textbook writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(_WIDTH, _HIDDEN)
        self.tanh = nn.Linear(_HIDDEN, _ATTENTION)
        self.sigmoid = nn.Linear(_HIDDEN, _ATTENTION)
        self.score = nn.Linear(_ATTENTION, 1)
        self.classifier = nn.Linear(_HIDDEN, 2)

    def forward(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        hidden = F.relu(self.hidden(image.transpose(1, 2)))
        scores = self.score(torch.tanh(self.tanh(hidden)) * torch.sigmoid(self.sigmoid(hidden)))[..., 0]
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return self.classifier((scores.softmax(1)[:, None] @ hidden)[:, 0])


class MonaiAttention(nn.Module):
    """MONAI's MILModel ``att`` on features: its backbone only flattens."""

    def __init__(self) -> None:
        super().__init__()
        from monai.networks.nets import MILModel

        self.backbone_num_features = _WIDTH
        backbone = nn.Flatten(1)
        backbone.fc = nn.Linear(_WIDTH, 1)
        self.model = MILModel(2, mil_mode="att", pretrained=False, backbone=backbone, backbone_num_features=_WIDTH)

    def forward(self, image: Tensor) -> Tensor:
        return self.model(image.transpose(1, 2)[..., None, None])


_NETWORKS = {"ours": lambda: ABMIL(_WIDTH, 2, _HIDDEN, _ATTENTION), "plain": PlainABMIL, "monai": MonaiAttention}


def run() -> list[Figure]:
    # They import MONAI, which the processes of this module whose memory is measured must not
    from benchmarks import beside_torchmil, methods, slices_network

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [
            *_speed(10_000),
            *_speed(50_000),
            *_ragged(),
            *_memory(),
            *methods.run(),
            *beside_torchmil.run(),
            *slices_network.run(),
        ]
    finally:
        torch.set_num_threads(threads)


def _speed(n: int) -> list[Figure]:
    image = torch.randn(n, _WIDTH).T[None]
    left, right = torch.randn(2048, _WIDTH), torch.randn(_WIDTH, _WIDTH)
    networks = {name: make() for name, make in _NETWORKS.items()}

    def gemms() -> None:
        for _ in range(_GEMMS):
            torch.mm(left, right)

    alternatives = {"gemm": gemms, "bf16": lambda: _step(networks["ours"], image, bfloat16=True)}
    for name, network in networks.items():
        alternatives[name] = lambda network=network: _step(network, image)
    seconds = cpu_seconds(alternatives)
    rate = _GEMMS * 2 * 2048 * _WIDTH * _WIDTH / seconds["gemm"]
    floor = n * _FLOPS_PER_ROW / rate
    label = f"{n // 1000}k"
    return [
        Figure(f"float32 GEMM rate, with n = {label}", rate / 1e9, "GFLOP/s"),
        Figure(f"ABMIL training step, n = {label}: of the GEMM rate", floor / seconds["ours"], "fraction", ">= 0.85"),
        Figure("  a plain PyTorch ABMIL", floor / seconds["plain"], "fraction"),
        Figure("  MONAI MILModel att takes longer by", seconds["monai"] / seconds["ours"], "times"),
        Figure(
            "  bfloat16 is faster by",
            seconds["ours"] / seconds["bf16"],
            "times",
            ">= 2.5" if _cpu_has_bfloat16() else None,
        ),
    ]


def _ragged() -> list[Figure]:
    sizes = torch.linspace(1200, 6500, 8).long()
    mask = torch.arange(int(sizes.max())) < sizes[:, None]
    image = torch.randn(8, int(sizes.max()), _WIDTH).mT
    ours, plain = _NETWORKS["ours"](), _NETWORKS["plain"]()
    seconds = cpu_seconds({"ours": lambda: _step(ours, image, mask), "plain": lambda: _step(plain, image, mask)})
    return [Figure("8 bags of 1.2k to 6.5k: padded plain takes longer by", seconds["plain"] / seconds["ours"], "times")]


def _memory() -> list[Figure]:
    figures = []
    targets = {("train", 50_000): "<= 300", ("evaluate", 200_000): "<= 100"}
    for (what, n), target in targets.items():
        for name in _NETWORKS:
            megabytes = in_a_process("benchmarks.network", "--what", what, "--n", str(n), "--network", name)
            label = f"memory over the input, {what}, n = {n // 1000}k" if name == "ours" else f"  {name}"
            figures.append(Figure(label, megabytes, "MB", target if name == "ours" else None))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "bag.h5")
        _write_features(path)
        megabytes = in_a_process("benchmarks.network", "--what", "disk", "--bag", str(path))
    figures.append(Figure("resident in all, n = 1M float16 from disk", megabytes / 1.048576, "MiB", "<= 1024"))
    return figures


def _step(network: nn.Module, image: Tensor, mask: Tensor | None = None, bfloat16: bool = False) -> None:
    network.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        logits = network(image) if mask is None else network(image, mask)
    F.cross_entropy(logits.float(), torch.ones(len(image), dtype=torch.long)).backward()


def _cpu_has_bfloat16() -> bool:
    return bool(re.search(r"avx512_bf16|amx_bf16", Path("/proc/cpuinfo").read_text()))


def _write_features(path: Path) -> None:
    block = np.random.default_rng(0).standard_normal((20_000, _WIDTH), dtype=np.float32).astype(np.float16)
    with h5py.File(path, "w") as file:
        features = file.create_dataset("features", (_MILLION, _WIDTH), np.float16)
        for start in range(0, _MILLION, len(block)):
            features[start : start + len(block)] = block


def _measure_memory() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--what", choices=("train", "evaluate", "disk"))
    parser.add_argument("--n", type=int)
    parser.add_argument("--network", default="ours")
    parser.add_argument("--bag", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    network = _NETWORKS[arguments.network]().eval()
    if arguments.what == "disk":
        with h5py.File(arguments.bag) as file:
            features = file["features"]
            network.pool_chunks(features[start : start + 4096] for start in range(0, len(features), 4096))
        print(resident("VmHWM"))
        return
    image = torch.randn(arguments.n, _WIDTH).T[None]
    _step(network, image[:, :, :10])
    network.zero_grad()

    def evaluate() -> None:
        with torch.no_grad():
            network(image)

    print(peak_growth(evaluate if arguments.what == "evaluate" else lambda: _step(network, image)))


if __name__ == "__main__":
    _measure_memory()

"""ASMIL beside the same network token by token: training step, inference, what backward keeps, a million tiles.

Both give the same numbers, which is checked before anything is measured. A training step is everything a step holds:
the network, the anchor's scores and its moving average, the loss, backward, clipping and the optimiser.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.asmil_by_token import ByToken
from benchmarks.harness import Figure, cpu_seconds
from benchmarks.memory import in_a_process, peak_growth
from monai_mil.losses import AnchorDivergence, BagCrossEntropy, MILLoss
from monai_mil.networks import ASMIL
from monai_mil.training import Anchor, AnchorInferer

_SIZES = {(384, 128, 4096): ">= 3", (1024, 512, 16_384): ">= 4"}
_MILLION, _WIDTH = 1_000_000, 1024
_LABEL = torch.tensor([1])


def run() -> list[Figure]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [figure for sizes, target in _SIZES.items() for figure in _compare(*sizes, target)] + _from_disk()
    finally:
        torch.set_num_threads(threads)


def _compare(width: int, hidden: int, n: int, target: str) -> list[Figure]:
    torch.manual_seed(0)
    plain = ByToken(width, 2, hidden, drop=4)
    ours = ASMIL.from_reference(plain.state_dict())
    image = torch.randn(n, width).T[None]
    _check_equal(ours, plain, image)
    steps = {"ours": _our_step(ours, image), "plain": _plain_step(plain, image)}
    seconds = cpu_seconds(steps)
    kept = {name: _kept_for_backward(step) for name, step in steps.items()}
    infer = cpu_seconds({"ours": lambda: _infer(ours, image), "plain": lambda: _infer(plain, image.mT)})
    label = f"n = {n}, {width} wide"
    return [
        Figure(f"ASMIL training step, {label}", seconds["ours"], "CPU s"),
        Figure("  token by token takes longer by", seconds["plain"] / seconds["ours"], "times", target),
        Figure("  kept for backward, of token by token", kept["ours"] / kept["plain"], "fraction", "<= 0.333"),
        Figure("  inference: token by token takes longer by", infer["plain"] / infer["ours"], "times"),
    ]


def _check_equal(ours: ASMIL, plain: ByToken, image: Tensor) -> None:
    ours.eval()
    plain.eval()
    with torch.no_grad():
        _, logits, scores = plain(image.mT)
        output = ours(image, return_dict=True)
    torch.testing.assert_close(output["logits"], logits, rtol=0, atol=1e-5)
    together = output["attention_logits"][0].unflatten(0, (-1, len(scores))).transpose(0, 1)
    torch.testing.assert_close(together, scores, rtol=0, atol=1e-5)


def _our_step(network: ASMIL, image: Tensor) -> Callable[[], None]:
    anchor = Anchor(network)
    inferer = AnchorInferer(anchor)
    loss = MILLoss({"bag": BagCrossEntropy(), "anchor": AnchorDivergence()})

    def answer() -> Tensor:
        return loss(inferer(image, network), _LABEL)

    return _step(network, answer, anchor.update)


def _plain_step(network: ByToken, image: Tensor) -> Callable[[], None]:
    anchor = copy.deepcopy(network).eval().requires_grad_(False)
    rows = image.mT

    def answer() -> Tensor:
        _, logits, scores = network(rows)
        with torch.no_grad():
            sigmoid = torch.sigmoid(anchor(rows)[2])
            target = sigmoid / sigmoid.sum(dim=2, keepdim=True)
        divergence = (target * (target.log() - scores.log_softmax(dim=2))).sum(dim=2).mean()
        return F.cross_entropy(logits, _LABEL) + divergence

    @torch.no_grad()
    def follow() -> None:
        for slow, fast in zip(anchor.parameters(), network.parameters(), strict=True):
            slow.lerp_(fast, 1e-3)

    return _step(network, answer, follow)


def _step(network: nn.Module, answer: Callable[[], Tensor], follow: Callable[[], None]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4)

    def step() -> None:
        network.train()
        optimizer.zero_grad()
        answer().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        follow()

    return step


@torch.no_grad()
def _infer(network: nn.Module, image: Tensor) -> None:
    network.eval()(image)


def _kept_for_backward(step: Callable[[], None]) -> int:
    """Bytes of all tensors that one step keeps for backward, each storage once, parameters included."""
    kept: dict[int, int] = {}
    alive = []

    def note(tensor: Tensor) -> Tensor:
        alive.append(tensor)  # a storage that is freed would give its address to the next
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        step()
    return sum(kept.values())


def _from_disk() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "bag.h5")
        block = np.random.default_rng(0).standard_normal((20_000, _WIDTH), dtype=np.float32).astype(np.float16)
        with h5py.File(path, "w") as file:
            features = file.create_dataset("features", (_MILLION, _WIDTH), np.float16)
            for start in range(0, _MILLION, len(block)):
                features[start : start + len(block)] = block
        megabytes = in_a_process("benchmarks.asmil", str(path))
    return [Figure("ASMIL, n = 1M float16 from disk: memory over base", megabytes / 1.048576, "MiB", "<= 1024")]


def _measure_from_disk() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bag", type=Path)
    path = parser.parse_args().bag
    torch.set_num_threads(1)
    network = ASMIL(_WIDTH, 2).eval()
    with h5py.File(path) as file:
        features = file["features"]
        network.pool_chunks([features[:4096]])

        def evaluate() -> None:
            network.pool_chunks(features[start : start + 4096] for start in range(0, len(features), 4096))

        print(peak_growth(evaluate))


if __name__ == "__main__":
    _measure_from_disk()

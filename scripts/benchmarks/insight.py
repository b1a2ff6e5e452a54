"""INSIGHT in chunks from disk beside a straightforward channels-first PyTorch of it: answers, speed, memory, storage.

Straightforward: the layers of the paper one after the other on a float32 bag ``[n, 1024, 14, 14]``, Otsu and SmoothMax
on all of its tokens, and backwards.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import Figure, cpu_seconds
from benchmarks.memory import in_a_process, private_peak_growth, resident
from benchmarks.products import products_alone
from monai_mil.bags import BagFile, BagInfo, LoadBagd, MappedFeatures
from monai_mil.losses import BagBCE, MILLoss, SpectralDecoupling
from monai_mil.networks import INSIGHT
from monai_mil.networks.blocks.otsu import otsu_threshold

_WIDTH, _GRID = 1024, (14, 14)
_SIZES, _COMPARED, _TIMED = (500, 2000, 8000), 2000, 128
_MACS = 131_072 + 28_736 + 258_624
"""Multiply-adds of a token: projection, detection, context."""
_LOSS = MILLoss({"bag": BagBCE(), "decoupling": SpectralDecoupling()}, {"decoupling": 0.01})


class PlainINSIGHT(nn.Module):
    """The paper's layers, channels first, under the reference's names."""

    def __init__(self) -> None:
        super().__init__()

        def layer(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
            border = [nn.ReplicationPad2d(1)] if kernel == 3 else []
            return [*border, nn.Conv2d(inputs, outputs, kernel), nn.GELU(), nn.LayerNorm((outputs, *_GRID))]

        def branch(kernel: int) -> nn.Sequential:
            hidden = [*layer(128, 128, kernel), *layer(128, 64, kernel), *layer(64, 64, kernel)]
            return nn.Sequential(*hidden, *layer(64, 1, kernel)[:-2])

        self.reduce_dimension_block = nn.Sequential(*layer(_WIDTH, 128, 1))
        self.backbone_block, self.context_block = branch(1), branch(3)

    def forward(self, tiles: Tensor) -> dict[str, Tensor]:
        reduced = self.reduce_dimension_block(tiles)
        detection, context = self.backbone_block(reduced), self.context_block(reduced)
        heatmap = torch.sigmoid(detection) * (1 - torch.sigmoid(context))
        rows = heatmap.transpose(0, 1).flatten(1)
        kept = rows * (rows > otsu_threshold(rows)[:, None])
        prob = (torch.softmax(8 * kept, dim=1) * kept).sum(dim=1)[None]
        return {
            "logits": torch.logit(prob.clamp(1e-12, 0.999)),
            "prob": prob,
            "heatmap": heatmap.transpose(0, 1)[None],
            "detection_logits": detection.transpose(0, 1)[None],
        }


def run() -> list[Figure]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            bag = Path(folder, "bag.h5")
            _write_bag(bag, max(_SIZES))
            return [*_agreement(), *_speed(), *_memory(bag), *_storage(Path(folder))]
    finally:
        torch.set_num_threads(threads)


def _agreement() -> list[Figure]:
    """Ours and the straightforward one on the same tiles."""
    tiles = torch.from_numpy(_tokens(40))
    ours, plain = _pair()
    outputs = [_step_ours(ours, tiles), _step_plain(plain, tiles)]
    apart = max(float((outputs[0][key] - outputs[1][key]).detach().abs().max()) for key in ("heatmap", "prob"))
    norms = [torch.stack([p.grad.norm() for p in network.parameters()]).norm() for network in (ours, plain)]
    return [
        Figure("largest difference of heatmap and probability", apart, "", "<= 1e-05"),
        Figure("  of the gradient's norm", float((norms[0] / norms[1] - 1).abs()), "fraction", "<= 1e-04"),
    ]


def _speed() -> list[Figure]:
    tiles = torch.from_numpy(_tokens(_TIMED))
    first = tiles.float().contiguous()
    ours, plain = _pair()
    square, kernel = torch.randn(32, *_GRID, _WIDTH), torch.randn(_WIDTH, _WIDTH)

    def evaluate() -> None:
        with torch.no_grad():
            ours(tiles.transpose(0, 1)[None])

    seconds = cpu_seconds(
        {
            "mkl": lambda: torch.mm(square.flatten(0, 2), kernel),
            "onednn": lambda: F.conv2d(square.permute(0, 3, 1, 2), kernel[:, :, None, None]),
            "ours": lambda: _step_ours(ours, tiles),
            "plain": lambda: _step_plain(plain, first),
            "products": products_alone(lambda: _step_ours(ours, tiles)),
            "forward": evaluate,
        }
    )
    rates = {name: 2 * square.numel() * _WIDTH / seconds[name] for name in ("mkl", "onednn")}
    rate = max(rates.values())
    floor = 2 * _MACS * _GRID[0] * _GRID[1] / rate
    ours_tile, plain_tile, forward_tile = (seconds[name] / _TIMED for name in ("ours", "plain", "forward"))
    return [
        Figure("float32 GEMM rate, MKL", rates["mkl"] / 1e9, "GFLOP/s"),
        Figure("  oneDNN, as a 1 x 1 convolution of tokens", rates["onednn"] / 1e9, "GFLOP/s"),
        Figure("forward and backward, float16, chunks of 32", 1e3 * ours_tile, "ms a tile"),
        Figure("  straightforward PyTorch takes longer by", plain_tile / ours_tile, "times", ">= 1"),
        Figure("  than our products alone: no more can be reached", seconds["plain"] / seconds["products"], "times"),
        Figure("  of the better rate, counting 4 passes", 4 * floor / ours_tile, "fraction"),
        Figure("forward", 1e3 * forward_tile, "ms a tile"),
        Figure("  of the better rate", floor / forward_tile, "fraction"),
    ]


def _memory(bag: Path) -> list[Figure]:
    measure = partial(in_a_process, "benchmarks.insight", "--bag", str(bag))
    grown = {n: measure("--n", str(n)) for n in _SIZES}
    plain, before = measure("--n", str(_COMPARED), "--plain"), measure()
    figures = [Figure(f"memory of a training step from disk, {n} tiles", grown[n], "MB") for n in _SIZES]
    share = grown[_COMPARED] / plain
    return [
        *figures,
        Figure(
            "  the process's peak grows from the smallest to the largest by",
            (before + grown[_SIZES[-1]]) / (before + grown[_SIZES[0]]) - 1,
            "fraction",
            "<= 0.1",
        ),
        Figure(f"straightforward PyTorch, {_COMPARED} tiles", plain, "MB"),
        Figure("  ours", share, "fraction", "<= 0.1"),
    ]


def _storage(folder: Path) -> list[Figure]:
    """What a byte a feature costs: tokens with outlier channels, sharpened heads."""
    tokens = _vit_like(200)
    network = _pair()[0].eval()
    with torch.no_grad():
        network.tiles.detection_score.weight *= 10
        network.tiles.context_score.weight *= 10
    outputs, size = {}, {}
    for storage in ("float16", "uint8"):
        path = folder / f"{storage}.h5"
        BagFile.write(path, tokens, np.zeros((len(tokens), 2), int), BagInfo("slide"), storage=storage)
        size[storage] = path.stat().st_size
        loaded = LoadBagd(mapped=True)({"image": str(path)})
        codes = {name: loaded[f"feature_{name}"][None] for name in ("scale", "offset") if storage == "uint8"}
        with torch.no_grad():
            outputs[storage] = network(loaded["image"][None], return_dict=True, **codes)
    half, byte = outputs["float16"], outputs["uint8"]
    error = (half["heatmap"] - byte["heatmap"]).abs()
    masks = [output["heatmap"] > output["threshold"][..., None, None, None] for output in (half, byte)]
    dice = 2 * (masks[0] & masks[1]).sum() / (masks[0].sum() + masks[1].sum())
    figures = [
        Figure(f"read for a slide of 10k tiles, {storage}, once", 10_000 * size[storage] / len(tokens) / 1e9, "GB")
        for storage in size
    ]
    return [
        *figures,
        Figure("uint8 against float16: largest change of the heatmap", float(error.max()), "", "<= 0.1"),
        Figure("  mean change", float(error.mean()), "", "<= 0.005"),
        Figure("  Dice of Otsu's masks", float(dice), "", ">= 0.99"),
        Figure("  change of the probability", float((half["prob"] - byte["prob"]).abs().max()), "", "<= 0.001"),
    ]


def _pair() -> tuple[INSIGHT, PlainINSIGHT]:
    """Ours and the straightforward one with the same parameters."""
    torch.manual_seed(0)
    plain = PlainINSIGHT()
    return INSIGHT.from_reference(plain.state_dict()), plain


def _step_ours(network: INSIGHT, tiles: Tensor) -> dict[str, Tensor]:
    return _train(network, lambda: network(tiles.transpose(0, 1)[None], return_dict=True))


def _step_plain(network: PlainINSIGHT, tiles: Tensor) -> dict[str, Tensor]:
    return _train(network, lambda: network(tiles.float().contiguous()))


def _train(network: nn.Module, forward: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    network.zero_grad()
    output = forward()
    _LOSS(output, torch.ones(1, 1)).backward()
    return output


def _tokens(n: int) -> np.ndarray:
    """Float16 ``[n, 1024, 14, 14]``, token-major in memory as a bag's map is."""
    tokens = np.random.default_rng(0).standard_normal((n, *_GRID, _WIDTH), np.float32).astype(np.float16)
    return np.moveaxis(tokens, -1, 1)


def _vit_like(n: int) -> np.ndarray:
    """Tokens as vision transformers give them: smooth, a few channels a hundred times the others."""
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((n, *_GRID, _WIDTH), np.float32)
    tokens += np.repeat(np.repeat(rng.standard_normal((n, 7, 7, _WIDTH), np.float32), 2, axis=1), 2, axis=2)
    size = np.exp(rng.normal(0, 0.5, _WIDTH)).astype(np.float32)
    size[:: _WIDTH // 4] *= 100
    tokens = tokens * size + rng.standard_normal(_WIDTH).astype(np.float32) * size
    return np.moveaxis(tokens.astype(np.float16), -1, 1)


def _write_bag(path: Path, n: int) -> None:
    """As ``BagFile.write`` does, block by block."""
    block = np.moveaxis(_tokens(100), 1, -1)
    with h5py.File(path, "w") as file:
        features = file.create_dataset("features", (n, *_GRID, _WIDTH), np.float16)
        features.attrs["layout"] = "nhwd"
        for start in range(0, n, len(block)):
            features[start : start + len(block)] = block
        file["coords"] = np.zeros((n, 2), int)


def _measure_memory() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bag", type=Path)
    parser.add_argument("--n", type=int, help="tiles of the step; without, what the process holds before it")
    parser.add_argument("--plain", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ours, plain = _pair()
    step: Callable[[Tensor], object] = partial(_step_plain, plain) if arguments.plain else partial(_step_ours, ours)
    mapped: MappedFeatures = BagFile(arguments.bag).mapped()
    step(mapped.features[:40])
    if arguments.n is None:
        print(resident("RssAnon"))
        return
    print(private_peak_growth(lambda: step(mapped.features[: arguments.n])))


if __name__ == "__main__":
    _measure_memory()

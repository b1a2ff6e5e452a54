"""TransMIL1D and SmoothABMIL on CT scans beside straightforward PyTorch: same answers, speed, memory; one thread.

Straightforward: both transformer layers as ``nn.MultiheadAttention`` with all rows and weights, and the smooth operator
as ten products with a dense adjacency matrix, as the method's reference has them.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import Figure, cpu_seconds
from benchmarks.memory import in_a_process, peak_growth
from monai_mil.networks import SmoothABMIL, TransMIL1D

_WIDTH, _HEADS, _SLICES = 768, 8, (318, 1000, 1727)
_TARGET_SLICES = 1000


class PlainLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(_WIDTH)
        self.attn = nn.MultiheadAttention(_WIDTH, _HEADS, batch_first=True)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.norm(rows)
        mixed, attention = self.attn(normed, normed, normed, need_weights=True, average_attn_weights=False)
        return rows + mixed, attention


class PlainTransMIL(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, _WIDTH))
        self.layer1, self.layer2 = PlainLayer(), PlainLayer()
        self.convolutions = nn.ModuleList(
            nn.Conv1d(_WIDTH, _WIDTH, kernel, padding=kernel // 2, groups=_WIDTH) for kernel in (3, 5, 7)
        )
        self.clf = nn.Linear(_WIDTH, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        rows, _ = self.layer1(torch.cat([self.cls_token[None], image.mT], dim=1))
        slices = rows[:, 1:].mT
        slices = slices + sum(convolution(slices) for convolution in self.convolutions)
        rows, attention = self.layer2(torch.cat([rows[:, :1], slices.mT], dim=1))
        return self.clf(rows[:, 0]), attention[:, :, 0, 1:]

    def reference_state(self) -> dict[str, Tensor]:
        names = {f"convolutions.{index}.": f"pos_layer.proj{index + 1}.conv." for index in range(3)}
        return _renamed(self, names)


class PlainSmooth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        spectral_norm = nn.utils.parametrizations.spectral_norm
        self.mlp = nn.Sequential(spectral_norm(nn.Linear(_WIDTH, 128)), nn.Tanh(), spectral_norm(nn.Linear(128, 1)))
        self.raw_alpha = nn.Parameter(torch.tensor(0.0))
        self.clf = nn.Linear(_WIDTH, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features, alpha = image[0].T, torch.sigmoid(self.raw_alpha)
        index = torch.arange(len(features))
        adjacency = ((index[:, None] - index).abs() == 1).float()
        adjacency = adjacency / adjacency.sum(dim=1, keepdim=True)
        smooth = features
        for _ in range(10):
            smooth = (1 - alpha) * features + alpha * (adjacency @ smooth)
        attention = self.mlp(smooth).softmax(dim=0)
        return self.clf((attention * smooth).sum(dim=0))[None], attention.T[None]

    def reference_state(self) -> dict[str, Tensor]:
        return _renamed(self, {"raw_alpha": "sm_layer.raw_alpha"})


_NETWORKS = {"TransMIL1D": (TransMIL1D, PlainTransMIL), "SmoothABMIL": (SmoothABMIL, PlainSmooth)}


def run() -> list[Figure]:
    return [figure for name in _NETWORKS for figure in (*_speed(name), *_memory(name))]


def _speed(name: str) -> list[Figure]:
    ours, plain = _pair(name)
    figures = []
    for n in _SLICES:
        image = torch.randn(1, n, _WIDTH).mT
        seconds = cpu_seconds(
            {"ours": lambda image=image: _step(ours, image), "plain": lambda i=image: _step(plain, i)}
        )
        target = ">= 2" if n == _TARGET_SLICES else None
        figures.append(Figure(f"{name} training step, {n} slices", seconds["ours"] * 1000, "ms"))
        figures.append(
            Figure("  straightforward PyTorch takes longer by", seconds["plain"] / seconds["ours"], "times", target)
        )
    image = torch.randn(1, _SLICES[-1], _WIDTH).mT
    return [*figures, Figure("  largest difference of answer and attention", _difference(name, image), "", "<= 1e-05")]


def _memory(name: str) -> list[Figure]:
    figures, grown = [], {}
    for which in ("ours", "plain"):
        for n in _SLICES:
            grown[which, n] = in_a_process(
                "benchmarks.slices_network", "--network", name, "--which", which, "--n", str(n)
            )
    for n in _SLICES:
        figures.append(Figure(f"{name}, memory over the input, {n} slices", grown["ours", n], "MB"))
        figures.append(Figure("  straightforward PyTorch", grown["plain", n], "MB"))
    longer = math.log(_SLICES[-1] / _SLICES[0])
    for which, target in (("ours", "<= 1.1"), ("plain", None)):
        exponent = math.log(grown[which, _SLICES[-1]] / grown[which, _SLICES[0]]) / longer
        label = "  memory grows with the slices to the power of" if which == "ours" else "  straightforward PyTorch"
        figures.append(Figure(label, exponent, "", target))
    return figures


def _pair(name: str) -> tuple[nn.Module, nn.Module]:
    """Ours and the straightforward one with the same parameters."""
    torch.manual_seed(0)
    network_class, plain_class = _NETWORKS[name]
    plain = plain_class()
    return network_class.from_reference(plain.reference_state()), plain


def _difference(name: str, image: Tensor) -> float:
    ours, plain = (network.eval() for network in _pair(name))
    with torch.no_grad():
        output = ours(image, return_dict=True)
        logits, attention = plain(image)
    given = output.get("attention_share", output["attention"])
    return max(float((output["logits"] - logits).abs().max()), float((given - attention).abs().max()))


def _step(network: nn.Module, image: Tensor) -> None:
    network.zero_grad()
    output = network(image)
    logits = output[0] if isinstance(output, tuple) else output
    F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits)).backward()


def _renamed(network: nn.Module, names: dict[str, str]) -> dict[str, Tensor]:
    """State dict with the beginnings of names replaced."""
    state = {}
    for name, value in network.state_dict().items():
        for ours, theirs in names.items():
            if name.startswith(ours):
                name = theirs + name.removeprefix(ours)
        state[name] = value
    return state


def _measure_memory() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", choices=tuple(_NETWORKS))
    parser.add_argument("--which", choices=("ours", "plain"))
    parser.add_argument("--n", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    network = _pair(arguments.network)[arguments.which == "plain"]
    image = torch.randn(1, arguments.n, _WIDTH).mT
    _step(network, image[:, :, :10])
    network.zero_grad()
    print(peak_growth(lambda: _step(network, image)))


if __name__ == "__main__":
    _measure_memory()

"""On a GPU: slides to features beside decoding, copying and encoding alone, and steps of networks; in four minutes.

    python scripts/benchmark.py gpu                  # the targets stand for an H200 with 16 cores
    python scripts/benchmark.py gpu --device cpu     # the same code on a few tiles, without targets

Needs torch, timm and cuCIM, no internet: encoders have random weights of the published shapes. Beside TransMIL stands
torchmil's where torchmil can be imported.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import Figure
from benchmarks.tiles import write_synthetic_slide
from monai_mil.embedding.slide import embed_slide, on_host
from monai_mil.encoders import Encoder
from monai_mil.encoders.backbones import architecture
from monai_mil.encoders.cards import CARDS
from monai_mil.errors import MonaiMILError
from monai_mil.networks import ABMIL, INSIGHT, TransMIL
from monai_mil.slides import Slide, TileGrid, open_slide, segment_tissue, stream_tiles

_SECONDS = 240
WIDTH = 1024


@dataclass(frozen=True)
class Sizes:
    """How much is measured, and with which encoders: name, tiles, and the target of the rate beside the encoder's.

    ``insight`` counts tiles and channels, ``abmil`` and ``transmil`` instances.
    """

    slide: int
    batch: int
    encoders: dict[str, tuple[int, str | None]]
    insight: tuple[int, int]
    abmil: int
    transmil: int
    rounds: int


LARGE = Sizes(
    slide=20_000,
    batch=128,
    encoders={
        "resnet18": (2048, None),
        "resnet50": (2048, None),
        "uni": (2048, ">= 0.95"),
        "virchow2": (1024, ">= 0.95"),
        "h_optimus_1": (1024, ">= 0.95"),
    },
    insight=(2000, 1024),
    abmil=50_000,
    transmil=10_000,
    rounds=5,
)
SMALL = Sizes(
    slide=2048, batch=8, encoders={"resnet18": (16, None)}, insight=(8, 64), abmil=500, transmil=300, rounds=1
)


def run(device: str = "cuda" if torch.cuda.is_available() else "cpu", sizes: Sizes | None = None) -> list[Figure]:
    """Measure on a device; without a GPU a few tiles on the CPU."""
    where = torch.device(device)
    is_gpu = where.type != "cpu"
    sizes = sizes or (LARGE if is_gpu else SMALL)
    until = time.monotonic() + _SECONDS
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "slide.tif")
        write_synthetic_slide(path, sizes.slide)
        networks = _networks(where, sizes)
        with open_slide(path) as slide:
            return [*networks, *_slides(slide, where, sizes, until)]


def _slides(slide: Slide, device: torch.device, sizes: Sizes, until: float) -> Iterator[Figure]:
    tissue = segment_tissue(slide)
    native = TileGrid.cover(slide, tissue, min_tissue=0.5)
    halved = TileGrid.cover(slide, tissue, target_mpp=1.0, min_tissue=0.5)
    stream = partial(stream_tiles, slide, batch_size=sizes.batch)
    rate = _rate(partial(stream, native), len(native), device, sizes)
    yield Figure(f"decoding on {len(os.sched_getaffinity(0))} cores alone", rate, "tiles/s")
    copied = _rate(partial(stream, native, device=device), len(native), device, sizes)
    yield Figure("  and copied to the device, of that", copied / rate, "fraction", _on_gpu(">= 0.95", device))
    yield Figure("copying tiles from pinned memory alone", _copying(device, sizes), "tiles/s")
    exact = _rate(partial(stream, halved, device=device), len(halved), device, sizes)
    yield Figure("40x to 20x, to the device", exact, "tiles/s")
    scaled = _rate(partial(stream, halved, device=device, decoder="scaled"), len(halved), device, sizes)
    yield Figure("  decoder 'scaled' is faster by", scaled / exact, "times")
    if device.type == "cuda":
        try:
            by_cucim = _rate(partial(stream, native, device=device, decoder="cucim-device"), len(native), device, sizes)
            yield Figure("  decoder 'cucim-device', of the exact one's", by_cucim / copied, "fraction")
        except MonaiMILError as error:
            print(f"  cucim-device is left out: {error}")
    for name, (tiles, target) in sizes.encoders.items():
        if time.monotonic() > until:
            print(f"  {name} is left out: {_SECONDS} s are over")
            continue
        yield from _embedding(slide, native.take(slice(0, tiles)), _encoder(name, device), copied, sizes, target)


def _embedding(
    slide: Slide, grid: TileGrid, encoder: Encoder, decoding: float, sizes: Sizes, target: str | None
) -> Iterator[Figure]:
    """From the file to features on the host, beside the encoder on tiles that lie on the device."""
    device = encoder.device
    with torch.no_grad():
        tiles = next(stream_tiles(slide, grid, batch_size=sizes.batch, device=device)).clone()
        count = max(1, len(grid) // len(tiles))
        alone = _rate(lambda: (encoder(tiles) for _ in range(count)), count * len(tiles), device, sizes)
        together = _rate(
            lambda: on_host(embed_slide(slide, grid, encoder, batch_size=sizes.batch, device=str(device))),
            len(grid),
            device,
            sizes,
        )
    yield Figure(f"{encoder.name} in {str(encoder.dtype)[6:]} alone", alone, "tiles/s")
    yield Figure("  slide to features, of the encoder", together / alone, "fraction", _on_gpu(target, device))
    of_slower = _on_gpu(">= 0.80" if encoder.name == "resnet50" else None, device)
    yield Figure("  of the slower of it and decoding", together / min(alone, decoding), "fraction", of_slower)


def _encoder(name: str, device: torch.device) -> Encoder:
    """An encoder of the published shape with random weights."""
    card = CARDS[name]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    with torch.device(device):
        model = architecture(card, spatial=False)
    model = model.eval().requires_grad_(False).to(device, dtype).to(memory_format=torch.channels_last)
    return Encoder(
        card,
        model,
        digest="random",
        spatial=False,
        device=device,
        dtype=dtype,
        chunk=1024 if device.type == "cuda" else 8,
        side_by_side=False,
    )


def _copying(device: torch.device, sizes: Sizes) -> float:
    tiles = torch.empty(sizes.batch, 256, 256, 3, dtype=torch.uint8, pin_memory=device.type == "cuda")
    count = 20
    return _rate(
        lambda: (tiles.to(device, non_blocking=True, copy=True) for _ in range(count)),
        count * sizes.batch,
        device,
        sizes,
    )


def _networks(device: torch.device, sizes: Sizes) -> list[Figure]:
    return [*_abmil(device, sizes), *_insight(device, sizes), *_transmil(device, sizes)]


def _abmil(device: torch.device, sizes: Sizes) -> list[Figure]:
    features = torch.randn(sizes.abmil, WIDTH, device=device, dtype=torch.float16)
    network = ABMIL(WIDTH, 2, 512, 256).to(device)
    rows, weight = features.bfloat16(), torch.randn(WIDTH, 512, device=device, dtype=torch.bfloat16)
    seconds = _wall({"step": _step(network, features.T[None], True), "product": lambda: rows @ weight}, device, sizes)
    return [
        _milliseconds(f"ABMIL, {sizes.abmil} x {WIDTH} float16, bf16", seconds["step"], "<= 1.2", device),
        Figure("  its first matrix product alone, of that", seconds["product"] / seconds["step"], "fraction"),
    ]


def _insight(device: torch.device, sizes: Sizes) -> list[Figure]:
    tiles, width = sizes.insight
    network = INSIGHT(in_channels=width, num_classes=1).to(device)
    image = torch.randn(1, tiles, 14, 14, width, device=device, dtype=torch.float16).permute(0, 4, 1, 2, 3)
    seconds = _wall({"step": _step(network, image, True)}, device, sizes)
    return [_milliseconds(f"INSIGHT, {tiles} tiles of 14 x 14 x {width}, bf16", seconds["step"], "<= 40", device)]


def _transmil(device: torch.device, sizes: Sizes) -> list[Figure]:
    image = torch.randn(1, WIDTH, sizes.transmil, device=device)
    network = TransMIL(WIDTH, 2).to(device)
    alternatives = {"float32": _step(network, image, False), "bf16": _step(network, image, True)}
    try:
        from torchmil import models

        theirs = models.TransMIL(in_shape=(WIDTH,), att_dim=512, n_heads=8, n_landmarks=256).to(device)
        alternatives["torchmil"] = _step(theirs, image.transpose(1, 2).contiguous(), False)
    except ImportError:
        print("  torchmil is left out: it cannot be imported")
    seconds = _wall(alternatives, device, sizes)
    figures = [
        _milliseconds(f"TransMIL, {sizes.transmil} x {WIDTH}, float32", seconds["float32"], "<= 45", device),
        _milliseconds("  bf16", seconds["bf16"], "<= 20", device),
    ]
    if "torchmil" in seconds:
        figures.append(Figure("  torchmil takes, of ours", seconds["torchmil"] / seconds["float32"], "times"))
    return figures


def _step(network: nn.Module, image: Tensor, bfloat16: bool) -> Callable[[], None]:
    """Forward and backward pass of a training step."""

    def step() -> None:
        network.zero_grad()
        with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=bfloat16):
            answer: Any = network(image)
        logits = (answer[0] if isinstance(answer, tuple) else answer).float()
        F.softplus(logits).sum().backward()

    return step


def _milliseconds(name: str, seconds: float, target: str, device: torch.device) -> Figure:
    return Figure(name, 1e3 * seconds, "ms a step", _on_gpu(target, device))


def _on_gpu(target: str | None, device: torch.device) -> str | None:
    return target if device.type == "cuda" else None


def _rate(batches: Callable[[], Any], tiles: int, device: torch.device, sizes: Sizes) -> float:
    """Tiles a second of the better of two runs; the first of all warms up."""

    def drain() -> None:
        for _ in batches():
            pass

    return tiles / _wall({"": drain}, device, sizes, rounds=min(2, sizes.rounds))[""]


def _wall(
    alternatives: dict[str, Callable[[], object]], device: torch.device, sizes: Sizes, rounds: int | None = None
) -> dict[str, float]:
    """Least wall time of each, run in turn after one run that does not count, until the device has finished."""
    lane = torch.get_device_module(device)
    best = dict.fromkeys(alternatives, float("inf"))
    for number in range((sizes.rounds if rounds is None else rounds) + 1):
        for name, call in alternatives.items():
            lane.synchronize()
            start = time.perf_counter()
            call()
            lane.synchronize()
            if number:
                best[name] = min(best[name], time.perf_counter() - start)
    return best

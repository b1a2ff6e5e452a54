"""Reading, encoding and writing side by side, shown with a decoder and an encoder that only sleep: of known rates.

A run over slides should take what the slower of both takes alone.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Figure
from monai_mil.embedding import embed_cohort
from monai_mil.slides import write_pyramid
from monai_mil.slides.tiff import TiffPyramid

SLIDES, SIDE, TILE, BATCH = 3, 2560, 256, 4


def run() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        slides = Path(folder, "slides")
        slides.mkdir()
        for number in range(SLIDES):
            write_pyramid(slides / f"{number}.tif", np.full((SIDE, SIDE, 3), (180, 60, 140), np.uint8), mpp=0.5)
        with _decoder(0):
            embed_cohort(slides, Path(folder, "first"), _Sleeper(0), progress=False)  # imports take their time
        return [_figure(slides, Path(folder, name), name, *rates) for name, rates in _RATES.items()]


_RATES = {"encoder": (8.0, 24.0), "decoder": (24.0, 8.0)}
"""Which is the slower, and milliseconds a tile: of the decoder, all its threads together, and of the encoder."""


def _figure(slides: Path, out: Path, slower: str, decoding: float, encoding: float) -> Figure:
    threads = min(16, len(os.sched_getaffinity(0)))
    with _decoder(threads * decoding / 1000):
        start = time.perf_counter()
        report = embed_cohort(slides, out, _Sleeper(encoding / 1000), batch_size=BATCH, progress=False)
        wall = time.perf_counter() - start
    if report.failed:
        raise RuntimeError(report.failed[0].error)
    alone = sum(result.instances for result in report.results) * max(decoding, encoding) / 1000
    return Figure(f"stand-ins of known rates, the {slower} slower: wall over it", wall / alone, "x wall", "<= 1.05")


class _Sleeper:
    """An encoder that takes its time."""

    name, digest, width, grid, tile_size, target_mpp = "sleeper", "s0", 4, None, TILE, 0.5
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, tiles: Tensor) -> Tensor:
        time.sleep(self.seconds * len(tiles))
        return torch.zeros(len(tiles), self.width, dtype=torch.float16)


@contextmanager
def _decoder(seconds: float) -> Iterator[None]:
    """A decoder that takes so long a stored tile and thread, in place of the real one; a stored tile is a tile here."""

    def sleep(tiff: TiffPyramid, level: int, tile: int, out: np.ndarray) -> None:
        time.sleep(seconds)

    real = TiffPyramid.decode
    TiffPyramid.decode = sleep
    try:
        yield
    finally:
        TiffPyramid.decode = real

"""Slide to features on the CPU: what reading costs beside the encoder, and the same done tile by tile."""

from __future__ import annotations

import copy
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.harness import Figure, cpu_seconds
from benchmarks.tiles import write_synthetic_slide
from monai_mil.embedding.slide import embed_slide
from monai_mil.encoders import Encoder, Preprocessing, get_encoder
from monai_mil.encoders.preprocess import prepare
from monai_mil.errors import EncoderError
from monai_mil.slides import Slide, TileGrid, open_slide, segment_tissue, stream_tiles

SIZE = 6144
CHUNK = 8
SAMPLE = 32


def run() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.tif"
        write_synthetic_slide(path, SIZE)
        with open_slide(path) as slide:
            tissue = segment_tissue(slide)
            native = TileGrid.cover(slide, tissue, min_tissue=0.5)
            halved = TileGrid.cover(slide, tissue, target_mpp=1.0, min_tissue=0.5)
            with _one_thread():
                figures = _data_path(slide, native, halved)
            figures += _pipeline(slide, native, get_encoder("texture"), target=None)
            try:
                weights = _random_weights(Path(folder))
            except EncoderError as error:
                print(f"  resnet18 is left out: {error}", file=sys.stderr)
                return figures
            exact = get_encoder("resnet18", weights=weights)
            fast = get_encoder("resnet18", weights=weights, dtype=torch.bfloat16)
            figures += _pipeline(slide, native, exact, target="<= 1.15")
            with _one_thread():
                return figures + _tile_by_tile(slide, native, exact, fast)


@contextmanager
def _one_thread() -> Iterator[None]:
    """CPU time is compared with one torch thread: threads that wait for each other burn it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _random_weights(folder: Path) -> Path:
    from safetensors.torch import save_file

    from monai_mil.encoders.backbones import import_timm

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        timm = import_timm("resnet18")
    torch.manual_seed(0)
    path = folder / "resnet18.safetensors"
    save_file(timm.create_model("resnet18", pretrained=False).state_dict(), path)
    return path


def _data_path(slide: Slide, native: TileGrid, halved: TileGrid) -> list[Figure]:
    """CPU time from the file to the tensor a network takes, decoding threads included."""
    settings = Preprocessing(224)

    def read(grid: TileGrid) -> None:
        for tiles in stream_tiles(slide, grid):
            for part in tiles.split(CHUNK):
                prepare(part, settings)

    seconds = cpu_seconds({"native": lambda: read(native), "halved": lambda: read(halved)}, rounds=5)
    return [
        Figure("file to model tensor, native level", 1e3 * seconds["native"] / len(native), "ms CPU/tile", "<= 0.35"),
        Figure("file to model tensor, 40x to 20x", 1e3 * seconds["halved"] / len(halved), "ms CPU/tile", "<= 0.95"),
    ]


def _pipeline(slide: Slide, grid: TileGrid, encoder: Encoder, target: str | None) -> list[Figure]:
    """Wall time of reading and encoding together, over that of encoding tiles that lie in memory."""
    batches = [tiles.clone() for tiles in stream_tiles(slide, grid)]
    alone, together = _alternate(
        lambda: [encoder(tiles) for tiles in batches], lambda: list(embed_slide(slide, grid, encoder))
    )
    return [
        Figure(f"{encoder.name}: encoder alone", 1e3 * alone / len(grid), "ms wall/tile"),
        Figure(f"{encoder.name}: slide to features over encoder alone", together / alone, "x wall", target),
    ]


def _alternate(first, second, rounds: int = 5) -> tuple[float, float]:
    """Least wall time of two alternatives run in turn."""
    best = [float("inf"), float("inf")]
    for _ in range(rounds):
        for index, call in enumerate((first, second)):
            start = time.perf_counter()
            call()
            best[index] = min(best[index], time.perf_counter() - start)
    return best[0], best[1]


def _tile_by_tile(slide: Slide, grid: TileGrid, exact: Encoder, fast: Encoder) -> list[Figure]:
    """The usual pipeline (OpenSlide, PIL, float tensors in NCHW) against ours on the same tiles."""
    import openslide

    part = TileGrid(**{**vars(grid), **{name: getattr(grid, name)[:SAMPLE] for name in _PER_TILE}})
    handle = openslide.OpenSlide(slide.path)
    network = copy.deepcopy(exact._model.network).to(memory_format=torch.contiguous_format)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (exact.card.preprocessing.mean, exact.card.preprocessing.std))

    def usual() -> torch.Tensor:
        images = []
        for x, y in part.coords.tolist():
            tile = (
                handle.read_region((x, y), 0, (256, 256)).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
            )
            images.append((torch.from_numpy(np.array(tile)).permute(2, 0, 1).contiguous() / 255 - mean) / std)
        with torch.inference_mode():
            return torch.cat([network(batch) for batch in torch.stack(images).split(CHUNK)])

    def ours(encoder: Encoder) -> torch.Tensor:
        return torch.cat(list(embed_slide(slide, part, encoder)))

    cosine = torch.cosine_similarity(ours(fast).float(), usual()).min().item()
    seconds = cpu_seconds({"usual": usual, "float32": lambda: ours(exact), "bfloat16": lambda: ours(fast)})
    return [
        Figure("resnet18 float32: times faster than tile by tile", seconds["usual"] / seconds["float32"], "x CPU"),
        Figure("resnet18 bfloat16: times faster than tile by tile", seconds["usual"] / seconds["bfloat16"], "x CPU"),
        Figure("resnet18 bfloat16: cosine to tile by tile in float32", cosine, "", ">= 0.999"),
    ]


_PER_TILE = ("coords", "index", "tissue_fraction")

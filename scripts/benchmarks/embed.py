"""Slide to features on the CPU: what reading costs beside the encoder, and the same done tile by tile."""

from __future__ import annotations

import copy
import shutil
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
from torch.utils.data import DataLoader, Dataset

from benchmarks.harness import Figure, cpu_seconds
from benchmarks.tiles import decode_all, stored_bytes, write_synthetic_slide
from monai_mil.bags import BagFile
from monai_mil.embedding import embed_cohort
from monai_mil.embedding.slide import embed_slide
from monai_mil.encoders import Encoder, Preprocessing, get_encoder
from monai_mil.encoders.preprocess import prepare
from monai_mil.errors import EncoderError
from monai_mil.slides import Slide, TileGrid, open_slide, segment_tissue, stream_tiles

SIZE = 8192
CHUNK = 8
_TILE = 256


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
            figures += _pipeline(slide, native, get_encoder("texture"), target="<= 1.15")
            try:
                weights = _random_weights(Path(folder))
            except EncoderError as error:
                print(f"  resnet18 is left out: {error}", file=sys.stderr)
                return figures
            exact = get_encoder("resnet18", weights=weights)
            fast = get_encoder("resnet18", weights=weights, dtype=torch.bfloat16)
            figures += _pipeline(slide, native, exact, target="<= 1.05")
            with _one_thread():
                return figures + _whole_slide(path, Path(folder), exact, fast)


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

    figures = []
    targets = {"native level": (native, "<= 0.30"), "40x to 20x": (halved, "<= 0.80")}
    for name, (grid, target) in targets.items():
        stored = stored_bytes(slide, grid)
        ways = {"decode": lambda: decode_all(stored), "read": lambda: read(grid)}  # noqa: B023
        per_tile = {way: 1e3 * seconds / len(grid) for way, seconds in cpu_seconds(ways, rounds=3).items()}
        figures += [
            Figure(f"file to model tensor, {name}", per_tile["read"], "ms CPU/tile", target),
            Figure("  of which bare libjpeg-turbo takes", per_tile["decode"], "ms CPU/tile"),
        ]
    return figures


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


def _alternate(first, second, rounds: int = 3) -> tuple[float, float]:
    """Least wall time of two alternatives run in turn."""
    best = [float("inf"), float("inf")]
    for _ in range(rounds):
        for index, call in enumerate((first, second)):
            start = time.perf_counter()
            call()
            best[index] = min(best[index], time.perf_counter() - start)
    return best[0], best[1]


class _Usual(Dataset):
    """Tiles as they are mostly read: by OpenSlide and PIL, as float tensors."""

    def __init__(self, path: Path, coords: np.ndarray, settings: Preprocessing) -> None:
        import openslide

        self._slide = openslide.OpenSlide(path)
        self._coords = coords.tolist()
        self._mean, self._std = (torch.tensor(values).view(3, 1, 1) for values in (settings.mean, settings.std))

    def __len__(self) -> int:
        return len(self._coords)

    def __getitem__(self, index: int) -> torch.Tensor:
        tile = self._slide.read_region(self._coords[index], 0, (_TILE, _TILE)).convert("RGB")
        pixels = np.array(tile.resize((224, 224), Image.Resampling.BILINEAR))
        return (torch.from_numpy(pixels).permute(2, 0, 1).contiguous() / 255 - self._mean) / self._std


def _whole_slide(path: Path, folder: Path, exact: Encoder, fast: Encoder) -> list[Figure]:
    """CPU time of ``embed``, tissue and bag included, over that of the usual pipeline on the same tiles."""
    network = copy.deepcopy(exact._model.network).to(memory_format=torch.contiguous_format)

    def ours(encoder: Encoder, name: str) -> BagFile:
        report = embed_cohort([path], folder / name, encoder, tile_size=_TILE, overwrite=True, progress=False)
        if report.failed:
            raise RuntimeError(report.failed[0].error)
        shutil.copy(folder / name / f"{path.stem}.h5", folder / f"{name}.h5")
        shutil.rmtree(folder / name)
        return BagFile(folder / f"{name}.h5")

    with ours(fast, "bfloat16") as bag:
        coords, features = bag.coords, torch.from_numpy(bag.features()).float()
    loader = DataLoader(_Usual(path, coords, exact.card.preprocessing), batch_size=64)

    @torch.inference_mode()
    def usual() -> torch.Tensor:
        return torch.cat([network(batch) for batch in loader])

    cosine = torch.cosine_similarity(features, usual()).min().item()
    seconds = cpu_seconds(
        {
            "usual": usual,
            "float32": lambda: ours(exact, "float32").close(),
            "bfloat16": lambda: ours(fast, "bfloat16").close(),
        },
        rounds=1,
    )
    return [
        Figure(f"embed of {len(coords)} tiles by resnet18, usual pipeline", seconds["usual"], "CPU s"),
        Figure("  ours in float32, of that", seconds["float32"] / seconds["usual"], "x CPU", "<= 0.65"),
        Figure("  ours in bfloat16, of that", seconds["bfloat16"] / seconds["usual"], "x CPU", "<= 0.5"),
        Figure("  bfloat16: cosine to the usual pipeline's", cosine, "", ">= 0.999"),
    ]

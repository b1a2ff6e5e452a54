"""Tiles of a JPEG pyramid: decoding rate as a fraction of bare libjpeg-turbo on the same tiles."""

from __future__ import annotations

import tempfile
from pathlib import Path

import cv2
import numpy as np

from benchmarks.harness import Figure, cpu_seconds
from monai_mil.slides import TileGrid, open_slide, segment_tissue, stream_tiles, write_pyramid
from monai_mil.slides.tiff import pixel_buffer

SIZE = 20_000
TILE = 256
SAMPLE = 512


def run() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.tif"
        write_synthetic_slide(path)
        with open_slide(path) as slide:
            return _measure(slide, path)


def write_synthetic_slide(path: Path, size: int = SIZE, seed: int = 0) -> None:
    """A ``size`` x ``size`` slide, JPEG Q80, 256 px tiles, levels 1/4/16, about a third of it tissue-like texture."""
    rng = np.random.default_rng(seed)
    patch = _texture(rng, 2048)
    outline = cv2.GaussianBlur(rng.standard_normal((size // 64 + 1,) * 2).astype(np.float32), (0, 0), 24)
    tissue = (outline > np.quantile(outline, 0.66)).astype(np.uint8)

    def bands():
        for y in range(0, size, 2048):
            height = min(2048, size - y)
            rows = np.tile(patch, (1, size // 2048 + 1, 1))[:height, :size]
            inside = cv2.resize(
                tissue[y // 64 : (y + height) // 64 + 1], (size, height), interpolation=cv2.INTER_NEAREST
            )
            yield np.where(inside[..., None] > 0, rows, np.uint8(244))

    write_pyramid(path, bands(), size=(size, size), mpp=0.5, downsamples=(1, 4, 16))


def _texture(rng: np.random.Generator, side: int) -> np.ndarray:
    """Pink stroma, purple nuclei and sensor noise, so that a JPEG tile takes about 14 KB."""
    coarse, fine = (
        cv2.GaussianBlur(rng.standard_normal((side, side)).astype(np.float32), (0, 0), sigma) * sigma * 3.5
        for sigma in (12.0, 2.5)
    )
    nuclei = np.clip(fine - 0.6, 0, 1)[..., None]
    stroma = np.array([225, 150, 190]) + coarse[..., None] * np.array([8, 16, 10])
    image = stroma * (1 - nuclei) + np.array([95, 60, 140]) * nuclei
    grain = rng.normal(0, 3.2, (side, side, 1)) + rng.normal(0, 1.2, (side, side, 3))
    return np.clip(image + fine[..., None] * 9 + grain, 0, 255).astype(np.uint8)


def _measure(slide, path: Path) -> list[Figure]:
    tissue = segment_tissue(slide)
    aligned = TileGrid.cover(slide, tissue, min_tissue=0.5)
    shifted = _shifted(aligned, 100)
    halved = TileGrid.cover(slide, tissue, target_mpp=1.0, min_tissue=0.5)
    encoded = _encoded(slide, aligned.coords)
    touched = stored_bytes(slide, shifted)
    quads = stored_bytes(slide, halved)
    small = {"aligned": aligned.coords[:SAMPLE], "shifted": shifted.coords[:SAMPLE], "halved": halved.coords[:SAMPLE]}

    seconds = cpu_seconds(
        {
            "limit": lambda: decode_all(encoded),
            "aligned": lambda: _drain(stream_tiles(slide, aligned)),
            "limit of touched": lambda: decode_all(touched),
            "shifted": lambda: _drain(stream_tiles(slide, shifted)),
            "limit of quads": lambda: decode_all(quads),
            "halved": lambda: _drain(stream_tiles(slide, halved)),
            "scaled": lambda: _drain(stream_tiles(slide, halved, decoder="scaled")),
        }
    )
    others = cpu_seconds(_alternatives(path, small))
    per_tile = {
        "limit": seconds["limit"] / len(encoded),
        "aligned": seconds["aligned"] / len(aligned),
        "shifted": seconds["shifted"] / len(shifted),
        "limit of quads": seconds["limit of quads"] / len(halved),
        "halved": seconds["halved"] / len(halved),
    }
    figures = [
        Figure("tiles in tissue", len(aligned), "tiles"),
        Figure("mean size of a stored tile", np.mean([len(data) for data in encoded]) / 1000, "KB"),
        Figure("bare libjpeg-turbo, 256 px tile", 1e3 * per_tile["limit"], "ms CPU/tile"),
        Figure("bare libjpeg-turbo, its four tiles at 40x", 1e3 * per_tile["limit of quads"], "ms CPU/tile"),
        Figure("aligned: fraction of that rate", per_tile["limit"] / per_tile["aligned"], "", ">= 0.92"),
        Figure("not aligned: fraction of that rate", per_tile["limit"] / per_tile["shifted"], "", ">= 0.82"),
        Figure("  of that of stored tiles touched", seconds["limit of touched"] / seconds["shifted"], "", ">= 0.90"),
        Figure("  stored tiles touched for a tile", len(touched) / len(shifted), ""),
        Figure("40x to 20x: fraction of that rate", per_tile["limit of quads"] / per_tile["halved"], "", ">= 0.85"),
        Figure("  by the decoder 'scaled'", seconds["limit of quads"] / seconds["scaled"], "", ">= 1.1"),
    ]
    limits = {"aligned": "limit", "shifted": "limit", "halved": "limit of quads"}
    for name, value in others.items():
        limit = limits[name.rsplit(", ", 1)[1]]
        figures.append(Figure(name, per_tile[limit] / (value / SAMPLE), ""))
    return figures


def _touched(grid: TileGrid) -> np.ndarray:
    """Corners of the stored tiles that the tiles of a grid need, each once."""
    side = round(grid.tile_size_level0)
    steps = (*range(0, side, TILE), side - 1)
    corners = np.concatenate([grid.coords + np.array((x, y)) for x in steps for y in steps])
    return np.unique(corners // TILE, axis=0) * TILE


def _shifted(grid: TileGrid, pixels: int) -> TileGrid:
    return TileGrid(**{**vars(grid), "coords": np.minimum(grid.coords + pixels, SIZE - TILE)})


def stored_bytes(slide, grid: TileGrid) -> list[bytes]:
    """The data of the stored tiles that the tiles of a grid need, each once."""
    return _encoded(slide, _touched(grid))


def _encoded(slide, corners: np.ndarray) -> list[bytes]:
    """The data of the stored tiles at these corners, those beyond the slide left out."""
    columns = slide.tiff.levels[0].columns
    inside = corners[(corners < slide.size).all(axis=1)] // TILE
    return [slide.tiff.encoded(0, int(row * columns + column)) for column, row in inside]


def decode_all(encoded: list[bytes]) -> None:
    """By bare libjpeg-turbo, into memory that stays in the processor's cache."""
    import simplejpeg

    pixels = pixel_buffer((TILE, TILE, 3))
    for data in encoded:
        simplejpeg.decode_jpeg(data, "RGB", buffer=pixels)


def _drain(batches) -> None:
    for _ in batches:
        pass


def _alternatives(path: Path, coords: dict[str, np.ndarray]) -> dict:
    """Other ways to the same pixels, on the first tiles of each grid; MONAI's takes (row, column)."""
    import openslide
    from cucim import CuImage
    from monai.data import WSIReader

    by_openslide, by_cucim = openslide.OpenSlide(path), CuImage(str(path))
    by_monai = WSIReader("cucim", level=0)
    opened = by_monai.read(str(path))

    def openslide_tile(x: int, y: int, side: int) -> np.ndarray:
        return np.asarray(by_openslide.read_region((x, y), 0, (side, side)).convert("RGB"))

    def cucim_tile(x: int, y: int, side: int) -> np.ndarray:
        return np.asarray(by_cucim.read_region((x, y), (side, side)))

    def monai_tile(x: int, y: int, side: int) -> np.ndarray:
        return by_monai.get_data(opened, location=(y, x), size=(side, side), level=0)[0].transpose(1, 2, 0)

    def read_all(read, name: str) -> None:
        side = 2 * TILE if name == "halved" else TILE
        for x, y in coords[name].tolist():
            tile = read(x, y, side)
            if name == "halved":
                cv2.resize(np.ascontiguousarray(tile), (TILE, TILE), interpolation=cv2.INTER_AREA)

    ways = {"openslide-python": openslide_tile, "cuCIM one by one": cucim_tile, "MONAI WSIReader (cuCIM)": monai_tile}
    return {f"{way}, {name}": lambda r=read, n=name: read_all(r, n) for way, read in ways.items() for name in coords}

"""The bag file against the layout TRIDENT and CLAM write: float32, chunked by one row or by 32."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from benchmarks.harness import Figure, cpu_seconds
from monai_mil.bags import BagFile, BagInfo

_TILES, _WIDTH, _RANDOM_ROWS = 20_000, 1024, 2048


def run() -> list[Figure]:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((_TILES, _WIDTH), np.float32).astype(np.float16)
    coords = rng.integers(0, 100_000, (_TILES, 2))
    rows = rng.permutation(_TILES)[:_RANDOM_ROWS]
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder, f"{name}.h5") for name in ("bag", "by row", "by 32 rows")}
        info = BagInfo("slide", encoder="benchmark", tile_size=256, target_mpp=0.5, mpp=0.25)
        wide = features.astype(np.float32)
        write: dict[str, Callable[[], object]] = {
            "bag": partial(BagFile.write, paths["bag"], features, coords, info),
            "by row": partial(_write_chunked, paths["by row"], wide, coords, 1),
            "by 32 rows": partial(_write_chunked, paths["by 32 rows"], wide, coords, 32),
        }
        written = cpu_seconds(write, rounds=7)
        read = cpu_seconds({"bag": lambda: _read_bag(paths["bag"])} | _each(paths, _read_all))
        some = cpu_seconds(
            {"bag": lambda: _read_bag(paths["bag"], rows)} | _each(paths, partial(_read_rows, rows=rows))
        )
        size = {name: path.stat().st_size for name, path in paths.items()}
    return [
        Figure("write, against float32 chunked by row", written["by row"] / written["bag"], "x", ">= 10"),
        Figure("read, against float32 chunked by row", read["by row"] / read["bag"], "x", ">= 10"),
        Figure("size, against float32 chunked by row", size["bag"] / size["by row"], "x", "<= 0.55"),
        Figure(f"{_RANDOM_ROWS} random rows, against float32 chunked by row", some["by row"] / some["bag"], "x"),
        Figure("write, against float32 chunked by 32 rows", written["by 32 rows"] / written["bag"], "x"),
        Figure("read, against float32 chunked by 32 rows", read["by 32 rows"] / read["bag"], "x"),
        Figure("write", 1e3 * written["bag"], "ms"),
        Figure("read", 1e3 * read["bag"], "ms"),
        Figure(f"{_RANDOM_ROWS} random rows", 1e3 * some["bag"], "ms"),
    ]


def _each(paths: dict[str, Path], read: Callable[[Path], object]) -> dict[str, Callable[[], object]]:
    return {name: partial(read, path) for name, path in paths.items() if name != "bag"}


def _write_chunked(path: Path, features: np.ndarray, coords: np.ndarray, rows: int) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=features, chunks=(rows, _WIDTH), maxshape=(None, _WIDTH))
        file.create_dataset("coords", data=coords, chunks=(rows, 2), maxshape=(None, 2))


def _read_bag(path: Path, rows: np.ndarray | None = None) -> np.ndarray:
    with BagFile(path) as bag:
        return bag.features(rows)


def _read_all(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        file["coords"][:]
        return file["features"][:]


def _read_rows(path: Path, rows: np.ndarray) -> np.ndarray:
    with h5py.File(path) as file:
        file["coords"][:]
        order = np.argsort(rows)
        found = np.empty((len(rows), _WIDTH), np.float32)
        found[order] = file["features"][rows[order]]
        return found

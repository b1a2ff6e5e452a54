"""Heatmap exports: raster and colours, percentiles, the whole PNG with its memory, GeoJSON, stitched tokens.

The alternatives are the usual ways to do the same: colouring the canvas tile by tile, counting the lower
scores of every tile, and one object a tile through ``json``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.harness import Figure, cpu_seconds
from monai_mil.heatmaps import Colouring, Heatmap, SlideFrame, assemble, colour_table, export_geojson, stitch
from monai_mil.heatmaps.regions import find_regions

_SIDE, _CANVAS, _TILE = 158, 5000, 512
_JSON_TILES = 2000


def run() -> list[Figure]:
    heatmap, tokens = _heatmap(), _token_heatmap()
    canvas = stitch(tokens)
    window = (30 * _TILE, 30 * _TILE, 38 * _TILE, 38 * _TILE)
    tiles = len(heatmap)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tiles.geojson")
        times = cpu_seconds(
            {
                "raster": lambda: _coloured(heatmap),
                "raster loop": lambda: _coloured_one_by_one(heatmap),
                "percentiles": heatmap.percentiles,
                "percentiles one by one": lambda: _percentiles_one_by_one(heatmap, 500),
                "geojson": lambda: export_geojson(heatmap, path),
                "geojson objects": lambda: _geojson_objects(heatmap, path),
                "stitch": lambda: stitch(tokens),
                "upsample": lambda: canvas.upsample(window, (2048, 2048)),
                "regions": lambda: find_regions(tokens, 0.6),
            }
        )
        figure_seconds, figure_mb = _png_in_a_process(Path(folder))
    per_tile = {"ours": times["geojson"] / tiles * 1e6, "objects": times["geojson objects"] / _JSON_TILES * 1e6}
    one_by_one = times["percentiles one by one"] * tiles / 500
    return [
        Figure(f"raster and colours, {tiles} tiles on {_CANVAS} x {_CANVAS}", times["raster"] * 1e3, "ms", "<= 50"),
        Figure("  tile by tile", times["raster loop"] * 1e3, "ms"),
        Figure("  ratio", times["raster loop"] / times["raster"], "x", ">= 5"),
        Figure(f"percentiles of {tiles} scores", times["percentiles"] * 1e3, "ms", "<= 5"),
        Figure("  one by one (from 500)", one_by_one * 1e3, "ms"),
        Figure("GeoJSON", per_tile["ours"], "us/tile", "<= 3"),
        Figure("  json objects", per_tile["objects"], "us/tile"),
        Figure(f"whole PNG of a {_SIDE * _TILE} px slide, imports included", figure_seconds, "s CPU"),
        Figure("  peak memory of that process", figure_mb, "MB", "<= 400"),
        Figure(f"stitching {len(tokens)} tiles of 14 x 14 tokens", times["stitch"] * 1e3, "ms", "<= 200"),
        Figure("  2048 x 2048 pixels of the smooth map", times["upsample"] * 1e3, "ms", "<= 200"),
        Figure("  regions of a noisy map", times["regions"] * 1e3, "ms", "<= 4000"),
    ]


def _token_heatmap() -> Heatmap:
    """100 x 100 tiles of 14 x 14 tokens: soft spots under noise."""
    import cv2

    side, rng = 100 * 14, np.random.default_rng(0)
    soft = cv2.GaussianBlur(rng.random((side, side), dtype=np.float32), (0, 0), 12)
    soft = (soft - soft.min()) / np.ptp(soft)
    noisy = np.clip(soft + rng.normal(0, 0.08, soft.shape), 0, 1)
    blocks = noisy.reshape(100, 14, 100, 14).swapaxes(1, 2).reshape(-1, 14, 14)
    grid = np.stack(np.meshgrid(np.arange(100), np.arange(100)), axis=-1).reshape(-1, 2)
    size = 100 * _TILE
    return assemble(blocks, grid * _TILE, SlideFrame("benchmark", None, (size, size), 0.25, _TILE))


def _heatmap() -> Heatmap:
    grid = np.stack(np.meshgrid(np.arange(_SIDE), np.arange(_SIDE)), axis=-1).reshape(-1, 2)
    scores = np.random.default_rng(0).random(len(grid), dtype=np.float32)
    size = _SIDE * _TILE
    return assemble(scores, grid * _TILE, SlideFrame("benchmark", None, (size, size), 0.25, _TILE))


def _coloured(heatmap: Heatmap) -> np.ndarray:
    colouring = Colouring(colour_table("viridis"), (0, 100))
    return heatmap.raster(canvas_max=_CANVAS, percentile=True, colours=colouring)


def _coloured_one_by_one(heatmap: Heatmap) -> np.ndarray:
    colours = Colouring(colour_table("viridis"), (0, 100))(heatmap.percentiles())
    canvas = np.full((_CANVAS, _CANVAS, 3), 255, np.uint8)
    scale = _CANVAS / heatmap.frame.level0_size[0]
    side = int(np.ceil(_TILE * scale))
    for (x, y), colour in zip(heatmap.coords, colours, strict=True):
        left, top = int(x * scale), int(y * scale)
        canvas[top : top + side, left : left + side] = colour
    return canvas


def _percentiles_one_by_one(heatmap: Heatmap, count: int) -> list[float]:
    return [float((heatmap.scores <= score).mean() * 100) for score in heatmap.scores[:count]]


def _geojson_objects(heatmap: Heatmap, path: Path) -> None:
    features = []
    for (x, y), score in zip(heatmap.coords[:_JSON_TILES].tolist(), heatmap.scores.tolist(), strict=False):
        ring = [[x, y], [x + _TILE, y], [x + _TILE, y + _TILE], [x, y + _TILE], [x, y]]
        properties = {"objectType": "detection", "measurements": {"attention": score}}
        geometry = {"type": "Polygon", "coordinates": [ring]}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}, indent=2))


def _png_in_a_process(folder: Path) -> tuple[float, float]:
    """CPU seconds and peak memory in MB of a fresh process that draws the figure over a pyramidal slide."""
    code = (
        "import sys, resource; sys.path.insert(0, sys.argv[2]); from pathlib import Path\n"
        "from benchmarks.heatmap import figure; figure(Path(sys.argv[1]))\n"
        "use = resource.getrusage(resource.RUSAGE_SELF)\n"
        # ru_maxrss would be this process's peak where that is higher: a child inherits it.
        "status = dict(line.split(':') for line in Path('/proc/self/status').read_text().splitlines())\n"
        "print(use.ru_utime + use.ru_stime, int(status['VmHWM'].split()[0]) / 1024)"
    )
    _slide(folder / "slide.tif")
    scripts = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(scripts)], check=True, capture_output=True, text=True
    )
    seconds, megabytes = done.stdout.split()[-2:]
    return float(seconds), float(megabytes)


def figure(folder: Path) -> None:
    from monai_mil.heatmaps import export_png
    from monai_mil.slides import open_slide

    heatmap = _heatmap()
    with open_slide(folder / "slide.tif") as slide:
        export_png(heatmap, folder / "figure.png", slide)


def _slide(path: Path) -> None:
    """A slide a quarter of the heatmap's frame wide, so that making it takes seconds; levels 1, 4 and 16."""
    from monai_mil.slides import write_pyramid

    side = _SIDE * _TILE // 4
    band = np.random.default_rng(1).integers(180, 255, (1, side // 64 + 1, 3), dtype=np.uint8)
    band = np.repeat(np.repeat(band, 64, axis=1)[:, :side], 256, axis=0)
    rows = (band[: min(256, side - y)] for y in range(0, side, 256))
    write_pyramid(path, rows, size=(side, side), mpp=1.0, downsamples=(1, 4, 16))

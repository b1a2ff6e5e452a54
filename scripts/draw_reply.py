"""Draw what a client of a MONAI Label server sees: its reply over the slide or scan, as in docs/pages/annotate.md.

    python scripts/draw_reply.py slide slides/S-1.tif --model pathology_insight --out picture.jpg
    python scripts/draw_reply.py scan scans/S-1.nii.gz --model ct_insight --out picture.jpg

Of a slide the left half is QuPath's: its frame, the scanned part, with the polygons of the reply in ASAP's XML; the
right half is the Digital Slide Archive's: the whole slide with the heat layer of its reply. Of a scan three slices
around the one with most heat, with the label map. The server must be running, and know the image.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageDraw

_SIDE = 700
_BEYOND = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("slide", "scan"))
    parser.add_argument("image", type=Path, help="the file, or a scan's folder")
    parser.add_argument("--name", help="what the server calls it; default: its file's name up to the first dot")
    parser.add_argument("--model", required=True)
    parser.add_argument("--server", default="http://127.0.0.1:8000")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", choices=("both", "qupath", "archive"), default="both", help="of a slide")
    arguments = parser.parse_args()
    name = arguments.name or arguments.image.name.partition(".")[0]
    ask = _Server(arguments.server, arguments.model, name)
    if arguments.kind == "scan":
        picture = draw_scan(ask, arguments.image)
    else:
        drawn = {"qupath": draw_for_qupath, "archive": draw_for_archive}
        chosen = drawn if arguments.layers == "both" else [arguments.layers]
        picture = beside([drawn[layer](ask, arguments.image) for layer in chosen])
    picture.save(arguments.out, quality=85)


class _Server:
    """Asks a server about one image."""

    def __init__(self, address: str, model: str, image: str) -> None:
        self.address, self.model, self.image = address, model, image

    def annotations(self, output: str, location: tuple[int, int], size: tuple[int, int]) -> bytes:
        body = {"level": 0, "location": location, "size": size, "tile_size": [1024, 1024], "min_poly_area": 30}
        path = f"/infer/wsi/{self.model}?output={output}&image={quote(self.image)}"
        return self._post(path, json.dumps(body).encode(), "application/json")

    def label_map(self) -> Any:
        """The map of a scan, an ``itk`` image."""
        import SimpleITK as sitk  # noqa: N813

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "mask.nii.gz"
            path.write_bytes(self._scan("image"))
            return sitk.ReadImage(str(path))

    def _scan(self, output: str) -> bytes:
        path = f"/infer/{self.model}?output={output}&image={quote(self.image)}"
        return self._post(path, b"params=%7B%7D", "application/x-www-form-urlencoded")

    def _post(self, path: str, body: bytes, kind: str) -> bytes:
        request = urllib.request.Request(self.address + path, body, {"Content-Type": kind})
        with urllib.request.urlopen(request) as reply:
            return reply.read()


def draw_for_qupath(ask: _Server, path: Path) -> Image.Image:
    """The scanned part, which is all that QuPath knows of a slide, with the polygons where it draws them."""
    slide, (x0, y0, width, height) = _opened(path)
    picture, factor = _region(slide, (x0, y0), (width, height))
    draw = ImageDraw.Draw(picture)
    for each in ElementTree.fromstring(ask.annotations("asap", (0, 0), (width, height))).iter("Annotation"):
        corners = [(float(c.get("X")) / factor, float(c.get("Y")) / factor) for c in each.iter("Coordinate")]
        draw.line([*corners, corners[0]], fill=each.get("Color"), width=3)
    return picture


def draw_for_archive(ask: _Server, path: Path) -> Image.Image:
    """The whole slide with the heat layer, as large_image lays it: one value a point, in the colours of the reply."""
    slide, _ = _opened(path)
    picture, factor = _region(slide, (0, 0), slide.dimensions)
    annotation = json.loads(ask.annotations("dsa", (-1, -1), (-1, -1)))
    for grid in (element for element in annotation["elements"] if element["type"] == "griddata"):
        layer, step = _layer(grid), (grid["dx"], grid["dy"])
        size = [round(layer.size[axis] * step[axis] / factor) for axis in (0, 1)]
        corner = [round((grid["origin"][axis] - step[axis] / 2) / factor) for axis in (0, 1)]
        layer = layer.resize((size[0], size[1]), Image.Resampling.BILINEAR)
        picture.paste(layer, (corner[0], corner[1]), layer)
    draw = ImageDraw.Draw(picture)
    for each in (element for element in annotation["elements"] if element["type"] == "polyline"):
        corners = [(x / factor, y / factor) for x, y, _ in each["points"]]
        colour = tuple(int(part) for part in each["lineColor"][4:-1].split(","))
        draw.line([*corners, corners[0]], fill=colour, width=2)
    return picture


def draw_scan(ask: _Server, path: Path) -> Image.Image:
    """The slice with most heat and its neighbours, medium heat in red and high heat in yellow."""
    import SimpleITK as sitk  # noqa: N813

    if path.is_dir():
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(path)))
        scan = reader.Execute()
    else:
        scan = sitk.ReadImage(str(path))
    mask = ask.label_map()
    for said, true in ((mask.GetSize(), scan.GetSize()), (mask.GetOrigin(), scan.GetOrigin())):
        if not np.allclose(said, true, atol=1e-3):
            raise SystemExit(f"the label map lies elsewhere than the scan: {said}, {true}")
    volume, labels = sitk.GetArrayViewFromImage(scan), sitk.GetArrayViewFromImage(mask)
    middle = int((labels > 0).sum(axis=(1, 2)).argmax()) if labels.any() else len(labels) // 2
    pictures = []
    for number in range(max(middle - _BEYOND, 0), min(middle + _BEYOND + 1, len(volume))):
        grey = (np.clip((volume[number] + 1000.0) / 1400, 0, 1) * 255).astype(np.uint8)
        picture = np.stack([grey] * 3, axis=-1).astype(float)
        for value, colour in ((1, (200, 30, 60)), (2, (250, 220, 60))):
            there = labels[number] == value
            picture[there] = 0.55 * picture[there] + 0.45 * np.array(colour)
        shown = Image.fromarray(picture.astype(np.uint8))
        pictures.append(shown.resize((_SIDE // 2, round(_SIDE / 2 * shown.height / shown.width))))
    return beside(pictures)


def beside(pictures: list[Image.Image]) -> Image.Image:
    """Pictures side by side on white, of one height."""
    height = max(picture.height for picture in pictures)
    row = Image.new("RGB", (sum(picture.width + 10 for picture in pictures) - 10, height), "white")
    at = 0
    for picture in pictures:
        row.paste(picture, (at, 0))
        at += picture.width + 10
    return row


def _opened(path: Path) -> tuple[Any, tuple[int, int, int, int]]:
    """A slide, and its scanned part: x, y, width and height in level-0 pixels."""
    import openslide

    slide = openslide.OpenSlide(str(path))
    names = [f"openslide.bounds-{name}" for name in ("x", "y", "width", "height")]
    if all(name in slide.properties for name in names):
        return slide, tuple(int(slide.properties[name]) for name in names)
    return slide, (0, 0, *slide.dimensions)


def _region(slide: Any, corner: tuple[int, int], size: tuple[int, int]) -> tuple[Image.Image, float]:
    """A part of a slide, and how many level-0 pixels one of the picture is."""
    factor = max(size) / _SIDE
    level = slide.get_best_level_for_downsample(factor)
    sides = tuple(round(side / slide.level_downsamples[level]) for side in size)
    pixels = slide.read_region(corner, level, sides)
    white = Image.new("RGB", pixels.size, "white")
    white.paste(pixels, mask=pixels.getchannel("A"))
    return white.resize(tuple(round(side / factor) for side in size)), factor


def _layer(grid: dict[str, Any]) -> Image.Image:
    """A heatmap element as a picture of one pixel a value."""
    values = np.array(grid["values"]).reshape(-1, grid["gridWidth"])
    stops = [[float(part) for part in colour[5:-1].split(",")] for colour in grid["colorRange"]]
    channels = [np.interp(values, grid["rangeValues"], [stop[channel] for stop in stops]) for channel in range(4)]
    channels[3] *= 255
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8), "RGBA")


if __name__ == "__main__":
    main()

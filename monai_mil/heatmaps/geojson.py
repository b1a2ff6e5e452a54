"""Tiles and regions as GeoJSON, in QuPath's frame or in level-0 pixels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from monai_mil.files import replacing
from monai_mil.heatmaps.colours import ColourMap, colour_index
from monai_mil.heatmaps.decision import muted_text
from monai_mil.heatmaps.heatmap import Heatmap
from monai_mil.heatmaps.layer import Style, drawing_style
from monai_mil.heatmaps.raster import Overlap
from monai_mil.heatmaps.regions import Region, find_regions
from monai_mil.slides import AnnotationFrame, frame_origin

_REGION_COLOUR = [214, 39, 40]


def export_geojson(
    heatmap: Heatmap,
    path: str | Path,
    *,
    tiles: bool = True,
    minimum: float | None = None,
    top: int | None = None,
    regions: float | None = None,
    min_area_um2: float = 0.0,
    percentile: bool = False,
    classification: str | None = None,
    colour_map: ColourMap = "viridis",
    overlap: Overlap = "max",
    frame: AnnotationFrame = "qupath",
    muted: bool | None = None,
) -> Path:
    """Write a FeatureCollection that QuPath opens by drag and drop.

    Every tile is a *detection* (QuPath handles hundreds of thousands) with its score and its percentile within the
    slide as measurements; attention also as multiples of an even share. Colours are those of :func:`export_png`,
    pale on a slide below its operating point; ``colours`` of the file says what they mean. Every region is an
    *annotation*: the union of touching tiles (or cells of tiles' blocks) of at least a threshold, with its holes,
    its mean and maximum score and its area. Shapes end at the slide's border.

    Args:
        heatmap: the scores; of a tile with a block of scores the maximum is written.
        path: the file, ``.geojson``.
        tiles: write the tiles.
        minimum: leave out tiles below this score.
        top: write this many tiles of the highest scores at most, highest first.
        regions: write regions of at least this score; default those above the heatmap's threshold, if it has one. A
            slide without foreground (its threshold is infinite) has no regions, whatever is asked for.
        min_area_um2: leave out regions of less than this area, in square micrometres.
        percentile: ``minimum`` and ``regions`` are percentiles within the slide (0 to 100) in place of scores, and
            tiles are coloured by it.
        classification: QuPath class of the tiles, default the heatmap's name; regions get it with " region" appended.
            Choose names that differ from those of human annotations.
        colour_map: colours of the tiles.
        overlap: how scores of overlapping tiles are combined in regions.
        frame: what coordinates count from: ``qupath``, the corner of the scanned part, to which QuPath crops slides
            that name one (SCN, MRXS), or ``level0``, that of the whole slide, as large_image and ASAP do. The file says
            which in ``frame``, and its corner in level-0 pixels in ``frame_origin``. A heatmap that does not know the
            bounds is written in ``level0``.
        muted: pale colours; default where the slide is below its operating point.

    Examples:
        >>> import json
        >>> from monai_mil.heatmaps import SlideFrame, assemble, export_geojson
        >>> frame = SlideFrame("S-1", None, level0_size=(512, 256), mpp=0.5, tile_size_level0=256.0)
        >>> heatmap = assemble([0.2, 0.8], [[0, 0], [256, 0]], frame)
        >>> path = export_geojson(heatmap, folder / "S-1.geojson", regions=0.5)
        >>> [feature["properties"]["objectType"] for feature in json.loads(path.read_text())["features"]]
        ['detection', 'detection', 'annotation']
    """
    name = classification or heatmap.name
    frame = "level0" if heatmap.frame.bounds is None else frame
    origin = frame_origin(frame, heatmap.frame.bounds)
    style = drawing_style(heatmap, percentile, muted=muted)
    features: list[str] = []
    if tiles:
        chosen = _chosen(heatmap, minimum, top, percentile)
        features.extend(_tile_features(heatmap, chosen, name, style, style.table(colour_map), origin))
    found: list[Region] = []
    if regions is not None and heatmap.threshold != np.inf:
        found = find_regions(heatmap, regions, percentile=percentile, overlap=overlap)
    elif heatmap.threshold is not None:
        lowest = float(np.nextafter(np.float32(heatmap.threshold), np.float32(np.inf)))
        found = find_regions(heatmap, lowest, overlap=overlap)
    large = [region for region in found if region.area * heatmap.frame.mpp**2 >= min_area_um2]
    features.extend(_region_features(heatmap, large, f"{name} region", origin))
    path = Path(path)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        meaning = heatmap.attributes.get("meaning", style.scale.meaning)
        colours = ", ".join(filter(None, [f"{heatmap.name}, {meaning}", muted_text(heatmap) if style.muted else ""]))
        facts = {"type": "FeatureCollection", "frame": frame, "frame_origin": origin, "colours": colours}
        facts |= {"note": heatmap.attributes["note"]} if "note" in heatmap.attributes else {}
        stated = json.dumps(facts, ensure_ascii=False)
        file.write(f'{stated[:-1]}, "features": [\n')
        file.write(",\n".join(features))
        file.write("\n]}\n")
    return path


def _chosen(heatmap: Heatmap, minimum: float | None, top: int | None, percentile: bool) -> np.ndarray:
    """Indices of the tiles to write, in tile order or, with ``top``, highest score first."""
    scores = heatmap.tile_scores
    index = np.arange(len(scores))
    if minimum is not None:
        index = index[_tile_percentiles(heatmap) >= minimum if percentile else scores >= minimum]
    return index if top is None else index[np.argsort(-scores[index], kind="stable")[:top]]


def _tile_percentiles(heatmap: Heatmap) -> np.ndarray:
    percentiles = heatmap.percentiles()
    return percentiles if percentiles.ndim == 1 else percentiles.max(axis=(1, 2))


def _tile_features(
    heatmap: Heatmap, index: np.ndarray, name: str, style: Style, table: np.ndarray, origin: tuple[int, int]
) -> Iterator[str]:
    percentiles = _tile_percentiles(heatmap)[index]
    shown = style.scale.values(heatmap.scores).reshape(len(heatmap), -1).max(axis=1)[index]
    near = np.maximum(heatmap.coords[index], 0) - np.array(origin)
    far = np.minimum(heatmap.coords[index] + heatmap.frame.tile_size_level0, heatmap.frame.level0_size) - origin
    score, percent, share = (json.dumps(heatmap.name + more) for more in ("", " percentile", " x even share"))
    relative = style.scale.uniform if style.scale.measure == "attention" else None
    kind = json.dumps({"name": name, "color": table[-1].tolist()}, separators=(",", ":"))
    head = '{"type":"Feature","geometry":{"type":"Polygon","coordinates":[[['
    middles = [
        f']]]}},"properties":{{"objectType":"detection","classification":{kind},"color":[{r},{g},{b}],'
        f'"measurements":{{{score}:'
        for r, g, b in table.tolist()
    ]
    for x0, y0, x1, y1, value, rank, colour in zip(
        *(_texts(column) for column in (*near.T, *far.T)),
        heatmap.tile_scores[index].tolist(),
        percentiles.tolist(),
        colour_index(shown, style.limits).tolist(),
        strict=True,
    ):
        times = "" if relative is None else f",{share}:{value / relative:.4g}"
        yield (
            f"{head}{x0},{y0}],[{x1},{y0}],[{x1},{y1}],[{x0},{y1}],[{x0},{y0}{middles[colour]}{value:.6g},"
            f"{percent}:{rank:.4g}{times}}}}}}}"
        )


def _region_features(heatmap: Heatmap, regions: list[Region], name: str, origin: tuple[int, int]) -> Iterator[str]:
    for region in regions:
        properties = {
            "objectType": "annotation",
            "classification": {"name": name, "color": _REGION_COLOUR},
            "isLocked": False,
            "measurements": {
                f"{heatmap.name} mean": float(f"{region.mean:.6g}"),
                f"{heatmap.name} max": float(f"{region.maximum:.6g}"),
                "area mm^2": float(f"{region.area * heatmap.frame.mpp**2 * 1e-6:.6g}"),
            },
        }
        rings = ",".join(
            "[" + ",".join(f"[{x},{y}]" for x, y in zip(*map(_texts, (ring - origin).T), strict=True)) + "]"
            for ring in region.rings
        )
        yield (
            f'{{"type":"Feature","geometry":{{"type":"Polygon","coordinates":[{rings}]}},'
            f'"properties":{json.dumps(properties, separators=(",", ":"))}}}'
        )


def _texts(values: np.ndarray) -> list[str]:
    """Pixel positions as text, to a hundredth of a pixel; every distinct position is formatted once."""
    distinct, inverse = np.unique(values, return_inverse=True)
    texts = [f"{value:.2f}".rstrip("0").rstrip(".") for value in distinct.tolist()]
    return [texts[i] for i in inverse.tolist()]

"""Heatmaps as the annotations that each client reads: XML of ASAP, JSON of the Digital Slide Archive, GeoJSON.

The clients' own parsers are strict: QuPath 0.3.1 takes any ``Annotation`` element with ``Name``, ``Color`` and its
``Coordinate`` children; the Archive's plugin reads the description from the last line but one of the reply.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np

from monai_mil.heatmaps import Heatmap, colour_table, drawing_style, stitch
from monai_mil.label.heat import HeatRegion, count_by_name

_MOST_CELLS = 200_000
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def asap_xml(regions: Sequence[HeatRegion], *, name: str, facts: Mapping[str, Any], origin: tuple[int, int]) -> str:
    """The regions as ASAP writes them, one outline each: give regions without holes.

    Args:
        regions: what is drawn.
        name: of the whole, as a reader sees it.
        facts: what else stands in ``Description``, as JSON.
        origin: the level-0 pixel from which the client counts.
    """
    description = json.dumps(dict(facts), ensure_ascii=False)
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', "<ASAP_Annotations>"]
    lines.append(f"  <Annotations Name={_quoted(name)} Description={_quoted(description)}>")
    for each in regions:
        label, colour = _quoted(each.name), _quoted(_hex(each.colour))
        lines.append(f'    <Annotation Name={label} Type="Polygon" PartOfGroup={label} Color={colour}>')
        lines.append("      <Coordinates>")
        for order, (x, y) in enumerate(each.region.rings[0][:-1] - origin):
            lines.append(f'        <Coordinate Order="{order}" X="{_number(x)}" Y="{_number(y)}" />')
        lines += ["      </Coordinates>", "    </Annotation>"]
    lines += ["  </Annotations>", "  <AnnotationGroups>"]
    for label, colour in {each.name: _hex(each.colour) for each in regions}.items():
        lines.append(f'    <Group Name={_quoted(label)} PartOfGroup="None" Color={_quoted(colour)}>')
        lines += ["      <Attributes />", "    </Group>"]
    return "\n".join([*lines, "  </AnnotationGroups>", "</ASAP_Annotations>", ""])


def dsa_json(regions: Sequence[HeatRegion], heatmap: Heatmap | None, *, name: str, facts: Mapping[str, Any]) -> str:
    """The regions as closed polylines with their holes, and behind them the whole map as one heatmap element.

    Coordinates are level-0 pixels of the whole slide. One line an element, and the description in the last line but
    one, where the Archive's plugin looks for it.

    Args:
        regions: what is outlined.
        heatmap: what the heatmap element holds; None writes none.
        name: of the annotation.
        facts: become the description.
    """
    elements = [_polyline(each) for each in regions]
    if heatmap is not None:
        elements.append(_grid(heatmap))
    listed = ",\n".join(f"  {json.dumps(element)}" for element in elements)
    described = {**facts, "count": len(regions), "regions": count_by_name(regions)}
    description = json.dumps(json.dumps(described))
    return f'{{\n "name": {json.dumps(name)},\n "elements": [\n{listed} ],\n "description": {description}\n}}'


def geojson_reply(
    regions: Sequence[HeatRegion], *, facts: Mapping[str, Any], origin: tuple[int, int]
) -> dict[str, Any]:
    """The regions as a GeoJSON FeatureCollection of QuPath annotations.

    Args:
        regions: what is drawn.
        facts: further members of the collection: the model's answer.
        origin: the level-0 pixel from which the coordinates count; stands in ``frame_origin``.
    """
    features = [
        {
            "type": "Feature",
            "geometry": {
                "type": "Polygon",
                "coordinates": [(ring - origin).round(2).tolist() for ring in each.region.rings],
            },
            "properties": {
                "objectType": "annotation",
                "classification": {"name": each.name, "color": list(each.colour)},
                "isLocked": False,
                "measurements": {"mean": float(f"{each.region.mean:.6g}"), "max": float(f"{each.region.maximum:.6g}")},
            },
        }
        for each in regions
    ]
    return {"type": "FeatureCollection", "frame_origin": list(origin), **facts, "features": features}


def _polyline(each: HeatRegion) -> dict[str, Any]:
    outline, *holes = ([[*point, 0] for point in ring[:-1].round(2).tolist()] for ring in each.region.rings)
    element = {
        "group": each.name,
        "type": "polyline",
        "lineColor": "rgb({}, {}, {})".format(*each.colour),
        "lineWidth": 2.0,
        "closed": True,
        "points": outline,
        "label": {"value": each.name},
    }
    return element | ({"holes": holes} if holes else {})


def _grid(heatmap: Heatmap) -> dict[str, Any]:
    """A large_image ``griddata`` element: the map on the lattice of its tiles or tokens, scaled to 0 to 1, glass 0."""
    style = drawing_style(heatmap)
    low, high = style.limits
    canvas = stitch(heatmap)
    (rows, columns), (width, height) = canvas.values.shape, canvas.step
    values = canvas.values
    if values.size > _MOST_CELLS:
        x0, y0 = canvas.origin
        window = x0, y0, x0 + columns * width, y0 + rows * height
        factor = (_MOST_CELLS / values.size) ** 0.5
        values = canvas.upsample(window, (max(1, int(rows * factor)), max(1, int(columns * factor))))
        width, height = width * columns / values.shape[1], height * rows / values.shape[0]
    shown = style.scale.values(np.nan_to_num(values, nan=low if style.scale.measure == "score" else 0.0))
    grid = np.clip((shown - low) / (high - low), 0, 1) if high > low else np.zeros(shown.shape)
    middle = canvas.origin[0] + width / 2, canvas.origin[1] + height / 2
    steps = np.linspace(0, 255, 6).astype(int)
    return {
        "type": "griddata",
        "interpretation": "heatmap",
        "group": "MIL heatmap",
        "label": {"value": heatmap.name},
        "gridWidth": grid.shape[1],
        "origin": [round(middle[0], 2), round(middle[1], 2), 0],
        "dx": round(width, 4),
        "dy": round(height, 4),
        "radius": round(width, 4),
        "values": [float(f"{value:.4g}") for value in grid.ravel().tolist()],
        "rangeValues": [round(float(value), 4) for value in steps / 255],
        "colorRange": ["rgba({}, {}, {}, {:.2f})".format(*colour_table("inferno")[step], step / 255) for step in steps],
    }


def _quoted(text: str) -> str:
    """An attribute's value with its quotes, of characters that XML knows."""
    return quoteattr(_NO_XML.sub("\N{REPLACEMENT CHARACTER}", text))


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")

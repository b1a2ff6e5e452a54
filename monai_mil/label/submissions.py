"""What an annotator sends: shapes with classes, read from XML of ASAP, JSON of the Digital Slide Archive or GeoJSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_mil.errors import AnnotationError
from monai_mil.slides import AnnotationFrame, Bounds, frame_origin, read_shapes

_PATCH = re.compile(r"(?P<parent>.+)-patch-(?P<x>-?\d+)_(?P<y>-?\d+)_(?P<width>\d+)_(?P<height>\d+)")


@dataclass(frozen=True, eq=False)
class Shape:
    """One thing that an annotator drew.

    Attributes:
        name: its class or group; None where it has none.
        rings: x and y of its corners in level-0 pixels, float64 ``[k, 2]``, the outline first and then its holes; a
            point is a ring of one corner.
    """

    name: str | None
    rings: tuple[np.ndarray, ...]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 around it."""
        return *self.rings[0].min(axis=0).tolist(), *self.rings[0].max(axis=0).tolist()


@dataclass(frozen=True)
class Patch:
    """The part of a slide that QuPath sends as an image of its own, and what it calls that.

    Attributes:
        parent: name of the slide.
        corner: its upper-left corner in QuPath's pixels.
    """

    parent: str
    corner: tuple[int, int]


def patch_of(name: str) -> Patch | None:
    """The patch that an image of this name is; None of a name that QuPath does not make.

    Examples:
        >>> from monai_mil.label import patch_of
        >>> patch_of("S-1-patch-100_200_512_512")
        Patch(parent='S-1', corner=(100, 200))
        >>> patch_of("S-1") is None
        True
    """
    found = _PATCH.fullmatch(name)
    return None if found is None else Patch(found["parent"], (int(found["x"]), int(found["y"])))


def read_submission(
    path: Path,
    *,
    size: tuple[int, int] | None = None,
    bounds: Bounds | None = None,
    frame: AnnotationFrame = "qupath",
    offset: tuple[int, int] = (0, 0),
) -> list[Shape]:
    """The shapes of a submission, in level-0 pixels of the whole slide.

    XML comes from QuPath's plugin, GeoJSON from QuPath: both count from the corner of the scanned part of slides that
    name one. The Digital Slide Archive's JSON always counts from the slide's own.

    Args:
        path: the file, ``.xml``, ``.json`` or ``.geojson``.
        size: width and height of the slide in level-0 pixels; None where they are not known.
        bounds: its scanned part.
        frame: what coordinates of XML and GeoJSON count from.
        offset: added in that frame, for what was drawn in a patch.

    Raises:
        AnnotationError: it is no such file, holds no shape, or a shape that lies wholly outside the slide.
    """
    origin = np.array(frame_origin(frame, bounds), float) + offset
    if path.suffix.lower() == ".xml":
        named: Sequence[Any] = [(name, [ring + origin for ring in rings]) for name, rings in read_shapes(path)]
    elif (elements := _dsa_elements(path)) is not None:
        named = list(_dsa_shapes(path, elements))
    else:
        named = [
            (name, [ring + offset for ring in rings]) for name, rings in read_shapes(path, bounds=bounds, frame=frame)
        ]
    shapes = [Shape(name or None, tuple(ring for ring in rings if len(ring))) for name, rings in named]
    shapes = [shape for shape in shapes if shape.rings]
    if not shapes:
        raise AnnotationError("the annotation is empty: draw at least one area with a class")
    for shape in shapes:
        _check_inside(shape, size)
    return shapes


def _check_inside(shape: Shape, size: tuple[int, int] | None) -> None:
    x0, y0, x1, y1 = shape.box
    if size is not None and (x1 < 0 or y1 < 0 or x0 > size[0] or y0 > size[1]):
        raise AnnotationError(
            f"a shape of class '{shape.name}' at ({x0:g}, {y0:g}) lies outside the slide of {size[0]} x {size[1]} "
            "pixels; was it drawn on another slide?"
        )


def _dsa_elements(path: Path) -> list[dict[str, Any]] | None:
    """The elements of the Archive's annotation; None where the file is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"the annotation is no JSON ({error})") from error
    content = content.get("annotation", content) if isinstance(content, dict) else content
    elements = content.get("elements") if isinstance(content, dict) else None
    return elements if isinstance(elements, list) else None


def _dsa_shapes(path: Path, elements: Sequence[dict[str, Any]]) -> Iterator[tuple[str | None, list[np.ndarray]]]:
    try:
        for element in elements:
            name = element.get("group") or (element.get("label") or {}).get("value")
            if not isinstance(name, str | None):
                raise TypeError(f"a group is {name!r}")
            kind = element.get("type")
            if kind == "polyline":
                yield name, [_corners(ring) for ring in (element["points"], *element.get("holes", ()))]
            elif kind == "point":
                yield name, [_corners([element["center"]])]
            elif kind in ("rectangle", "ellipse", "circle"):
                yield name, [_box(element)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AnnotationError(f"the annotation is none of the Digital Slide Archive ({error!r})") from error


def _box(element: dict[str, Any]) -> np.ndarray:
    """The corners of a rectangle, or of the box around an ellipse or circle, turned as it is."""
    radius = float(element.get("radius", 0))
    half = np.array([element.get("width", 2 * radius), element.get("height", 2 * radius)], float) / 2
    turn = float(element.get("rotation", 0))
    corners = half * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return corners @ rotation + _corners([element["center"]])


def _corners(points: Any) -> np.ndarray:
    corners = np.array([point[:2] for point in points], float).reshape(-1, 2)
    if not np.isfinite(corners).all():
        raise ValueError("a corner is no number")
    return corners
